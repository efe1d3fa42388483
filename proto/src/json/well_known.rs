//! The messages of `google.protobuf` that have a JSON form of their own.

use prost_reflect::{DynamicMessage, Value};
use serde_json::{Map, Value as Json};

use super::write::float_to_json;

/// Seconds that a `Duration` may span, both ways: about 10,000 years, as its definition says.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;
/// Years 1 to 9999 in Unix seconds, the range of a `Timestamp`.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The package of the messages with a form of their own.
pub(super) const PACKAGE: &str = "google.protobuf";

/// Whether JSON shows the message as something else than an object of its fields.
pub(super) fn has_own_form(full_name: &str) -> bool {
    let Some(name) = full_name.strip_prefix("google.protobuf.") else {
        return false;
    };
    is_wrapper(name)
        || matches!(
            name,
            "Any" | "Duration" | "Timestamp" | "Struct" | "Value" | "ListValue"
        )
}

/// `BoolValue` and the like: JSON shows the value alone.
pub(super) fn is_wrapper(name: &str) -> bool {
    matches!(
        name,
        "BoolValue"
            | "BytesValue"
            | "DoubleValue"
            | "FloatValue"
            | "Int32Value"
            | "Int64Value"
            | "StringValue"
            | "UInt32Value"
            | "UInt64Value"
    )
}

/// Seconds (field 1) and nanoseconds (field 2) of a `Duration` or `Timestamp`.
pub(super) fn seconds_and_nanos(message: &DynamicMessage) -> (i64, i32) {
    let seconds = message
        .get_field_by_number(1)
        .and_then(|value| value.as_i64());
    let nanos = message
        .get_field_by_number(2)
        .and_then(|value| value.as_i32());
    (seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// `1.500s`.
pub(super) fn duration_to_json(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
    if nanos == 0 {
        format!("{sign}{seconds}s")
    } else if nanos % 1_000_000 == 0 {
        format!("{sign}{seconds}.{:03}s", nanos / 1_000_000)
    } else {
        format!("{sign}{seconds}.{nanos:09}s")
    }
}

/// RFC 3339; `None` for a time outside of the years 1 to 9999.
pub(super) fn timestamp_to_json(seconds: i64, nanos: i32) -> Option<String> {
    let valid = TIMESTAMP_SECONDS.contains(&seconds) && (0..1_000_000_000).contains(&nanos);
    valid.then(|| prost_types::Timestamp { seconds, nanos }.to_string())
}

/// Seconds and nanoseconds of `1.5s`.
pub(super) fn duration_from_json(text: &str) -> Option<(i64, i32)> {
    let duration: prost_types::Duration = text.parse().ok()?;
    let in_range = duration.seconds.unsigned_abs() <= MAX_DURATION_SECONDS.unsigned_abs();
    in_range.then_some((duration.seconds, duration.nanos))
}

/// Seconds and nanoseconds of an RFC 3339 time.
pub(super) fn timestamp_from_json(text: &str) -> Option<(i64, i32)> {
    let timestamp: prost_types::Timestamp = text.parse().ok()?;
    TIMESTAMP_SECONDS
        .contains(&timestamp.seconds)
        .then_some((timestamp.seconds, timestamp.nanos))
}

/// What a `Value` holds. One that holds nothing, or a number that JSON has no form for, is `null`.
pub(super) fn value_to_json(message: &DynamicMessage) -> Json {
    let Some((field, value)) = message.fields().next() else {
        return Json::Null;
    };
    match (field.number(), value) {
        (2, Value::F64(number)) if number.is_finite() => float_to_json(*number),
        (3, Value::String(text)) => Json::String(text.clone()),
        (4, Value::Bool(value)) => Json::Bool(*value),
        (5, Value::Message(fields)) => struct_to_json(fields),
        (6, Value::Message(values)) => list_to_json(values),
        _ => Json::Null,
    }
}

/// A `Struct` as an object.
pub(super) fn struct_to_json(message: &DynamicMessage) -> Json {
    let fields = message.get_field_by_number(1);
    let fields = fields.as_ref().and_then(|fields| fields.as_map());
    let entries = fields.into_iter().flatten().filter_map(|(key, value)| {
        let key = key.as_str()?.to_owned();
        Some((key, value_to_json(value.as_message()?)))
    });
    Json::Object(entries.collect::<Map<_, _>>())
}

/// A `ListValue` as an array.
pub(super) fn list_to_json(message: &DynamicMessage) -> Json {
    let values = message.get_field_by_number(1);
    let values = values.as_ref().and_then(|values| values.as_list());
    Json::Array(
        values
            .into_iter()
            .flatten()
            .filter_map(Value::as_message)
            .map(value_to_json)
            .collect(),
    )
}

/// The `Value` that holds a piece of JSON; `None` if it nests deeper than `depth`.
pub(super) fn value_from_json(json: &Json, depth: usize) -> Option<prost_types::Value> {
    use prost_types::value::Kind;
    let deeper = depth.checked_sub(1)?;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64()?),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(values) => Kind::ListValue(list_from_json(values, deeper)?),
        Json::Object(fields) => Kind::StructValue(struct_from_json(fields, deeper)?),
    };
    Some(prost_types::Value { kind: Some(kind) })
}

/// As [`value_from_json`], for the `Struct` of an object.
pub(super) fn struct_from_json(
    fields: &Map<String, Json>,
    depth: usize,
) -> Option<prost_types::Struct> {
    let fields = fields
        .iter()
        .map(|(key, value)| Some((key.clone(), value_from_json(value, depth)?)));
    Some(prost_types::Struct {
        fields: fields.collect::<Option<_>>()?,
    })
}

/// As [`value_from_json`], for the `ListValue` of an array.
pub(super) fn list_from_json(values: &[Json], depth: usize) -> Option<prost_types::ListValue> {
    let values = values.iter().map(|value| value_from_json(value, depth));
    Some(prost_types::ListValue {
        values: values.collect::<Option<_>>()?,
    })
}
