//! What filters of routes do to requests and answers.

use outrigger_proto::envoy::{
    config::{
        core::v3::{
            HeaderValue, HeaderValueOption, RuntimeFractionalPercent,
            header_value_option::HeaderAppendAction,
        },
        route::v3::{
            RedirectAction,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route_action::RequestMirrorPolicy,
        },
    },
    r#type::{
        matcher::v3::RegexMatchAndSubstitute,
        v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
};

use super::matching::bare;
use crate::{
    model::{self, HeaderModifier, Mirror, PathModifier, Redirect},
    translate::text::regex,
};

/// Headers to set and add, and headers to remove.
#[derive(Debug, Default)]
pub(super) struct HeaderChanges {
    pub(super) add: Vec<HeaderValueOption>,
    pub(super) remove: Vec<String>,
}

impl HeaderChanges {
    pub(super) fn of(modifier: &HeaderModifier) -> Self {
        let option = |header: &model::HeaderValue, action: HeaderAppendAction| HeaderValueOption {
            header: Some(HeaderValue {
                key: header.name.clone(),
                value: escape(&header.value),
                ..HeaderValue::default()
            }),
            append_action: action.into(),
            keep_empty_value: true,
            ..HeaderValueOption::default()
        };
        let set = modifier.set.iter();
        let set = set.map(|h| option(h, HeaderAppendAction::OverwriteIfExistsOrAdd));
        let add = modifier.add.iter();
        let add = add.map(|h| option(h, HeaderAppendAction::AppendIfExistsOrAdd));
        Self {
            add: set.chain(add).collect(),
            remove: modifier.remove.clone(),
        }
    }
}

/// A `%` begins a command in Envoy's header values; the Gateway API knows none.
fn escape(value: &str) -> String {
    value.replace('%', "%%")
}

/// A new path in place of a matched prefix: for Envoy either a plain prefix, or, where the new one
/// is the root, a pattern that does not leave two slashes.
#[derive(Debug)]
pub(super) enum NewPath {
    Prefix(String),
    Pattern(RegexMatchAndSubstitute),
}

impl NewPath {
    /// `matched` is the prefix that the rule matched, if it matched one.
    pub(super) fn of(modifier: &PathModifier, matched: Option<&str>) -> Self {
        match modifier {
            PathModifier::ReplaceFullPath { value } => {
                let path = if value.is_empty() { "/" } else { value };
                Self::pattern("^[^?]*", path)
            }
            PathModifier::ReplacePrefixMatch { value } => {
                let matched = bare(matched.unwrap_or("/"));
                match (matched, bare(value)) {
                    ("", "") => Self::Prefix("/".to_owned()),
                    ("", new) => Self::Prefix(format!("{new}/")),
                    (old, "") => Self::pattern(&format!("^{}/?", regex::escape(old)), "/"),
                    (_, new) => Self::Prefix(new.to_owned()),
                }
            }
        }
    }

    fn pattern(pattern: &str, substitution: &str) -> Self {
        Self::Pattern(RegexMatchAndSubstitute {
            pattern: Some(regex(pattern)),
            // A backslash begins a group's number.
            substitution: substitution.replace('\\', "\\\\"),
        })
    }
}

pub(super) fn redirect(own: &Redirect, matched: Option<&str>) -> RedirectAction {
    let path = own.path.as_ref().map(|path| match path {
        PathModifier::ReplaceFullPath { value } => {
            let path = if value.is_empty() { "/" } else { value };
            PathRewriteSpecifier::PathRedirect(path.to_owned())
        }
        PathModifier::ReplacePrefixMatch { .. } => match NewPath::of(path, matched) {
            NewPath::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            NewPath::Pattern(pattern) => PathRewriteSpecifier::RegexRewrite(pattern),
        },
    });
    let code = match own.status_code {
        Some(301) => RedirectResponseCode::MovedPermanently,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let scheme = own.scheme.clone();
    RedirectAction {
        host_redirect: own.hostname.clone().unwrap_or_default(),
        path_rewrite_specifier: path,
        response_code: code.into(),
        scheme_rewrite_specifier: scheme.map(SchemeRewriteSpecifier::SchemeRedirect),
        port_redirect: own.port.map(u32::from).unwrap_or_default(),
        ..RedirectAction::default()
    }
}

pub(super) fn mirror(own: &Mirror, cluster: String) -> RequestMirrorPolicy {
    let millionths = match (own.percent, own.fraction) {
        (Some(share), _) => share.millionths,
        (None, Some(part)) => {
            let share = u64::from(part.numerator) * 1_000_000 / u64::from(part.denominator.max(1));
            u32::try_from(share).unwrap_or(1_000_000)
        }
        (None, None) => 1_000_000,
    };
    RequestMirrorPolicy {
        cluster,
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(fraction(millionths)),
            runtime_key: String::new(),
        }),
        disable_shadow_host_suffix_append: true,
        ..RequestMirrorPolicy::default()
    }
}

/// Parts of a million.
pub(in crate::translate) fn fraction(millionths: u32) -> FractionalPercent {
    FractionalPercent {
        numerator: millionths,
        denominator: DenominatorType::Million.into(),
    }
}
