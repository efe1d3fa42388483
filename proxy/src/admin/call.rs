//! A question and its answer, and the table of pages between them.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;

use super::Admin;

/// What a page makes of a question.
type Answers = fn(&Admin, &Call<'_>) -> Answer;

/// One page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub path: &'static str,
    /// Names of its query parameters. Others are refused: a filter that is spelled wrong must not
    /// pass for one that matches everything.
    pub parameters: &'static [&'static str],
    /// Whether GET is answered.
    pub shows: bool,
    /// Whether POST is.
    pub changes: bool,
    pub help: &'static str,
    answer: Answers,
}

impl Page {
    /// A page to look at.
    pub(super) const fn shows(
        path: &'static str,
        parameters: &'static [&'static str],
        help: &'static str,
        answer: Answers,
    ) -> Self {
        Self {
            path,
            parameters,
            shows: true,
            changes: false,
            help,
            answer,
        }
    }

    /// A page that changes something.
    pub(super) const fn changes(
        path: &'static str,
        parameters: &'static [&'static str],
        help: &'static str,
        answer: Answers,
    ) -> Self {
        Self {
            shows: false,
            changes: true,
            ..Self::shows(path, parameters, help, answer)
        }
    }

    /// A page that shows when asked and changes when told.
    pub(super) const fn both(
        path: &'static str,
        parameters: &'static [&'static str],
        help: &'static str,
        answer: Answers,
    ) -> Self {
        Self {
            changes: true,
            ..Self::shows(path, parameters, help, answer)
        }
    }
}

/// A question.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) pages: &'static [Page],
    pub(super) method: &'a Method,
    parameters: Vec<(String, String)>,
}

impl Call<'_> {
    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.parameters.iter();
        all.find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is there and not switched off.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value, "false" | "off" | "0"))
    }

    /// A regular expression given as a parameter.
    pub(super) fn regex(&self, name: &str) -> Result<Option<regex::Regex>, Answer> {
        let Some(pattern) = self.get(name) else {
            return Ok(None);
        };
        regex::Regex::new(pattern)
            .map(Some)
            .map_err(|error| Answer::refused(&format!("{name}: {error}")))
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) allow: Option<&'static str>,
    pub(super) body: String,
}

impl Answer {
    pub(super) const TEXT: &'static str = "text/plain; charset=utf-8";

    pub(super) fn new(status: StatusCode, kind: &'static str, body: String) -> Self {
        Self {
            status,
            kind,
            allow: None,
            body,
        }
    }

    pub(super) fn text(body: impl Into<String>) -> Self {
        Self::new(StatusCode::OK, Self::TEXT, body.into())
    }

    /// JSON to be read by people too.
    pub(super) fn json(value: &serde_json::Value) -> Self {
        Self::new(StatusCode::OK, "application/json", format!("{value:#}\n"))
    }

    /// The question is wrong.
    pub(super) fn refused(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Self::TEXT, format!("{why}\n"))
    }

    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, max-age=0"),
        );
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// Answers a question out of `pages`.
pub(super) fn answer<B>(
    admin: &Admin,
    pages: &'static [Page],
    request: &http::Request<B>,
) -> Answer {
    let path = request.uri().path();
    let Some(page) = pages.iter().find(|page| page.path == path) else {
        let known: Vec<_> = pages.iter().map(|page| page.path).collect();
        let body = format!("no page {path:?} here; there are {}\n", known.join(" "));
        return Answer::new(StatusCode::NOT_FOUND, Answer::TEXT, body);
    };
    if let Some(refusal) = refused_method(page, request) {
        return refusal;
    }
    let call = Call {
        pages,
        method: request.method(),
        parameters: parameters(request.uri().query().unwrap_or_default()),
    };
    let mut named = call.parameters.iter().map(|(name, _)| name.as_str());
    if let Some(stranger) = named.find(|name| !page.parameters.contains(name)) {
        let known = page.parameters.join(", ");
        return Answer::refused(&format!(
            "{path} has no parameter {stranger:?}; it has: {known}"
        ));
    }
    (page.answer)(admin, &call)
}

fn refused_method<B>(page: &Page, request: &http::Request<B>) -> Option<Answer> {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let tells = request.method() == Method::POST;
    if !(looks && page.shows || tells && page.changes) {
        let mut no = Answer::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Answer::TEXT,
            format!(
                "{}: {} is not for {}\n",
                page.path,
                page.help,
                request.method()
            ),
        );
        no.allow = Some(match (page.shows, page.changes) {
            (true, false) => "GET, HEAD",
            (false, _) => "POST",
            (true, true) => "GET, HEAD, POST",
        });
        return Some(no);
    }
    // A page in somebody's browser can send a POST to a loopback port (through `kubectl
    // port-forward`, say), but cannot leave this header out (Fetch, "Origin header").
    (tells && request.headers().contains_key(header::ORIGIN)).then(|| {
        Answer::new(
            StatusCode::FORBIDDEN,
            Answer::TEXT,
            "not from a browser\n".to_owned(),
        )
    })
}

/// A query string, decoded.
fn parameters(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

/// `%xx` decoded; what is none stays as it is. `+` stays too: it is an operator of the patterns
/// that are given here.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = after
            .split_at_checked(2)
            .filter(|_| *first == b'%')
            .and_then(|(digits, left)| Some((hex(digits)?, left)));
        let (byte, left) = escape.unwrap_or((*first, after));
        out.push(byte);
        rest = left;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The list of pages.
pub(super) fn help(_: &Admin, call: &Call<'_>) -> Answer {
    let lines = call.pages.iter().map(|page| {
        let method = if page.shows { "GET" } else { "POST" };
        format!("{method:<5}{:<20}{}\n", page.path, page.help)
    });
    Answer::text(lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_broken_escapes_stay() {
        let all = parameters("a=b%2Cc&&flag&x=%zz%4&r=a.+b&%C3%A4=%ff");
        let want = [
            ("a", "b,c"),
            ("flag", ""),
            ("x", "%zz%4"),
            ("r", "a.+b"),
            ("ä", "\u{fffd}"),
        ];
        let want = want.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(all, want);
    }
}
