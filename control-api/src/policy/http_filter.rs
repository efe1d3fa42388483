//! What an `HTTPRoute` does to a request or response besides forwarding it.

use serde::{Deserialize, Serialize};

use super::{
    BackendRef, Faults,
    matching::{self, MAX_VALUE, header_name},
    units::Percent,
};

/// Gateway API `HTTPRouteFilterType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterType {
    /// [`Filter::request_header_modifier`].
    RequestHeaderModifier,
    /// [`Filter::response_header_modifier`].
    ResponseHeaderModifier,
    /// [`Filter::request_mirror`].
    RequestMirror,
    /// [`Filter::request_redirect`].
    RequestRedirect,
    /// [`Filter::url_rewrite`].
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
}

/// Gateway API `HTTPRouteFilter`: the field that `type` names, and no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Which of the following it is.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// Changes to the request's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the response's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// A copy that goes elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<Mirror>,
    /// An answer that sends the caller elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<Redirect>,
    /// Changes to host and path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
}

/// Gateway API `HTTPHeaderFilter`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Takes the place of what was there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderValue>,
    /// Comes after what was there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderValue>,
    /// Is taken away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// Gateway API `HTTPHeader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValue {
    /// In any case.
    pub name: String,
    /// What it says.
    pub value: String,
}

/// Gateway API `HTTPRequestMirrorFilter`. Without `percent` and `fraction` every request is copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// Where the copy goes; nobody waits for its answer.
    pub backend_ref: BackendRef,
    /// Share of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
    /// Share of the requests, finer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// Gateway API `Fraction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: u32,
    /// Absent: 100.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

const fn hundred() -> u32 {
    100
}

impl Fraction {
    /// In millionths, as finely as Envoy counts.
    #[must_use]
    pub fn millionths(self) -> u32 {
        let denominator = u64::from(self.denominator.max(1));
        let millionths = u64::from(self.numerator) * 1_000_000 / denominator;
        u32::try_from(millionths.min(1_000_000)).unwrap_or(1_000_000)
    }
}

/// Gateway API `HTTPRequestRedirectFilter`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redirect {
    /// `http` or `https`; absent: as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Absent: as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Absent: as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// Absent: the scheme's own if there is one, else the Service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308; absent: 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// Gateway API `HTTPURLRewriteFilter`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// Takes the place of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Takes the place of the path, or of its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// Gateway API `HTTPPathModifierType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathModifierType {
    /// [`PathModifier::replace_full_path`].
    ReplaceFullPath,
    /// [`PathModifier::replace_prefix_match`].
    ReplacePrefixMatch,
}

/// Gateway API `HTTPPathModifier`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which of the following it is.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// The new path; the query stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// What the matched prefix turns into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

/// Gateway API: at most so many headers in each list.
const MAX_HEADERS: usize = 16;

impl Filter {
    /// `backend`: whether it stands at a backend, where less is possible.
    pub(super) fn check(&self, faults: &mut Faults, backend: bool) {
        let parts = [
            (FilterType::RequestHeaderModifier, "requestHeaderModifier"),
            (FilterType::ResponseHeaderModifier, "responseHeaderModifier"),
            (FilterType::RequestMirror, "requestMirror"),
            (FilterType::RequestRedirect, "requestRedirect"),
            (FilterType::UrlRewrite, "urlRewrite"),
        ];
        let given = [
            self.request_header_modifier.is_some(),
            self.response_header_modifier.is_some(),
            self.request_mirror.is_some(),
            self.request_redirect.is_some(),
            self.url_rewrite.is_some(),
        ];
        for ((kind, field), given) in parts.into_iter().zip(given) {
            let own = kind == self.kind;
            faults.add_if(own && !given, field, "is required for this type");
            faults.add_if(!own && given, field, "does not go with this type");
        }
        let possible = !matches!(
            self.kind,
            FilterType::RequestMirror | FilterType::RequestRedirect
        );
        faults.add_if(backend && !possible, "type", "is not possible at a backend");
        let modifiers = [
            ("requestHeaderModifier", &self.request_header_modifier),
            ("responseHeaderModifier", &self.response_header_modifier),
        ];
        for (field, modifier) in modifiers {
            faults.some(field, modifier.as_ref(), |faults, inner| {
                inner.check(faults)
            });
        }
        faults.some(
            "requestMirror",
            self.request_mirror.as_ref(),
            |faults, inner| {
                inner.check(faults);
            },
        );
        faults.some(
            "requestRedirect",
            self.request_redirect.as_ref(),
            |faults, inner| {
                inner.check(faults);
            },
        );
        faults.some("urlRewrite", self.url_rewrite.as_ref(), |faults, inner| {
            let path = backend && inner.path.is_some();
            faults.add_if(path, "path", "is not possible at a backend");
            inner.check(faults);
        });
    }

    /// The path change it makes.
    #[must_use]
    pub fn path(&self) -> Option<&PathModifier> {
        let redirect = self
            .request_redirect
            .as_ref()
            .and_then(|inner| inner.path.as_ref());
        redirect.or_else(|| self.url_rewrite.as_ref()?.path.as_ref())
    }
}

impl HeaderModifier {
    pub(super) fn check(&self, faults: &mut Faults) {
        let empty = self.set.is_empty() && self.add.is_empty() && self.remove.is_empty();
        faults.add_if(empty, "", "must set, add or remove something");
        for (field, all) in [("set", &self.set), ("add", &self.add)] {
            faults.add_if(
                all.len() > MAX_HEADERS,
                field,
                "must have at most 16 entries",
            );
            faults.each(field, all, |faults, header| {
                changeable(faults, "name", &header.name);
                let value = http::HeaderValue::try_from(&header.value);
                let bad = value.is_err() || header.value.len() > MAX_VALUE;
                faults.add_if(bad, "value", "must be the value of a header");
            });
        }
        let many = self.remove.len() > MAX_HEADERS;
        faults.add_if(many, "remove", "must have at most 16 entries");
        faults.each("remove", &self.remove, |faults, name| {
            changeable(faults, "", name)
        });
        let names = self.set.iter().chain(&self.add).map(|header| &header.name);
        let names: Vec<_> = names.chain(&self.remove).collect();
        for (i, name) in names.iter().enumerate() {
            let again = names
                .iter()
                .take(i)
                .any(|other| other.eq_ignore_ascii_case(name));
            faults.add_if(again, "", &format!("{name:?} is named more than once"));
        }
    }
}

/// Headers that routing and framing rest on are not for policy to change.
fn changeable(faults: &mut Faults, field: &str, name: &str) {
    header_name(faults, field, name);
    let host = name.eq_ignore_ascii_case("host");
    faults.add_if(host, field, "the host is changed with a URLRewrite filter");
    const FRAMING: [&str; 5] = [
        "connection",
        "content-length",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let framing = FRAMING.iter().any(|own| name.eq_ignore_ascii_case(own));
    faults.add_if(
        framing,
        field,
        "belongs to the connection, not to the message",
    );
}

impl Mirror {
    pub(super) fn check(&self, faults: &mut Faults) {
        faults.within("backendRef", |faults| {
            self.backend_ref.check(faults);
            let odd = self.backend_ref.weight.is_some() || !self.backend_ref.filters.is_empty();
            faults.add_if(odd, "", "has neither weight nor filters in a mirror");
        });
        let both = self.percent.is_some() && self.fraction.is_some();
        faults.add_if(both, "fraction", "excludes percent");
        faults.some("fraction", self.fraction.as_ref(), |faults, fraction| {
            faults.add_if(
                fraction.denominator == 0,
                "denominator",
                "must be 1 or more",
            );
            let above = fraction.numerator > fraction.denominator;
            faults.add_if(above, "numerator", "must be at most the denominator");
        });
    }
}

impl Redirect {
    pub(super) fn check(&self, faults: &mut Faults) {
        let scheme = self.scheme.as_deref();
        let bad = scheme.is_some_and(|scheme| !matches!(scheme, "http" | "https"));
        faults.add_if(bad, "scheme", "must be http or https");
        hostname(faults, self.hostname.as_deref());
        faults.some("path", self.path.as_ref(), |faults, path| {
            path.check(faults)
        });
        faults.add_if(self.port == Some(0), "port", "must be 1 to 65535");
        let code = self.status_code.unwrap_or(302);
        let known = matches!(code, 301 | 302 | 303 | 307 | 308);
        faults.add_if(!known, "statusCode", "must be 301, 302, 303, 307 or 308");
    }
}

impl UrlRewrite {
    pub(super) fn check(&self, faults: &mut Faults) {
        let empty = self.hostname.is_none() && self.path.is_none();
        faults.add_if(empty, "", "must rewrite hostname or path");
        hostname(faults, self.hostname.as_deref());
        faults.some("path", self.path.as_ref(), |faults, path| {
            path.check(faults)
        });
    }
}

/// Gateway API `PreciseHostname`.
fn hostname(faults: &mut Faults, name: Option<&str>) {
    const MAX_HOSTNAME: usize = 253;
    let spelt = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
    let bad = name.is_some_and(|name| {
        name.is_empty() || name.len() > MAX_HOSTNAME || !name.bytes().all(spelt)
    });
    faults.add_if(bad, "hostname", "must be the name of a host, in lower case");
}

impl PathModifier {
    fn check(&self, faults: &mut Faults) {
        let full = self.kind == PathModifierType::ReplaceFullPath;
        let parts = [
            ("replaceFullPath", &self.replace_full_path, full),
            ("replacePrefixMatch", &self.replace_prefix_match, !full),
        ];
        for (field, value, own) in parts {
            match value.as_deref() {
                None => faults.add_if(own, field, "is required for this type"),
                Some(_) if !own => faults.add(field, "does not go with this type"),
                // An empty replacement takes the prefix away.
                Some("") => {}
                Some(value) => matching::path(faults, field, value),
            }
        }
    }
}
