//! Messages to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value};
use serde_json::{Map, Number, Value as Json};

use super::well_known as wkt;
use crate::any::type_name;
use crate::descriptor;

/// Fields that hold secrets.
const SECRET_FIELDS: &[&str] = &[
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.private_key",
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.password",
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate.private_key_provider",
    "outrigger.identity.v1.CreateCertificateRequest.token",
];
/// What stands in their place.
const REDACTED: &str = "[redacted]";

/// Writes messages as JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer {
    /// Hide what is secret.
    pub(super) redact: bool,
}

impl Writer {
    /// `depth` is how many more levels of messages may be written.
    pub(super) fn message(self, message: &DynamicMessage, depth: usize) -> Json {
        let descriptor = message.descriptor();
        if descriptor.package_name() == wkt::PACKAGE
            && let Some(json) = self.well_known(message, depth)
        {
            return json;
        }
        let fields = message.fields().map(|(field, value)| {
            let json = if self.redact && SECRET_FIELDS.contains(&field.full_name()) {
                Json::String(REDACTED.to_owned())
            } else {
                self.field(&field, value, depth)
            };
            (field.name().to_owned(), json)
        });
        Json::Object(fields.collect())
    }

    /// An `Any`: opened up, or closed if it cannot be opened.
    pub(super) fn any(self, type_url: &str, encoded: &[u8], depth: usize) -> Json {
        let mut object = Map::new();
        if type_url.is_empty() && encoded.is_empty() {
            return Json::Object(object);
        }
        let opened = depth.checked_sub(1).and_then(|depth| {
            let of = descriptor::pool().get_message_by_name(type_name(type_url))?;
            let message = DynamicMessage::decode(of, encoded).ok()?;
            Some((self.message(&message, depth), message))
        });
        match opened {
            Some((Json::Object(fields), message))
                if !wkt::has_own_form(message.descriptor().full_name()) =>
            {
                object = fields;
            }
            Some((json, _)) => {
                object.insert("value".to_owned(), json);
            }
            None => {
                object.insert("value".to_owned(), Json::String(BASE64.encode(encoded)));
            }
        }
        object.insert("@type".to_owned(), Json::String(type_url.to_owned()));
        Json::Object(object)
    }

    fn well_known(self, message: &DynamicMessage, depth: usize) -> Option<Json> {
        let descriptor = message.descriptor();
        let (seconds, nanos) = wkt::seconds_and_nanos(message);
        match descriptor.name() {
            "Any" => {
                let (url, value) = (
                    message.get_field_by_number(1)?,
                    message.get_field_by_number(2)?,
                );
                Some(self.any(url.as_str()?, value.as_bytes()?, depth))
            }
            "Duration" => Some(Json::String(wkt::duration_to_json(seconds, nanos))),
            "Timestamp" => wkt::timestamp_to_json(seconds, nanos).map(Json::String),
            "Struct" => Some(wkt::struct_to_json(message)),
            "Value" => Some(wkt::value_to_json(message)),
            "ListValue" => Some(wkt::list_to_json(message)),
            name if wkt::is_wrapper(name) => {
                let field = descriptor.get_field(1)?;
                Some(self.value(&field.kind(), &message.get_field(&field), depth))
            }
            _ => None,
        }
    }

    fn field(self, field: &FieldDescriptor, value: &Value, depth: usize) -> Json {
        let kind = field.kind();
        match value {
            Value::List(values) => Json::Array(
                values
                    .iter()
                    .map(|value| self.value(&kind, value, depth))
                    .collect(),
            ),
            Value::Map(entries) => {
                let Kind::Message(entry) = kind else {
                    return Json::Null;
                };
                let kind = entry.map_entry_value_field().kind();
                let entries = entries
                    .iter()
                    .map(|(key, value)| (key_to_json(key), self.value(&kind, value, depth)));
                Json::Object(entries.collect())
            }
            _ => self.value(&kind, value, depth),
        }
    }

    fn value(self, kind: &Kind, value: &Value, depth: usize) -> Json {
        match value {
            Value::Bool(value) => Json::Bool(*value),
            Value::I32(number) => Json::Number((*number).into()),
            Value::U32(number) => Json::Number((*number).into()),
            // 64 bits do not fit into the numbers of all JSON readers, so they are strings.
            Value::I64(number) => Json::String(number.to_string()),
            Value::U64(number) => Json::String(number.to_string()),
            // By way of the shortest text, 0.1f32 stays 0.1.
            Value::F32(number) => float_to_json(number.to_string().parse().unwrap_or(f64::NAN)),
            Value::F64(number) => float_to_json(*number),
            Value::String(text) => Json::String(text.clone()),
            Value::Bytes(bytes) => Json::String(BASE64.encode(bytes)),
            Value::EnumNumber(number) => {
                let name = kind.as_enum().and_then(|of| of.get_value(*number));
                name.map_or_else(
                    || Json::Number((*number).into()),
                    |value| Json::String(value.name().to_owned()),
                )
            }
            Value::Message(message) => match depth.checked_sub(1) {
                Some(depth) => self.message(message, depth),
                None => Json::Null,
            },
            // Handled where the field is.
            Value::List(_) | Value::Map(_) => Json::Null,
        }
    }
}

/// A number, without a fraction if it has none; a name for what JSON has no number for.
pub(super) fn float_to_json(number: f64) -> Json {
    /// Up to here every whole `f64` is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.trunc() == number && number.abs() <= EXACT {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked to be whole and in range"
        )]
        return Json::Number((number as i64).into());
    }
    Number::from_f64(number).map_or_else(
        || {
            let name = if number.is_nan() {
                "NaN"
            } else if number > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            };
            Json::String(name.to_owned())
        },
        Json::Number,
    )
}

fn key_to_json(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}
