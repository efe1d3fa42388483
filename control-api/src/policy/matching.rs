//! What a request is compared with: path, headers, query.

use regex::RegexBuilder;
use serde::{Deserialize, Serialize};

use super::Faults;

/// Gateway API: `HTTPPathMatch.value` has at most so many characters.
const MAX_PATH: usize = 1024;
/// Gateway API: `HTTPHeaderMatch.value` has at most so many characters.
pub(super) const MAX_VALUE: usize = 4096;
/// Gateway API: header names have at most so many characters.
const MAX_HEADER_NAME: usize = 256;
/// What a compiled expression may take; the proxy has the same limit in mind.
const MAX_COMPILED: usize = 1 << 20;

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PathMatchType {
    /// The whole path, case-sensitive.
    Exact,
    /// Whole segments from the beginning: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
    /// RE2, for the whole path.
    RegularExpression,
}

/// Gateway API `HTTPPathMatch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How it is compared.
    #[serde(default, rename = "type")]
    pub kind: PathMatchType,
    /// What it is compared with.
    #[serde(default = "root")]
    pub value: String,
}

fn root() -> String {
    "/".to_owned()
}

impl Default for PathMatch {
    fn default() -> Self {
        Self {
            kind: PathMatchType::default(),
            value: root(),
        }
    }
}

impl PathMatch {
    pub(super) fn check(&self, faults: &mut Faults) {
        if self.kind == PathMatchType::RegularExpression {
            return regex(faults, "value", &self.value, MAX_PATH);
        }
        path(faults, "value", &self.value);
    }

    /// The prefix without the slash at its end, which the Gateway API ignores; empty for `/`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.value.trim_end_matches('/')
    }
}

/// Gateway API: what an exact path or a prefix may not have in it, because no request that gets so
/// far has it.
pub(super) fn path(faults: &mut Faults, field: &str, value: &str) {
    if !value.starts_with('/') {
        faults.add(field, "must begin with '/'");
    }
    faults.add_if(
        value.len() > MAX_PATH,
        field,
        "must have at most 1024 characters",
    );
    for part in ["//", "/./", "/../", "%2f", "%2F", "#", "?"] {
        faults.add_if(
            value.contains(part),
            field,
            &format!("must not contain {part:?}"),
        );
    }
    for end in ["/..", "/."] {
        faults.add_if(
            value.ends_with(end),
            field,
            &format!("must not end in {end:?}"),
        );
    }
    let odd = value.chars().any(|c| c.is_ascii_control() || c == ' ');
    faults.add_if(odd, field, "must not contain spaces or control characters");
}

pub(super) fn regex(faults: &mut Faults, field: &str, value: &str, max: usize) {
    if value.is_empty() || value.len() > max {
        return faults.add(field, format!("must have 1 to {max} characters"));
    }
    let built = RegexBuilder::new(value).size_limit(MAX_COMPILED).build();
    if let Err(error) = built {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        let why = last.trim_start_matches("error: ");
        faults.add(field, format!("is no regular expression: {why}"));
    }
}

/// How a header, query parameter, gRPC service or method is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ValueMatchType {
    /// The whole value, case-sensitive.
    #[default]
    Exact,
    /// RE2, for the whole value.
    RegularExpression,
}

/// Gateway API `HTTPHeaderMatch` and `GRPCHeaderMatch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How it is compared.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// In any case.
    pub name: String,
    /// What it is compared with.
    pub value: String,
}

/// Gateway API `HTTPQueryParamMatch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryParamMatch {
    /// How it is compared.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// Case-sensitive.
    pub name: String,
    /// What it is compared with.
    pub value: String,
}

/// Gateway API: at most so many of each in one match.
const MAX_MATCHES: usize = 16;

pub(super) fn headers(faults: &mut Faults, all: &[HeaderMatch]) {
    faults.add_if(
        all.len() > MAX_MATCHES,
        "headers",
        "must have at most 16 entries",
    );
    for (i, header) in all.iter().enumerate() {
        let same = |other: &HeaderMatch| other.name.eq_ignore_ascii_case(&header.name);
        let again = all.iter().take(i).any(same);
        faults.within(format_args!("headers[{i}]"), |faults| {
            // Gateway API: the first counts. An error says so before it surprises.
            faults.add_if(again, "name", "stands there twice");
            header_name(faults, "name", &header.name);
            value(faults, header.kind, &header.value);
        });
    }
}

pub(super) fn query_params(faults: &mut Faults, all: &[QueryParamMatch]) {
    faults.add_if(
        all.len() > MAX_MATCHES,
        "queryParams",
        "must have at most 16 entries",
    );
    for (i, param) in all.iter().enumerate() {
        let again = all.iter().take(i).any(|other| other.name == param.name);
        faults.within(format_args!("queryParams[{i}]"), |faults| {
            faults.add_if(again, "name", "stands there twice");
            let bad = param.name.is_empty() || param.name.len() > MAX_HEADER_NAME;
            faults.add_if(bad, "name", "must have 1 to 256 characters");
            value(faults, param.kind, &param.value);
        });
    }
}

fn value(faults: &mut Faults, kind: ValueMatchType, value: &str) {
    match kind {
        ValueMatchType::RegularExpression => regex(faults, "value", value, MAX_VALUE),
        ValueMatchType::Exact => {
            let bad = value.is_empty() || value.len() > MAX_VALUE;
            faults.add_if(bad, "value", "must have 1 to 4096 characters");
        }
    }
}

/// RFC 9110 §5.1: a field name is a token.
pub(super) fn header_name(faults: &mut Faults, field: &str, name: &str) {
    let token = http::HeaderName::try_from(name).is_ok();
    let bad = !token || name.len() > MAX_HEADER_NAME;
    faults.add_if(bad, field, "must be the name of a header");
}
