//! `RouteConfiguration`: virtual hosts, matches, header changes.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ::http::HeaderName;
use outrigger_proto::{
    any::Any,
    envoy::{
        config::{
            core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction},
            route::v3::{
                FilterConfig, QueryParameterMatcher, Route as RouteMessage, RouteConfiguration,
                RouteMatch as MatchMessage, VirtualHost as HostMessage,
                query_parameter_matcher::QueryParameterMatchSpecifier as Query,
                route_action::RequestMirrorPolicy, route_match::PathSpecifier,
                virtual_host::TlsRequirementType,
            },
        },
        extensions::filters::http::{
            fault::v3::HttpFault, local_ratelimit::v3::LocalRateLimit as RateLimitMessage,
            rbac::v3::RbacPerRoute,
        },
    },
    type_url,
};

use super::{
    action,
    at::At,
    http, matcher, rbac,
    value::{Decoded, enumerated, header_name, header_value, required, runtime_fraction, unpack},
};
use crate::config::{
    RouteConfig, RouteConfigName,
    route::{
        AppendAction, Domain, HeaderAdd, HeaderMods, PathMatch, QueryMatch, Route, RouteFilters,
        RouteMatch, RouteRateLimit, VirtualHost,
    },
};

/// Headers that carry the message's framing or its target; changing them breaks the message.
const UNTOUCHABLE: [&str; 7] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "keep-alive",
];

pub(super) fn config(at: At<'_>, value: &RouteConfiguration) -> Decoded<RouteConfig> {
    at.field("vhds")
        .refuse_if(value.vhds.is_some(), "virtual hosts have to be listed")?;
    at.field("cluster_specifier_plugins").refuse_if(
        !value.cluster_specifier_plugins.is_empty(),
        "no plugins are known",
    )?;
    at.ignores(
        "most_specific_header_mutations_wins",
        value.most_specific_header_mutations_wins,
    );
    let filters = filters(at, &value.typed_per_filter_config)?;
    let shared = Shared {
        filters,
        mirrors: &value.request_mirror_policies,
        max_body: value.max_direct_response_body_size_bytes.unwrap_or(4096),
    };
    let mut virtual_hosts = Vec::with_capacity(value.virtual_hosts.len());
    let mut domains = HashSet::new();
    for (i, host) in value.virtual_hosts.iter().enumerate() {
        let at = at.item("virtual_hosts", i);
        for domain in &host.domains {
            let again = !domains.insert(domain.to_ascii_lowercase());
            at.field("domains").refuse_if(
                again,
                &format!("{domain:?} stands twice in this configuration"),
            )?;
        }
        virtual_hosts.push(virtual_host(at, host, &shared)?);
    }
    Ok(RouteConfig {
        name: RouteConfigName::from(value.name.as_str()),
        virtual_hosts,
        headers: mods(
            at,
            (
                &value.request_headers_to_add,
                &value.request_headers_to_remove,
            ),
            (
                &value.response_headers_to_add,
                &value.response_headers_to_remove,
            ),
        )?,
        ignore_port_in_host: value.ignore_port_in_host_matching,
    })
}

/// What routes inherit from the whole configuration or from their host.
pub(super) struct Shared<'a> {
    filters: RouteFilters,
    pub(super) mirrors: &'a [RequestMirrorPolicy],
    /// Bytes of the body of a direct response.
    pub(super) max_body: u32,
}

fn virtual_host(at: At<'_>, value: &HostMessage, shared: &Shared<'_>) -> Decoded<VirtualHost> {
    required(at.field("name"), &value.name)?;
    let at_tls = at.field("require_tls");
    match enumerated(at_tls, value.require_tls)? {
        TlsRequirementType::None => {}
        TlsRequirementType::ExternalOnly | TlsRequirementType::All => {
            return Err(at_tls.bad("nobody is redirected to https"));
        }
    }
    at.field("hedge_policy")
        .refuse_if(value.hedge_policy.is_some(), "requests are not hedged")?;
    at.ignores("rate_limits", !value.rate_limits.is_empty());
    at.ignores(
        "include_attempt_count_in_response",
        value.include_attempt_count_in_response,
    );
    at.field("domains")
        .refuse_if(value.domains.is_empty(), "needs at least one")?;
    let own = filters(at, &value.typed_per_filter_config)?;
    let inner = Shared {
        filters: RouteFilters::default(),
        mirrors: if value.request_mirror_policies.is_empty() {
            shared.mirrors
        } else {
            &value.request_mirror_policies
        },
        max_body: shared.max_body,
    };
    let domains = value.domains.iter().enumerate();
    let routes = value.routes.iter().enumerate();
    let retry = value.retry_policy.as_ref();
    let retry = retry.map(|policy| action::retry(at.field("retry_policy"), policy));
    Ok(VirtualHost {
        name: Arc::from(value.name.as_str()),
        domains: domains
            .map(|(i, text)| domain(at.item("domains", i), text))
            .collect::<Decoded<_>>()?,
        routes: routes
            .map(|(i, one)| {
                let name = if one.name.is_empty() {
                    format!("{}/{i}", value.name)
                } else {
                    one.name.clone()
                };
                route(at.item("routes", i), one, &name, &inner).map(Arc::new)
            })
            .collect::<Decoded<_>>()?,
        headers: mods(
            at,
            (
                &value.request_headers_to_add,
                &value.request_headers_to_remove,
            ),
            (
                &value.response_headers_to_add,
                &value.response_headers_to_remove,
            ),
        )?,
        retry: retry.transpose()?.map(Arc::new),
        filters: RouteFilters {
            fault: own.fault.or_else(|| shared.filters.fault.clone()),
            rbac: own.rbac.or_else(|| shared.filters.rbac.clone()),
            rate_limit: own.rate_limit.or_else(|| shared.filters.rate_limit.clone()),
        },
        attempt_count_header: value.include_request_attempt_count,
    })
}

fn domain(at: At<'_>, text: &str) -> Decoded<Domain> {
    let text = required(at, text)?.to_ascii_lowercase();
    let star = |rest: &str| rest.contains('*');
    let domain = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Domain::Any,
        (Some(rest), _) if !star(rest) => Domain::Suffix(rest.into()),
        (None, Some(rest)) if !star(rest) => Domain::Prefix(rest.into()),
        (None, None) if !star(&text) => Domain::Exact(text.into()),
        _ => return Err(at.bad("has a star that is neither first nor last")),
    };
    Ok(domain)
}

fn route(at: At<'_>, value: &RouteMessage, name: &str, shared: &Shared<'_>) -> Decoded<Route> {
    at.ignores("tracing", value.tracing.is_some());
    at.ignores("decorator", value.decorator.is_some());
    let at_match = at.field("match");
    let conditions = value.r#match.as_ref();
    let conditions = conditions.ok_or_else(|| at_match.bad("is required"))?;
    Ok(Route {
        name: Arc::from(name),
        matcher: conditions_of(at_match, conditions)?,
        action: action::action(at, value, shared)?,
        headers: mods(
            at,
            (
                &value.request_headers_to_add,
                &value.request_headers_to_remove,
            ),
            (
                &value.response_headers_to_add,
                &value.response_headers_to_remove,
            ),
        )?,
        filters: filters(at, &value.typed_per_filter_config)?,
    })
}

/// A condition that is not understood refuses the route: without it the route would catch more than
/// it was written for.
fn conditions_of(at: At<'_>, value: &MatchMessage) -> Decoded<RouteMatch> {
    let why = "is not compared";
    at.field("tls_context")
        .refuse_if(value.tls_context.is_some(), why)?;
    at.field("dynamic_metadata")
        .refuse_if(!value.dynamic_metadata.is_empty(), why)?;
    at.field("filter_state")
        .refuse_if(!value.filter_state.is_empty(), why)?;
    at.field("cookies")
        .refuse_if(!value.cookies.is_empty(), why)?;
    let queries = value.query_parameters.iter().enumerate();
    let fraction = value.runtime_fraction.as_ref();
    let fraction = fraction.map(|inner| runtime_fraction(at.field("runtime_fraction"), inner));
    Ok(RouteMatch {
        path: path(at, value)?,
        headers: matcher::headers(at, "headers", &value.headers)?,
        query: queries
            .map(|(i, one)| query(at.item("query_parameters", i), one))
            .collect::<Decoded<_>>()?,
        grpc_only: value.grpc.is_some(),
        fraction: fraction.transpose()?,
    })
}

fn path(at: At<'_>, value: &MatchMessage) -> Decoded<PathMatch> {
    let ignore_case = value.case_sensitive == Some(false);
    Ok(match &value.path_specifier {
        Some(PathSpecifier::Prefix(text)) => PathMatch::Prefix {
            text: text.as_str().into(),
            ignore_case,
        },
        Some(PathSpecifier::Path(text)) => PathMatch::Exact {
            text: required(at.field("path"), text)?.into(),
            ignore_case,
        },
        Some(PathSpecifier::PathSeparatedPrefix(text)) => {
            let at = at.field("path_separated_prefix");
            let plain = text.starts_with('/') && !text.contains(['?', '#']);
            at.refuse_if(!plain || text.ends_with('/'), "must be /like/this")?;
            PathMatch::ElementPrefix {
                text: text.as_str().into(),
                ignore_case,
            }
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            PathMatch::Regex(matcher::whole_regex(at.field("safe_regex"), regex)?)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            return Err(at.field("path_match_policy").bad("no policies are known"));
        }
        None => return Err(at.bad("needs a path specifier")),
    })
}

fn query(at: At<'_>, value: &QueryParameterMatcher) -> Decoded<QueryMatch> {
    let name = required(at.field("name"), &value.name)?.into();
    let value = match &value.query_parameter_match_specifier {
        None | Some(Query::PresentMatch(true)) => None,
        Some(Query::PresentMatch(false)) => {
            let at = at.field("present_match");
            return Err(at.bad("absence is not compared"));
        }
        Some(Query::StringMatch(inner)) => Some(matcher::string(at.field("string_match"), inner)?),
    };
    Ok(QueryMatch { name, value })
}

type Changes<'a> = (&'a [HeaderValueOption], &'a [String]);

/// Header changes of one level.
pub(super) fn mods(at: At<'_>, request: Changes<'_>, response: Changes<'_>) -> Decoded<HeaderMods> {
    Ok(HeaderMods {
        request_add: additions(at, "request_headers_to_add", request.0)?,
        request_remove: removals(at, "request_headers_to_remove", request.1)?,
        response_add: additions(at, "response_headers_to_add", response.0)?,
        response_remove: removals(at, "response_headers_to_remove", response.1)?,
    })
}

fn removals(at: At<'_>, field: &str, names: &[String]) -> Decoded<Vec<HeaderName>> {
    let each = names.iter().enumerate();
    each.map(|(i, name)| changeable(at.item(field, i), name))
        .collect()
}

fn changeable(at: At<'_>, name: &str) -> Decoded<HeaderName> {
    let name = header_name(at, name)?;
    let fixed = UNTOUCHABLE.contains(&name.as_str());
    at.refuse_if(fixed, &format!("{name} is not to be changed here"))?;
    Ok(name)
}

fn additions(at: At<'_>, field: &str, all: &[HeaderValueOption]) -> Decoded<Vec<HeaderAdd>> {
    let mut out = Vec::with_capacity(all.len());
    for (i, option) in all.iter().enumerate() {
        let at = at.item(field, i);
        let at_header = at.field("header");
        let header = option.header.as_ref();
        let header = header.ok_or_else(|| at_header.bad("is required"))?;
        let value = if header.raw_value.is_empty() {
            literal(at_header.field("value"), &header.value)?
        } else {
            header.raw_value.clone()
        };
        let name = changeable(at_header.field("key"), &header.key)?;
        if value.is_empty() && !option.keep_empty_value {
            continue;
        }
        out.push(HeaderAdd {
            name,
            value: header_value(at_header.field("value"), &value)?,
            how: append(at, option)?,
        });
    }
    Ok(out)
}

fn append(at: At<'_>, option: &HeaderValueOption) -> Decoded<AppendAction> {
    if let Some(append) = option.append {
        // The older spelling.
        return Ok(if append {
            AppendAction::AppendOrAdd
        } else {
            AppendAction::OverwriteOrAdd
        });
    }
    Ok(
        match enumerated(at.field("append_action"), option.append_action)? {
            HeaderAppendAction::AppendIfExistsOrAdd => AppendAction::AppendOrAdd,
            HeaderAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
            HeaderAppendAction::OverwriteIfExistsOrAdd => AppendAction::OverwriteOrAdd,
            HeaderAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
        },
    )
}

/// Envoy writes a percent sign as `%%`; a single one begins a variable, and there are none here.
fn literal(at: At<'_>, text: &str) -> Decoded<Vec<u8>> {
    let plain = text.replace("%%", "");
    at.refuse_if(
        plain.contains('%'),
        "%VARIABLES% are not replaced; write %% for a percent sign",
    )?;
    Ok(text.replace("%%", "%").into_bytes())
}

/// Per-route settings of HTTP filters.
fn filters(at: At<'_>, all: &BTreeMap<String, Any>) -> Decoded<RouteFilters> {
    let mut out = RouteFilters::default();
    for (name, any) in all {
        let at = at.key("typed_per_filter_config", name);
        if any.type_url == type_url::ROUTE_FILTER_CONFIG {
            let wrapper: FilterConfig = unpack(at, any)?;
            wrapped(at, &wrapper, name, &mut out)?;
        } else if !filter(at, any, &mut out)? {
            return Err(at.bad(format!("{:?} is not a known filter", any.type_url)));
        }
    }
    Ok(out)
}

fn wrapped(at: At<'_>, value: &FilterConfig, name: &str, out: &mut RouteFilters) -> Decoded<()> {
    if value.disabled {
        // There is no type to go by: filters are known by what they are called by everybody.
        if name.contains("rbac") {
            out.rbac = Some(None);
        } else if name.contains("ratelimit") {
            out.rate_limit = Some(None);
        } else {
            at.ignores("disabled", true);
        }
        return Ok(());
    }
    let at = at.field("config");
    match &value.config {
        Some(any) => {
            let known = filter(at, any, out)?;
            if !known && value.is_optional {
                at.ignored();
            } else if !known {
                return Err(at.bad(format!("{:?} is not a known filter", any.type_url)));
            }
            Ok(())
        }
        None => Ok(()),
    }
}

fn filter(at: At<'_>, any: &Any, out: &mut RouteFilters) -> Decoded<bool> {
    match any.type_url.as_str() {
        type_url::FAULT => {
            let inner: HttpFault = unpack(at, any)?;
            out.fault = Some(Arc::new(http::fault(at, &inner)?));
        }
        type_url::HTTP_RBAC_PER_ROUTE => {
            let inner: RbacPerRoute = unpack(at, any)?;
            let own = inner.rbac.as_ref();
            let own = own
                .map(|own| rbac::http(at.field("rbac"), own))
                .transpose()?;
            out.rbac = Some(own.map(Arc::new));
        }
        type_url::LOCAL_RATE_LIMIT => {
            let inner: RateLimitMessage = unpack(at, any)?;
            let own = http::rate_limit(at, &inner)?.map(|limit| RouteRateLimit {
                name: inner.stat_prefix.as_str().into(),
                limit,
            });
            out.rate_limit = Some(own.map(Arc::new));
        }
        _ if super::is_noop(Some(any)) => at.ignored(),
        _ => return Ok(false),
    }
    Ok(true)
}
