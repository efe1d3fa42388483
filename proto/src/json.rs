//! Proto3 JSON in and out, in the shape of Envoy's configuration files and config dump.
//!
//! Out: the original field names (`filter_chains`), defaults left out, an `Any` opened up beside
//! its `@type`. In: original or lowerCamelCase names, numbers also as strings, enums by name or
//! number (<https://protobuf.dev/programming-guides/json/>). YAML comes in through the same door
//! once it is parsed into a [`serde_json::Value`].
//!
//! Bounded: messages nest at most [`MAX_DEPTH`] levels; in reading a deeper one is an error, in
//! writing a deeper `Any` is printed closed.

use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use serde_json::Value;

use crate::descriptor;

mod read;
mod well_known;
mod write;

/// How deep messages may nest. Authorization rules in an HTTP filter in a listener, the deepest that
/// is met, reach about 20.
pub const MAX_DEPTH: usize = 64;
/// Paths of ignored fields that [`from_json_lenient`] keeps.
pub const MAX_IGNORED: usize = 64;

/// What is wrong with a JSON document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}{}{why}", if path.is_empty() { "" } else { ": " })]
pub struct JsonError {
    /// The field, like `filter_chains[0].name`; empty for the document as a whole.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

/// The message as JSON, secrets included.
pub fn to_json<M: Message + Name>(message: &M) -> Value {
    write(message, write::Writer { redact: false })
}

/// The message as JSON for people's eyes: private keys and other secrets read `[redacted]`.
pub fn to_json_redacted<M: Message + Name>(message: &M) -> Value {
    write(message, write::Writer { redact: true })
}

/// An `Any` as JSON; one of unknown type, or with bytes that are not of its type, is printed
/// closed: its bytes in base64 under `value`. Secrets are redacted.
pub fn any_to_json_redacted(any: &prost_types::Any) -> Value {
    write::Writer { redact: true }.any(&any.type_url, &any.value, MAX_DEPTH)
}

/// Reads a message, and refuses what it does not know.
///
/// # Errors
///
/// The first thing wrong: a field that does not exist, a value of another type or out of range, two
/// fields of which only one may be set, an `Any` without `@type` or of unknown type.
pub fn from_json<M: Message + Name + Default>(json: &Value) -> Result<M, JsonError> {
    finish(&read::Reader::strict().root(json, &M::full_name())?)
}

/// Reads a message that may hold fields, and `Any` types, that we do not know, and names the first
/// [`MAX_IGNORED`] of them. An `Any` of unknown type keeps its type URL and nothing else.
///
/// # Errors
///
/// As [`from_json`], save for the unknown.
pub fn from_json_lenient<M: Message + Name + Default>(
    json: &Value,
) -> Result<(M, Vec<String>), JsonError> {
    let mut reader = read::Reader::lenient();
    let message = reader.root(json, &M::full_name())?;
    Ok((finish(&message)?, reader.into_ignored()))
}

fn write<M: Message + Name>(message: &M, writer: write::Writer) -> Value {
    let encoded = message.encode_to_vec();
    let dynamic =
        descriptor::of::<M>().and_then(|of| DynamicMessage::decode(of, encoded.as_slice()).ok());
    // Generated types have descriptors and decode what they encoded; only a message nested deeper
    // than prost decodes (100) ends here.
    dynamic.map_or(Value::Null, |dynamic| writer.message(&dynamic, MAX_DEPTH))
}

fn finish<M: Message + Default>(message: &DynamicMessage) -> Result<M, JsonError> {
    M::decode(message.encode_to_vec().as_slice()).map_err(|error| JsonError {
        path: String::new(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
