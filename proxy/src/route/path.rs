//! The normal form of a path, so that nobody walks around a rule by spelling a path differently.
//!
//! Three readings of one path exist in the wild, and this is what we do about them:
//!
//! 1. *As received.* Nothing is decided on it.
//! 2. *The normal form* ([`normalize`]): RFC 3986 §6.2.2, that is, unreserved characters are not
//!    percent-encoded, hex digits are upper case, `.` and `..` segments are resolved. Routes and
//!    authorization look at this form, and it is what is forwarded, so what was decided on is what
//!    the application sees. By the RFC both spellings name the same resource; a path already in
//!    this form, which is nearly every path, is forwarded byte for byte. The query is never
//!    touched.
//! 3. *The lenient form* ([`lenient`]): how a generous server may read the normal form: `%2F` and
//!    `%5C` decoded, `\` as `/`, repeated slashes as one, `..;x` as `..`, and nothing after a `#`.
//!    These spellings are *not* equivalent by the RFC, so the form is neither routed on nor
//!    forwarded; but authorization must allow it too (`policy::authz`), whatever the application
//!    makes of it.
//!
//! Percent-encoding is removed once: `%252e` stays what it is.

use std::borrow::Cow;

/// Splits at the first `?`; the second part keeps it.
fn split(path_and_query: &str) -> (&str, &str) {
    let at = path_and_query.find('?').unwrap_or(path_and_query.len());
    path_and_query.split_at(at)
}

/// The normal form of a request target in origin form. Other targets (`*`, authority form) and
/// paths already normal come back borrowed.
#[must_use]
pub fn normalize(path_and_query: &str) -> Cow<'_, str> {
    let (path, query) = split(path_and_query);
    let suspicious = path.contains('%') || path.contains("/.");
    if !suspicious || !path.starts_with('/') {
        return Cow::Borrowed(path_and_query);
    }
    let decoded = decode_unreserved(path);
    let mut normal = resolve_dots(&decoded, |segment| segment);
    if normal == path {
        return Cow::Borrowed(path_and_query);
    }
    normal.push_str(query);
    Cow::Owned(normal)
}

/// How a generous server may read the path (without query) of `normal`, if it can be read
/// differently at all.
#[must_use]
pub fn lenient(normal: &str) -> Option<String> {
    let (path, _) = split(normal);
    let odd = |path: &str| {
        ["//", "\\", "%2F", "%5C", "#", "/.;", "/..;"]
            .iter()
            .any(|mark| path.contains(mark))
    };
    if !path.starts_with('/') || !odd(path) {
        return None;
    }
    let before = path.split_once('#').map_or(path, |(before, _)| before);
    let slashed = before
        .replace("%2F", "/")
        .replace("%5C", "/")
        .replace('\\', "/");
    let mut merged = String::with_capacity(slashed.len());
    for c in slashed.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    let without_parameters = |segment: &'_ str| match segment.split_once(';') {
        Some((dots @ ("." | ".."), _)) => dots.len(),
        _ => segment.len(),
    };
    let form = resolve_dots(&merged, |segment| {
        segment.split_at(without_parameters(segment)).0
    });
    (form != path).then_some(form)
}

fn unhex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// The byte that `%XY` at the start of `text` stands for.
fn escape(text: &[u8]) -> Option<u8> {
    match text {
        [b'%', high, low, ..] => Some(unhex(*high)? << 4 | unhex(*low)?),
        _ => None,
    }
}

/// RFC 3986 §2.3.
const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Decodes what need not be encoded and writes the rest in upper case. A `%` without two hex digits
/// stays.
fn decode_unreserved(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let taken = match escape(tail.as_bytes()) {
            Some(byte) if unreserved(byte) => {
                out.push(char::from(byte));
                3
            }
            Some(_) => {
                let (code, _) = tail.split_at(3);
                out.push_str(&code.to_ascii_uppercase());
                3
            }
            None => {
                out.push('%');
                1
            }
        };
        rest = tail.split_at(taken).1;
    }
    out.push_str(rest);
    out
}

/// RFC 3986 §5.2.4 for a path that begins with a slash; `read` says what a segment counts as.
fn resolve_dots<'p>(path: &'p str, read: impl Fn(&'p str) -> &'p str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match read(segment) {
            "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        if last {
            out.push('/');
        }
    }
    out
}

/// `text` with every valid `%XY` decoded; bytes that are then no UTF-8 become U+FFFD. Used for
/// query parameters, where `+` stays `+`.
#[must_use]
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(byte) = escape(rest) {
            out.push(byte);
            rest = rest.get(3..).unwrap_or_default();
        } else {
            out.push(first);
            rest = tail;
        }
    }
    Cow::Owned(match String::from_utf8(out) {
        Ok(text) => text,
        Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_form_table() {
        for (given, want) in [
            ("/", "/"),
            ("/a/b?x=/../%41", "/a/b?x=/../%41"),
            ("/a/../admin", "/admin"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/a/.%2E/admin?q", "/admin?q"),
            ("/%61dmin", "/admin"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/../../etc", "/etc"),
            ("/.hidden/..x/x..", "/.hidden/..x/x.."),
            ("/a%2fb", "/a%2Fb"),
            ("/%7Euser", "/~user"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/%zz/%4", "/%zz/%4"),
            ("/%C3%a9", "/%C3%A9"),
            ("/a//../b", "/a/b"),
            ("//a", "//a"),
            ("*", "*"),
            ("host:443", "host:443"),
            ("", ""),
            ("/?/..", "/?/.."),
        ] {
            assert_eq!(normalize(given), want, "{given}");
        }
    }

    #[test]
    fn ht_22_a_path_in_normal_form_is_forwarded_untouched() {
        for path in ["/", "/a/b.c/d?e=%2e", "/a%20b", "/.well-known/x", "//x"] {
            assert!(matches!(normalize(path), Cow::Borrowed(_)), "{path}");
        }
    }

    #[test]
    fn the_lenient_reading_shows_what_a_generous_server_may_see() {
        for (given, want) in [
            ("/public/..%2Fadmin", Some("/admin")),
            ("/public\\..\\admin", Some("/admin")),
            ("/public%5C..%5Cadmin", Some("/admin")),
            ("//admin", Some("/admin")),
            ("/a//b///c/", Some("/a/b/c/")),
            ("/public/..;x=1/admin", Some("/admin")),
            ("/admin#x", Some("/admin")),
            ("/a;v=1/b", None),
            ("/a/b?x=//", None),
            ("/a/b", None),
            ("*", None),
        ] {
            assert_eq!(lenient(given).as_deref(), want, "{given}");
        }
    }

    #[test]
    fn query_values_decode_once_and_never_fail() {
        for (given, want) in [
            ("a%20b", "a b"),
            ("a+b", "a+b"),
            ("%2520", "%20"),
            ("100%", "100%"),
            ("%e9", "\u{fffd}"),
            ("%C3%A9", "é"),
        ] {
            assert_eq!(decode(given), want, "{given}");
        }
    }

    proptest! {
        #[test]
        fn normal_form_is_stable_and_free_of_dot_segments(
            path in "/([a./%25E2e\\\\;?é]|%2e|%2F|\\.\\.){0,24}"
        ) {
            let normal = normalize(&path).into_owned();
            prop_assert_eq!(&*normalize(&normal), &*normal);
            let (head, _) = split(&normal);
            prop_assert!(head.starts_with('/'));
            prop_assert!(!head.split('/').any(|s| s == "." || s == ".."), "{}", head);
            if let Some(form) = lenient(&normal) {
                prop_assert!(form.starts_with('/'));
                prop_assert_eq!(lenient(&form), None, "{}", form);
            }
        }
    }
}
