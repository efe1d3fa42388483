//! Matchers of strings, headers and paths.

use outrigger_proto::envoy::{
    config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier as H},
    r#type::matcher::v3::{
        PathMatcher, RegexMatchAndSubstitute, RegexMatcher, StringMatcher, path_matcher,
        string_matcher::MatchPattern,
    },
};
use regex::{Regex, RegexBuilder};

use super::{
    at::At,
    value::{Decoded, header_name, required},
};
use crate::config::matcher::{HeaderKey, HeaderKind, HeaderMatch, StringMatch};

/// Bounds the memory that one expression may take once compiled; Envoy bounds its RE2 programs too.
const MAX_COMPILED: usize = 1 << 20;

pub(super) fn string(at: At<'_>, matcher: &StringMatcher) -> Decoded<StringMatch> {
    let ignore_case = matcher.ignore_case;
    let text = |field, text: &str| required(at.field(field), text).map(Box::from);
    Ok(match &matcher.match_pattern {
        // An empty exact match is a meaningful one.
        Some(MatchPattern::Exact(exact)) => StringMatch::Exact {
            text: exact.as_str().into(),
            ignore_case,
        },
        Some(MatchPattern::Prefix(prefix)) => StringMatch::Prefix {
            text: text("prefix", prefix)?,
            ignore_case,
        },
        Some(MatchPattern::Suffix(suffix)) => StringMatch::Suffix {
            text: text("suffix", suffix)?,
            ignore_case,
        },
        Some(MatchPattern::Contains(part)) => StringMatch::Contains {
            text: text("contains", part)?,
            ignore_case,
        },
        Some(MatchPattern::SafeRegex(regex)) => whole(at.field("safe_regex"), regex)?,
        Some(MatchPattern::Custom(_)) => {
            return Err(at.field("custom").bad("no custom matchers are known"));
        }
        None => return Err(at.bad("needs a pattern")),
    })
}

fn whole(at: At<'_>, matcher: &RegexMatcher) -> Decoded<StringMatch> {
    let at = at.field("regex");
    required(at, &matcher.regex)?;
    StringMatch::regex(&matcher.regex).map_err(|error| at.bad(error.why))
}

/// An expression that has to match the whole text.
pub(super) fn whole_regex(at: At<'_>, matcher: &RegexMatcher) -> Decoded<Regex> {
    match whole(at, matcher)? {
        StringMatch::Regex(regex) => Ok(regex),
        StringMatch::Exact { .. }
        | StringMatch::Prefix { .. }
        | StringMatch::Suffix { .. }
        | StringMatch::Contains { .. } => Err(at.bad("is no expression")),
    }
}

/// An expression whose every match in the text is replaced, and the replacement in the syntax of
/// the `regex` crate (`${1}` for Envoy's `\1`).
pub(super) fn substitution(
    at: At<'_>,
    value: &RegexMatchAndSubstitute,
) -> Decoded<(Regex, Box<str>)> {
    let at_pattern = at.field("pattern").path();
    let pattern = value.pattern.as_ref().map_or("", |p| p.regex.as_str());
    if pattern.is_empty() {
        return Err(at.field("pattern").bad("is required"));
    }
    let regex = RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .build()
        .map_err(|e| crate::config::Invalid::at(at_pattern, e.to_string()))?;
    let at = at.field("substitution");
    let mut out = String::new();
    let mut chars = value.substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = usize::from(digit as u8 - b'0');
                    if group >= regex.captures_len() {
                        return Err(at.bad(format!("\\{group}: the pattern has no such group")));
                    }
                    out.push_str(&format!("${{{group}}}"));
                }
                _ => return Err(at.bad("a backslash stands before a digit or a backslash")),
            },
            other => out.push(other),
        }
    }
    Ok((regex, out.into()))
}

pub(super) fn headers(
    at: At<'_>,
    field: &str,
    matchers: &[HeaderMatcher],
) -> Decoded<Vec<HeaderMatch>> {
    let each = matchers.iter().enumerate();
    each.map(|(i, matcher)| header(at.item(field, i), matcher))
        .collect()
}

pub(super) fn header(at: At<'_>, matcher: &HeaderMatcher) -> Decoded<HeaderMatch> {
    let text = |field, text: &str| required(at.field(field), text).map(Box::from);
    let mut invert = matcher.invert_match;
    let case = false;
    let kind = match &matcher.header_match_specifier {
        None | Some(H::PresentMatch(true)) => HeaderKind::Present,
        Some(H::PresentMatch(false)) => {
            invert = !invert;
            HeaderKind::Present
        }
        Some(H::StringMatch(inner)) => HeaderKind::String(string(at.field("string_match"), inner)?),
        // The older spellings, which gRPC clients and older control planes still use.
        Some(H::ExactMatch(exact)) => HeaderKind::String(StringMatch::exact(exact)),
        Some(H::PrefixMatch(prefix)) => HeaderKind::String(StringMatch::Prefix {
            text: text("prefix_match", prefix)?,
            ignore_case: case,
        }),
        Some(H::SuffixMatch(suffix)) => HeaderKind::String(StringMatch::Suffix {
            text: text("suffix_match", suffix)?,
            ignore_case: case,
        }),
        Some(H::ContainsMatch(part)) => HeaderKind::String(StringMatch::Contains {
            text: text("contains_match", part)?,
            ignore_case: case,
        }),
        Some(H::SafeRegexMatch(regex)) => {
            HeaderKind::String(whole(at.field("safe_regex_match"), regex)?)
        }
        Some(H::RangeMatch(range)) => HeaderKind::Range {
            start: range.start,
            end: range.end,
        },
    };
    Ok(HeaderMatch {
        key: key(at.field("name"), &matcher.name)?,
        kind,
        invert,
        missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

fn key(at: At<'_>, name: &str) -> Decoded<HeaderKey> {
    Ok(match name {
        ":method" => HeaderKey::Method,
        ":path" => HeaderKey::Path,
        // Envoy keeps both under `:authority`, whatever the HTTP version.
        ":authority" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        name if name.eq_ignore_ascii_case("host") => HeaderKey::Authority,
        name => HeaderKey::Name(header_name(at, name)?),
    })
}

pub(super) fn path(at: At<'_>, matcher: &PathMatcher) -> Decoded<StringMatch> {
    match &matcher.rule {
        Some(path_matcher::Rule::Path(inner)) => string(at.field("path"), inner),
        None => Err(at.field("path").bad("is required")),
    }
}
