//! Comparing texts.

use outrigger_proto::envoy::{
    config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};

use crate::model::TextMatch;

pub(super) fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ..StringMatcher::default()
    }
}

pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.to_owned(),
        ..RegexMatcher::default()
    }
}

/// A header, compared as it is said. One that is not there is not what it was to be, which Envoy
/// says only when told to take it as empty.
pub(super) fn header(name: &str, value: &TextMatch, not: bool) -> HeaderMatcher {
    let compared = |pattern| HeaderMatchSpecifier::StringMatch(string(pattern));
    let specifier = match value {
        TextMatch::Exact(text) => compared(MatchPattern::Exact(text.clone())),
        TextMatch::Prefix(text) => compared(MatchPattern::Prefix(text.clone())),
        TextMatch::Suffix(text) => compared(MatchPattern::Suffix(text.clone())),
        TextMatch::Regex(pattern) => compared(MatchPattern::SafeRegex(regex(pattern))),
        TextMatch::Present(_) => HeaderMatchSpecifier::PresentMatch(true),
    };
    HeaderMatcher {
        name: name.to_ascii_lowercase(),
        treat_missing_header_as_empty: not && !matches!(value, TextMatch::Present(_)),
        header_match_specifier: Some(specifier),
        invert_match: not,
    }
}

/// A header, compared with a matcher.
pub(super) fn compared_header(name: &str, matcher: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_ascii_lowercase(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

/// `*` at the beginning or the end stands for anything.
pub(super) fn pattern(text: &str) -> StringMatcher {
    string(match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => MatchPattern::Prefix(String::new()),
        (Some(suffix), _) => MatchPattern::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => MatchPattern::Prefix(prefix.to_owned()),
        (None, None) => MatchPattern::Exact(text.to_owned()),
    })
}
