//! Authorization rules. Whatever narrows a rule and is not understood refuses the resource: a rule
//! that is read too wide lets strangers in.

use std::sync::Arc;

use outrigger_proto::envoy::{
    config::rbac::v3::{
        Permission, Policy, Principal, Rbac, permission::Rule as R, principal::Identifier as I,
        rbac::Action,
    },
    extensions::filters::{http::rbac::v3 as http_filter, network::rbac::v3 as network_filter},
    r#type::{matcher::v3::filter_state_matcher, v3::Int32Range},
};

use super::{
    at::At,
    matcher,
    value::{self, Decoded, enumerated},
};
use crate::config::{matcher::StringMatch, rbac};

/// Filter state in which Istio's sidecars keep the peer's identity.
const ISTIO_PEER: &str = "io.istio.peer_principal";
const NO_MATCHER: &str = "only rules are understood";

pub(super) fn http(at: At<'_>, filter: &http_filter::Rbac) -> Decoded<rbac::Rbac> {
    let set = filter.matcher.is_some() || filter.shadow_matcher.is_some();
    at.field("matcher").refuse_if(set, NO_MATCHER)?;
    Ok(rbac::Rbac {
        rules: rules(at.field("rules"), filter.rules.as_ref())?,
        shadow: rules(at.field("shadow_rules"), filter.shadow_rules.as_ref())?,
    })
}

pub(super) fn network(at: At<'_>, filter: &network_filter::Rbac) -> Decoded<rbac::Rbac> {
    let set = filter.matcher.is_some() || filter.shadow_matcher.is_some();
    at.field("matcher").refuse_if(set, NO_MATCHER)?;
    at.ignores("enforcement_type", filter.enforcement_type != 0);
    Ok(rbac::Rbac {
        rules: rules(at.field("rules"), filter.rules.as_ref())?,
        shadow: rules(at.field("shadow_rules"), filter.shadow_rules.as_ref())?,
    })
}

fn rules(at: At<'_>, value: Option<&Rbac>) -> Decoded<Option<rbac::Rules>> {
    let Some(value) = value else { return Ok(None) };
    at.ignores(
        "audit_logging_options",
        value.audit_logging_options.is_some(),
    );
    let action = match enumerated(at.field("action"), value.action)? {
        Action::Allow => rbac::RbacAction::Allow,
        Action::Deny => rbac::RbacAction::Deny,
        Action::Log => rbac::RbacAction::Log,
    };
    // The map is ordered by name already.
    let each = value.policies.iter();
    let policies = each
        .map(|(name, inner)| policy(at.key("policies", name), name, inner))
        .collect::<Decoded<_>>()?;
    Ok(Some(rbac::Rules { action, policies }))
}

fn policy(at: At<'_>, name: &str, value: &Policy) -> Decoded<rbac::Policy> {
    at.field("condition")
        .refuse_if(value.condition.is_some(), "CEL is not understood")?;
    at.field("checked_condition")
        .refuse_if(value.checked_condition.is_some(), "CEL is not understood")?;
    at.field("permissions")
        .refuse_if(value.permissions.is_empty(), "needs at least one")?;
    at.field("principals")
        .refuse_if(value.principals.is_empty(), "needs at least one")?;
    Ok(rbac::Policy {
        name: Arc::from(name),
        permissions: permissions(at, "permissions", &value.permissions)?,
        principals: principals(at, "principals", &value.principals)?,
    })
}

fn permissions(at: At<'_>, field: &str, all: &[Permission]) -> Decoded<Vec<rbac::Permission>> {
    at.field(field)
        .refuse_if(all.is_empty(), "needs at least one")?;
    let each = all.iter().enumerate();
    each.map(|(i, one)| permission(at.item(field, i), one))
        .collect()
}

fn permission(at: At<'_>, value: &Permission) -> Decoded<rbac::Permission> {
    use rbac::Permission as P;
    let Some(rule) = &value.rule else {
        return Err(at.bad("needs a rule"));
    };
    Ok(match rule {
        R::Any(true) => P::Any,
        R::Any(false) => return Err(at.field("any").bad("must be true")),
        R::AndRules(set) => P::All(permissions(at.field("and_rules"), "rules", &set.rules)?),
        R::OrRules(set) => P::OneOf(permissions(at.field("or_rules"), "rules", &set.rules)?),
        R::NotRule(inner) => P::Not(Box::new(permission(at.field("not_rule"), inner)?)),
        R::Header(inner) => P::Header(matcher::header(at.field("header"), inner)?),
        R::UrlPath(inner) => P::Path(matcher::path(at.field("url_path"), inner)?),
        R::DestinationIp(net) => P::DestinationIp(value::cidr(at.field("destination_ip"), net)?),
        R::DestinationPort(port) => {
            P::DestinationPort(value::port_number(at.field("destination_port"), *port)?)
        }
        R::DestinationPortRange(range) => ports(at.field("destination_port_range"), range)?,
        R::RequestedServerName(inner) => {
            P::ServerName(matcher::string(at.field("requested_server_name"), inner)?)
        }
        R::Metadata(_) => return Err(at.field("metadata").bad("dynamic metadata is not kept")),
        R::Matcher(_) => return Err(at.field("matcher").bad("no extensions are known here")),
        R::UriTemplate(_) => return Err(at.field("uri_template").bad("is not understood")),
    })
}

fn ports(at: At<'_>, range: &Int32Range) -> Decoded<rbac::Permission> {
    use rbac::Permission as P;
    let start = u16::try_from(range.start);
    match (start, range.end) {
        (Ok(start), end) if i32::from(start) < end && end <= i32::from(u16::MAX) => {
            let end = u16::try_from(end).unwrap_or(u16::MAX);
            Ok(P::DestinationPorts(start..end))
        }
        // The range is half-open, so that its end may be one above the last port.
        (Ok(start), 65_536) => Ok(P::OneOf(vec![
            P::DestinationPorts(start..u16::MAX),
            P::DestinationPort(u16::MAX),
        ])),
        _ => Err(at.bad("is no range of ports: start < end, both within 0 to 65536")),
    }
}

fn principals(at: At<'_>, field: &str, all: &[Principal]) -> Decoded<Vec<rbac::Principal>> {
    at.field(field)
        .refuse_if(all.is_empty(), "needs at least one")?;
    let each = all.iter().enumerate();
    each.map(|(i, one)| principal(at.item(field, i), one))
        .collect()
}

fn principal(at: At<'_>, value: &Principal) -> Decoded<rbac::Principal> {
    use rbac::Principal as P;
    let Some(identifier) = &value.identifier else {
        return Err(at.bad("needs an identifier"));
    };
    Ok(match identifier {
        I::Any(true) => P::Any,
        I::Any(false) => return Err(at.field("any").bad("must be true")),
        I::AndIds(set) => P::All(principals(at.field("and_ids"), "ids", &set.ids)?),
        I::OrIds(set) => P::OneOf(principals(at.field("or_ids"), "ids", &set.ids)?),
        I::NotId(inner) => P::Not(Box::new(principal(at.field("not_id"), inner)?)),
        I::Authenticated(inner) => {
            let at = at.field("authenticated");
            let name = inner.principal_name.as_ref();
            let name = name.map(|name| matcher::string(at.field("principal_name"), name));
            P::Authenticated(name.transpose()?)
        }
        I::SourceIp(net) => P::DirectRemoteIp(value::cidr(at.field("source_ip"), net)?),
        I::DirectRemoteIp(net) => {
            P::DirectRemoteIp(value::cidr(at.field("direct_remote_ip"), net)?)
        }
        I::RemoteIp(net) => P::RemoteIp(value::cidr(at.field("remote_ip"), net)?),
        I::Header(inner) => P::Header(matcher::header(at.field("header"), inner)?),
        I::UrlPath(inner) => P::Path(matcher::path(at.field("url_path"), inner)?),
        I::Metadata(_) => return Err(at.field("metadata").bad("dynamic metadata is not kept")),
        I::FilterState(inner) => {
            let at = at.field("filter_state");
            if inner.key != ISTIO_PEER {
                let why = format!("only {ISTIO_PEER} is known");
                return Err(at.field("key").bad(why));
            }
            match &inner.matcher {
                Some(filter_state_matcher::Matcher::StringMatch(name)) => {
                    let name: StringMatch = matcher::string(at.field("string_match"), name)?;
                    P::Authenticated(Some(name))
                }
                Some(filter_state_matcher::Matcher::AddressMatch(_)) | None => {
                    return Err(at.bad("needs a string_match"));
                }
            }
        }
    })
}
