//! JSON to messages.

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};
use serde_json::{Map, Value as Json};

use super::well_known as wkt;
use super::{JsonError, MAX_DEPTH, MAX_IGNORED};
use crate::any::type_name;
use crate::descriptor;
use crate::path::{Path, Step, shortened};

/// Padding or none, both are met.
const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, PADDING);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, PADDING);

/// Reads messages from JSON.
#[derive(Debug)]
pub(super) struct Reader {
    path: Path,
    /// The paths of what was ignored; `None` when nothing may be.
    ignored: Option<Vec<String>>,
}

type Result<T> = std::result::Result<T, JsonError>;

impl Reader {
    pub(super) fn strict() -> Self {
        Self {
            path: Path::default(),
            ignored: None,
        }
    }

    pub(super) fn lenient() -> Self {
        Self {
            path: Path::default(),
            ignored: Some(Vec::new()),
        }
    }

    pub(super) fn into_ignored(self) -> Vec<String> {
        self.ignored.unwrap_or_default()
    }

    pub(super) fn root(&mut self, json: &Json, full_name: &str) -> Result<DynamicMessage> {
        let Some(of) = descriptor::pool().get_message_by_name(full_name) else {
            return self.fail(format!("no type {full_name}"));
        };
        self.message(&of, json, MAX_DEPTH)
    }

    /// `depth` is how many more levels of messages may be read.
    fn message(
        &mut self,
        of: &MessageDescriptor,
        json: &Json,
        depth: usize,
    ) -> Result<DynamicMessage> {
        let depth = self.deeper(depth)?;
        if wkt::has_own_form(of.full_name()) {
            return self.well_known(of, json, depth);
        }
        let Json::Object(entries) = json else {
            return self.expected("an object", json);
        };
        self.fields(of, entries.iter(), depth)
    }

    fn deeper(&self, depth: usize) -> Result<usize> {
        let deeper = depth.checked_sub(1);
        deeper.map_or_else(
            || self.fail(format!("messages nest deeper than {MAX_DEPTH} levels")),
            Ok,
        )
    }

    fn fields<'a>(
        &mut self,
        of: &MessageDescriptor,
        entries: impl Iterator<Item = (&'a String, &'a Json)>,
        depth: usize,
    ) -> Result<DynamicMessage> {
        let mut message = DynamicMessage::new(of.clone());
        for (name, json) in entries {
            let known = of
                .get_field_by_name(name)
                .or_else(|| of.get_field_by_json_name(name));
            let Some(field) = known else {
                let why = format!("{} has no such field", of.full_name());
                self.at(Step::Name(name.clone()), |reader| reader.ignore(why))?;
                continue;
            };
            if json.is_null() && !holds_null(&field) {
                continue;
            }
            let value = self.at(Step::Field(field.clone()), |reader| {
                reader.check_not_set(&message, &field)?;
                reader.field(&field, json, depth)
            })?;
            message.set_field(&field, value);
        }
        Ok(message)
    }

    /// Two names of one field, or two members of a oneof: whichever came last would win silently.
    fn check_not_set(&self, message: &DynamicMessage, field: &FieldDescriptor) -> Result<()> {
        if message.has_field(field) {
            return self.fail("is set twice, under both of its names".to_owned());
        }
        let other = field
            .containing_oneof()
            .and_then(|oneof| oneof.fields().find(|other| message.has_field(other)));
        match other {
            Some(other) => self.fail(format!("cannot be set together with {}", other.name())),
            None => Ok(()),
        }
    }

    fn field(&mut self, field: &FieldDescriptor, json: &Json, depth: usize) -> Result<Value> {
        let kind = field.kind();
        if field.is_map() {
            let (Kind::Message(entry), Json::Object(entries)) = (kind, json) else {
                return self.expected("an object", json);
            };
            return self.map(&entry, entries, depth);
        }
        if !field.is_list() {
            return self.value(&kind, json, depth);
        }
        let Json::Array(elements) = json else {
            return self.expected("an array", json);
        };
        let mut values = Vec::with_capacity(elements.len());
        for (index, json) in elements.iter().enumerate() {
            values.push(self.at(Step::Index(index), |reader| {
                reader.value(&kind, json, depth)
            })?);
        }
        Ok(Value::List(values))
    }

    fn map(
        &mut self,
        entry: &MessageDescriptor,
        entries: &Map<String, Json>,
        depth: usize,
    ) -> Result<Value> {
        let key_kind = entry.map_entry_key_field().kind();
        let value_kind = entry.map_entry_value_field().kind();
        let mut values = std::collections::HashMap::with_capacity(entries.len());
        for (key, json) in entries {
            let (key, value) = self.at(Step::Key(key.clone()), |reader| {
                let value = reader.value(&value_kind, json, depth)?;
                Ok((reader.map_key(&key_kind, key)?, value))
            })?;
            values.insert(key, value);
        }
        Ok(Value::Map(values))
    }

    fn map_key(&self, kind: &Kind, key: &str) -> Result<MapKey> {
        let parsed = match kind {
            Kind::String => Some(MapKey::String(key.to_owned())),
            Kind::Bool => key.parse().ok().map(MapKey::Bool),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => key.parse().ok().map(MapKey::I32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => key.parse().ok().map(MapKey::I64),
            Kind::Uint32 | Kind::Fixed32 => key.parse().ok().map(MapKey::U32),
            Kind::Uint64 | Kind::Fixed64 => key.parse().ok().map(MapKey::U64),
            Kind::Double | Kind::Float | Kind::Bytes | Kind::Message(_) | Kind::Enum(_) => None,
        };
        parsed.map_or_else(|| self.fail(format!("the key is no {kind:?}")), Ok)
    }

    fn value(&mut self, kind: &Kind, json: &Json, depth: usize) -> Result<Value> {
        match kind {
            Kind::Message(of) => self.message(of, json, depth).map(Value::Message),
            Kind::Enum(of) => self.enumeration(of, json),
            Kind::Bool => match json {
                Json::Bool(value) => Ok(Value::Bool(*value)),
                _ => self.expected("true or false", json),
            },
            Kind::String => match json {
                Json::String(text) => Ok(Value::String(text.clone())),
                _ => self.expected("a string", json),
            },
            Kind::Bytes => self.bytes(json).map(Value::Bytes),
            Kind::Double => self.float(json).map(Value::F64),
            Kind::Float => self.float32(json).map(Value::F32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => self.integer(json).map(Value::I32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => self.integer(json).map(Value::I64),
            Kind::Uint32 | Kind::Fixed32 => self.integer(json).map(Value::U32),
            Kind::Uint64 | Kind::Fixed64 => self.integer(json).map(Value::U64),
        }
    }

    fn enumeration(&self, of: &EnumDescriptor, json: &Json) -> Result<Value> {
        match json {
            Json::String(name) => match of.get_value_by_name(name) {
                Some(value) => Ok(Value::EnumNumber(value.number())),
                None => self.fail(format!(
                    "{} has no value {:?}",
                    of.full_name(),
                    shortened(name)
                )),
            },
            Json::Number(_) => self.integer(json).map(Value::EnumNumber),
            _ => self.expected("the name of an enum value", json),
        }
    }

    fn bytes(&self, json: &Json) -> Result<Bytes> {
        let Json::String(text) = json else {
            return self.expected("base64", json);
        };
        let decoded = BASE64.decode(text).or_else(|_| BASE64_URL.decode(text));
        decoded.map_or_else(|_| self.expected("base64", json), |bytes| Ok(bytes.into()))
    }

    fn integer<T: TryFrom<i128>>(&self, json: &Json) -> Result<T> {
        let number = match json {
            Json::Number(number) => number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from))
                .or_else(|| number.as_f64().and_then(whole)),
            Json::String(text) => text.parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            return self.expected("a whole number", json);
        };
        T::try_from(number).or_else(|_| self.fail(format!("{number} is out of range")))
    }

    fn float(&self, json: &Json) -> Result<f64> {
        let number = match json {
            Json::Number(number) => number.as_f64(),
            Json::String(text) => match text.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.parse().ok().filter(|number: &f64| number.is_finite()),
            },
            _ => None,
        };
        number.map_or_else(|| self.expected("a number", json), Ok)
    }

    fn float32(&self, json: &Json) -> Result<f32> {
        let number = self.float(json)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is asked for"
        )]
        let rounded = number as f32;
        if number.is_finite() && !rounded.is_finite() {
            return self.fail(format!("{number} is out of range"));
        }
        Ok(rounded)
    }

    fn well_known(
        &mut self,
        of: &MessageDescriptor,
        json: &Json,
        depth: usize,
    ) -> Result<DynamicMessage> {
        match of.name() {
            "Any" => self.any(of, json, depth),
            "Duration" => {
                let parsed = json.as_str().and_then(wkt::duration_from_json);
                match parsed {
                    Some(parts) => Ok(with_seconds(of, parts)),
                    None => self.expected("a duration like \"1.5s\"", json),
                }
            }
            "Timestamp" => {
                let parsed = json.as_str().and_then(wkt::timestamp_from_json);
                match parsed {
                    Some(parts) => Ok(with_seconds(of, parts)),
                    None => self.expected("an RFC 3339 time", json),
                }
            }
            "Struct" => match json {
                Json::Object(fields) => self.copied(of, wkt::struct_from_json(fields, depth)),
                _ => self.expected("an object", json),
            },
            "ListValue" => match json {
                Json::Array(values) => self.copied(of, wkt::list_from_json(values, depth)),
                _ => self.expected("an array", json),
            },
            "Value" => self.copied(of, wkt::value_from_json(json, depth)),
            _ => {
                let mut message = DynamicMessage::new(of.clone());
                if let Some(field) = of.get_field(1) {
                    let value = self.value(&field.kind(), json, depth)?;
                    message.set_field(&field, value);
                }
                Ok(message)
            }
        }
    }

    /// The well-known message in its dynamic form; `None` means that it nests too deep.
    fn copied<M: Message>(
        &self,
        of: &MessageDescriptor,
        from: Option<M>,
    ) -> Result<DynamicMessage> {
        from.and_then(|from| DynamicMessage::decode(of.clone(), &*from.encode_to_vec()).ok())
            .map_or_else(
                || self.fail(format!("values nest deeper than {MAX_DEPTH} levels")),
                Ok,
            )
    }

    fn any(
        &mut self,
        any: &MessageDescriptor,
        json: &Json,
        depth: usize,
    ) -> Result<DynamicMessage> {
        let Json::Object(entries) = json else {
            return self.expected("an object", json);
        };
        let mut message = DynamicMessage::new(any.clone());
        if entries.is_empty() {
            return Ok(message);
        }
        let Some(type_url) = entries.get("@type").and_then(Json::as_str) else {
            return self.fail("has no @type".to_owned());
        };
        message.set_field_by_number(1, Value::String(type_url.to_owned()));
        let name = type_name(type_url);
        let encoded = self.at(Step::Type(name.to_owned()), |reader| {
            reader.content(name, entries, depth)
        })?;
        message.set_field_by_number(2, Value::Bytes(encoded));
        Ok(message)
    }

    /// The encoded message in an `Any`.
    fn content(&mut self, name: &str, entries: &Map<String, Json>, depth: usize) -> Result<Bytes> {
        let Some(of) = descriptor::pool().get_message_by_name(name) else {
            // As we print one that we cannot open.
            if entries.len() == 2 && entries.get("value").is_some_and(Json::is_string) {
                return self.bytes(entries.get("value").unwrap_or(&Json::Null));
            }
            self.ignore("is a type that is not supported".to_owned())?;
            return Ok(Bytes::new());
        };
        let message = if wkt::has_own_form(of.full_name()) {
            self.message(&of, entries.get("value").unwrap_or(&Json::Null), depth)?
        } else {
            let depth = self.deeper(depth)?;
            self.fields(
                &of,
                entries.iter().filter(|(name, _)| *name != "@type"),
                depth,
            )?
        };
        Ok(message.encode_to_vec().into())
    }

    /// Goes one step down, runs `visit` there, comes back up.
    fn at<T>(&mut self, step: Step, visit: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.path.push(step);
        let result = visit(self);
        self.path.pop();
        result
    }

    /// Notes the place as ignored, or fails if nothing may be.
    fn ignore(&mut self, why: String) -> Result<()> {
        let path = self.path.to_string();
        match &mut self.ignored {
            None => Err(JsonError { path, why }),
            Some(ignored) => {
                if ignored.len() < MAX_IGNORED {
                    ignored.push(path);
                }
                Ok(())
            }
        }
    }

    fn expected<T>(&self, what: &str, found: &Json) -> Result<T> {
        let found = match found {
            Json::Null => "null".to_owned(),
            Json::Array(_) => "an array".to_owned(),
            Json::Object(_) => "an object".to_owned(),
            Json::String(text) => format!("{:?}", shortened(text)),
            Json::Bool(_) | Json::Number(_) => found.to_string(),
        };
        self.fail(format!("expected {what}, found {found}"))
    }

    fn fail<T>(&self, why: String) -> Result<T> {
        Err(JsonError {
            path: self.path.to_string(),
            why,
        })
    }
}

/// Whether `null` is a value of the field, and not its absence.
fn holds_null(field: &FieldDescriptor) -> bool {
    !field.is_list()
        && !field.is_map()
        && field
            .kind()
            .as_message()
            .is_some_and(|of| of.full_name() == "google.protobuf.Value")
}

/// A `Duration` or `Timestamp`.
fn with_seconds(of: &MessageDescriptor, (seconds, nanos): (i64, i32)) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    message.set_field_by_number(1, Value::I64(seconds));
    message.set_field_by_number(2, Value::I32(nanos));
    message
}

/// `1.0` and `1e3` are whole numbers too, up to where an `f64` is exact.
fn whole(number: f64) -> Option<i128> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be whole and in range"
    )]
    let whole = (number.trunc() == number && number.abs() <= EXACT).then_some(number as i128);
    whole
}
