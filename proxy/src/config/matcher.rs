//! Matching of strings, headers and addresses, compiled once and shared by routes and
//! authorization (Envoy `StringMatcher`, `HeaderMatcher`).

use http::{HeaderMap, HeaderName, HeaderValue};

/// How a string is compared. Regular expressions match the whole text, as in Envoy (RE2).
#[derive(Clone, Debug)]
pub enum StringMatch {
    Exact {
        text: Box<str>,
        ignore_case: bool,
    },
    Prefix {
        text: Box<str>,
        ignore_case: bool,
    },
    Suffix {
        text: Box<str>,
        ignore_case: bool,
    },
    Contains {
        text: Box<str>,
        ignore_case: bool,
    },
    /// Compiled with anchors, so that it matches the whole text.
    Regex(regex::Regex),
}

impl StringMatch {
    /// An exact, case-sensitive match.
    #[must_use]
    pub fn exact(text: &str) -> Self {
        Self::Exact {
            text: text.into(),
            ignore_case: false,
        }
    }

    /// Compiles a regular expression that has to match the whole text.
    ///
    /// # Errors
    /// When the expression does not compile or is too large once compiled.
    pub fn regex(pattern: &str) -> Result<Self, super::Invalid> {
        /// Bounds what a hostile pattern can make us build; Envoy bounds its program size too.
        const MAX_COMPILED: usize = 1 << 20;
        let build = |pattern: &str| {
            regex::RegexBuilder::new(pattern)
                .size_limit(MAX_COMPILED)
                .build()
        };
        // By itself first: `a)|(b` is no expression, but would become one between our brackets.
        build(pattern)
            .and_then(|_| build(&format!("^(?:{pattern})$")))
            .map(Self::Regex)
            .map_err(|e| super::Invalid::at("regex", e.to_string()))
    }

    /// Whether `value` matches.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        let eq = |a: &[u8], b: &str, fold: bool| {
            if fold {
                a.eq_ignore_ascii_case(b.as_bytes())
            } else {
                a == b.as_bytes()
            }
        };
        let bytes = value.as_bytes();
        match self {
            Self::Exact { text, ignore_case } => eq(bytes, text, *ignore_case),
            Self::Prefix { text, ignore_case } => bytes
                .get(..text.len())
                .is_some_and(|head| eq(head, text, *ignore_case)),
            Self::Suffix { text, ignore_case } => bytes
                .len()
                .checked_sub(text.len())
                .and_then(|at| bytes.get(at..))
                .is_some_and(|tail| eq(tail, text, *ignore_case)),
            Self::Contains { text, ignore_case } => {
                text.is_empty() || bytes.windows(text.len()).any(|w| eq(w, text, *ignore_case))
            }
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// What a header has to be.
#[derive(Clone, Debug)]
pub enum HeaderKind {
    Present,
    String(StringMatch),
    /// A decimal number in `start..end` (Envoy `range_match`).
    Range {
        start: i64,
        end: i64,
    },
}

/// Which header a matcher looks at: an ordinary one, or a pseudo-header as Envoy spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    Name(HeaderName),
    Method,
    Path,
    Authority,
    Scheme,
}

/// A condition on one header.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    pub key: HeaderKey,
    pub kind: HeaderKind,
    pub invert: bool,
    /// A missing header counts as an empty one rather than as no match.
    pub missing_as_empty: bool,
}

/// The parts of a request that matchers look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a str,
    /// Path with query, as sent.
    pub path_and_query: &'a str,
    pub authority: &'a str,
    pub scheme: &'a str,
    pub headers: &'a HeaderMap,
}

impl RequestView<'_> {
    /// The path without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path_and_query
            .split_once('?')
            .map_or(self.path_and_query, |(path, _)| path)
    }

    /// The query without its `?`, if there is one.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.path_and_query.split_once('?').map(|(_, query)| query)
    }
}

impl HeaderMatch {
    /// Whether the request fulfils this condition. Several lines of one field are joined by commas
    /// before comparing (RFC 9110 §5.3, and Envoy).
    #[must_use]
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        // Of a header that is not there only its presence can be said, inverted or not (Envoy).
        if let HeaderKey::Name(name) = &self.key
            && !matches!(self.kind, HeaderKind::Present)
            && !self.missing_as_empty
            && !request.headers.contains_key(name)
        {
            return false;
        }
        let found = match &self.key {
            HeaderKey::Method => self.value_matches(Some(request.method)),
            HeaderKey::Path => self.value_matches(Some(request.path_and_query)),
            HeaderKey::Authority => self.value_matches(Some(request.authority)),
            HeaderKey::Scheme => self.value_matches(Some(request.scheme)),
            HeaderKey::Name(name) => {
                let mut values = request.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (None, _) => self.value_matches(None),
                    (Some(one), None) => self.value_matches(Some(text(one))),
                    (Some(first), Some(second)) => {
                        let mut joined = text(first).to_owned();
                        for value in std::iter::once(second).chain(values) {
                            joined.push(',');
                            joined.push_str(text(value));
                        }
                        self.value_matches(Some(&joined))
                    }
                }
            }
        };
        found != self.invert
    }

    fn value_matches(&self, value: Option<&str>) -> bool {
        let value = match value {
            None if self.missing_as_empty => "",
            None => return false,
            Some(value) => value,
        };
        match &self.kind {
            HeaderKind::Present => true,
            HeaderKind::String(matcher) => matcher.matches(value),
            HeaderKind::Range { start, end } => value
                .parse::<i64>()
                .is_ok_and(|number| (*start..*end).contains(&number)),
        }
    }
}

/// Header bytes that are not visible ASCII never match a text; they do not make a request fail.
fn text(value: &HeaderValue) -> &str {
    std::str::from_utf8(value.as_bytes()).unwrap_or("\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_match_by_kind_and_case() {
        let prefix = StringMatch::Prefix {
            text: "Ab".into(),
            ignore_case: true,
        };
        assert!(prefix.matches("aBc") && !prefix.matches("a"));
        let suffix = StringMatch::Suffix {
            text: "yz".into(),
            ignore_case: false,
        };
        assert!(suffix.matches("xyz") && !suffix.matches("xYz") && !suffix.matches("z"));
        let contains = StringMatch::Contains {
            text: "é".into(),
            ignore_case: false,
        };
        assert!(contains.matches("café!") && !contains.matches("cafe"));
        let regex = StringMatch::regex("a|b").expect("compiles");
        assert!(
            regex.matches("b") && !regex.matches("ab"),
            "anchored as a whole"
        );
        assert!(StringMatch::regex("(").is_err());
        assert!(StringMatch::regex("a)|(b").is_err());
    }

    #[test]
    fn a_header_condition_joins_lines_and_inverts() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static("2"));
        let view = RequestView {
            method: "GET",
            path_and_query: "/p?q",
            authority: "h",
            scheme: "http",
            headers: &headers,
        };
        let matcher = |kind, invert| HeaderMatch {
            key: HeaderKey::Name(HeaderName::from_static("x-a")),
            kind,
            invert,
            missing_as_empty: false,
        };
        let joined = || HeaderKind::String(StringMatch::exact("1,2"));
        assert!(matcher(joined(), false).matches(&view));
        assert!(!matcher(joined(), true).matches(&view));
        assert!(!matcher(HeaderKind::Range { start: 0, end: 9 }, false).matches(&view));
        let none = HeaderMap::new();
        let bare = RequestView {
            headers: &none,
            ..view
        };
        assert!(!matcher(joined(), true).matches(&bare), "absent, not other");
        assert!(matcher(HeaderKind::Present, true).matches(&bare));
        let empty = HeaderMatch {
            missing_as_empty: true,
            ..matcher(joined(), true)
        };
        assert!(empty.matches(&bare));
        assert_eq!((view.path(), view.query()), ("/p", Some("q")));
    }
}
