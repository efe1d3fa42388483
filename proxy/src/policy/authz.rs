//! Authorization: evaluates RBAC rules for connections and for requests.
//!
//! *Raw connections and rules about HTTP.* A connection that is not HTTP has no method, path or
//! headers, so a condition on them is neither true nor false but unknown, and unknown is carried
//! through `and`, `or` and `not` (Kleene's logic). An ALLOW policy matches only what it is sure
//! of; a DENY policy also matches what it cannot rule out. This is what Istio documents (HTTP-only
//! rules on TCP ports: an ALLOW never opens the port, a DENY closes it for whoever its other
//! conditions describe), and it holds under negation, where taking unknown for false would let
//! `not path=/admin` admit every opaque byte.
//!
//! *Paths.* Requests are judged on the normal form of their path, which is also what is forwarded.
//! If a generous server could read that form differently (`/public/..%2Fadmin`), the request has
//! to be allowed under that reading too ([`path`]). So a rule that allows exactly `/a%2Fb` has to
//! allow `/a/b` as well to be of use; prefixes need no such care.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    config::{
        SpiffeId,
        matcher::{RequestView, StringMatch},
        rbac::{Permission, Policy, Principal, Rbac, RbacAction, Rules},
        route::RouteFilters,
    },
    route::path,
};

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The identity that the peer proved by its certificate.
    pub peer: Option<&'a SpiffeId>,
    /// The connection's peer.
    pub source: SocketAddr,
    /// The client before trusted proxies; the peer's address when none are trusted.
    pub client: IpAddr,
    /// Where the connection was meant to go.
    pub destination: SocketAddr,
    /// Server name of the TLS handshake.
    pub server_name: Option<&'a str>,
}

/// The outcome of one set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling<'r> {
    pub allowed: bool,
    /// The policy that matched. A request refused without one met an ALLOW list that does not name
    /// it; one allowed without one met no DENY.
    pub policy: Option<&'r Arc<str>>,
    /// The match is to be logged (action LOG).
    pub log: bool,
}

/// The outcome of an RBAC filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'r> {
    pub enforced: Ruling<'r>,
    /// What the rules under trial would have done.
    pub shadow: Option<Ruling<'r>>,
}

const PASS: Ruling<'static> = Ruling {
    allowed: true,
    policy: None,
    log: false,
};

impl Ruling<'_> {
    /// Why it was refused, for the answer and the log.
    #[must_use]
    pub fn reason(&self) -> String {
        match self.policy {
            Some(name) => format!("by policy {name}"),
            None => "no policy allows it".to_owned(),
        }
    }
}

/// The filter that holds for a request: the route's own before its virtual host's before the
/// listener's. `None` when the more specific place switches it off.
#[must_use]
pub fn effective<'r>(
    listener: &'r Rbac,
    host: &'r RouteFilters,
    route: &'r RouteFilters,
) -> Option<&'r Rbac> {
    match route.rbac.as_ref().or(host.rbac.as_ref()) {
        None => Some(listener),
        Some(own) => own.as_deref(),
    }
}

/// Judges a connection whose content is opaque. Not for connections that carry HTTP: their requests
/// are judged one by one, and rules about HTTP would refuse the connection here.
#[must_use]
pub fn connection<'r>(rbac: &'r Rbac, connection: &Connection<'_>) -> Verdict<'r> {
    let facts = Facts {
        connection,
        request: None,
    };
    verdict(rbac, |rules| judge(rules, &facts))
}

/// Judges a request.
#[must_use]
pub fn request<'r>(
    rbac: &'r Rbac,
    connection: &Connection<'_>,
    request: &RequestView<'_>,
) -> Verdict<'r> {
    let normal = path::normalize(request.path_and_query);
    let lenient = path::lenient(&normal).map(|path| {
        let query = normal.split_once('?').map_or("", |(_, query)| query);
        if query.is_empty() {
            path
        } else {
            format!("{path}?{query}")
        }
    });
    let on = |rules: &'r Rules, path_and_query: &str| {
        let view = RequestView {
            path_and_query,
            ..*request
        };
        let facts = Facts {
            connection,
            request: Some(&view),
        };
        judge(rules, &facts)
    };
    verdict(rbac, |rules| {
        let ruling = on(rules, &normal);
        match &lenient {
            Some(form) if ruling.allowed => {
                let other = on(rules, form);
                if other.allowed { ruling } else { other }
            }
            _ => ruling,
        }
    })
}

fn verdict<'r>(rbac: &'r Rbac, judge: impl Fn(&'r Rules) -> Ruling<'r>) -> Verdict<'r> {
    Verdict {
        enforced: rbac.rules.as_ref().map_or(PASS, &judge),
        shadow: rbac.shadow.as_ref().map(&judge),
    }
}

#[derive(Clone, Copy)]
struct Facts<'a> {
    connection: &'a Connection<'a>,
    request: Option<&'a RequestView<'a>>,
}

/// `None` is unknown.
type Truth = Option<bool>;

fn judge<'r>(rules: &'r Rules, facts: &Facts<'_>) -> Ruling<'r> {
    let first = |unsure: bool| {
        let hit = |policy: &&Policy| policy_holds(policy, facts).unwrap_or(unsure);
        rules.policies.iter().find(hit).map(|policy| &policy.name)
    };
    match rules.action {
        RbacAction::Allow => {
            let policy = first(false);
            Ruling {
                allowed: policy.is_some(),
                policy,
                log: false,
            }
        }
        RbacAction::Deny => {
            let policy = first(true);
            Ruling {
                allowed: policy.is_none(),
                policy,
                log: false,
            }
        }
        RbacAction::Log => {
            let policy = first(false);
            Ruling {
                allowed: true,
                policy,
                log: policy.is_some(),
            }
        }
    }
}

fn policy_holds(policy: &Policy, facts: &Facts<'_>) -> Truth {
    let asked = any(&policy.permissions, |p| permission(p, facts));
    let who = || any(&policy.principals, |p| principal(p, facts));
    and(asked, who)
}

fn and(left: Truth, right: impl FnOnce() -> Truth) -> Truth {
    match left {
        Some(false) => Some(false),
        Some(true) => right(),
        None => right().filter(|right| !right),
    }
}

fn all<T>(list: &[T], eval: impl Fn(&T) -> Truth) -> Truth {
    let mut so_far = Some(true);
    for one in list {
        so_far = and(so_far, || eval(one));
    }
    so_far
}

/// By De Morgan: not all are false.
fn any<T>(list: &[T], eval: impl Fn(&T) -> Truth) -> Truth {
    all(list, |one| not(eval(one))).map(|none| !none)
}

fn not(truth: Truth) -> Truth {
    truth.map(|truth| !truth)
}

fn permission(rule: &Permission, facts: &Facts<'_>) -> Truth {
    let Connection {
        destination,
        server_name,
        ..
    } = facts.connection;
    match rule {
        Permission::Any => Some(true),
        Permission::All(list) => all(list, |p| permission(p, facts)),
        Permission::OneOf(list) => any(list, |p| permission(p, facts)),
        Permission::Not(inner) => not(permission(inner, facts)),
        Permission::Header(matcher) => facts.request.map(|view| matcher.matches(view)),
        Permission::Path(matcher) => path_holds(matcher, facts),
        Permission::DestinationIp(net) => Some(holds(net, destination.ip())),
        Permission::DestinationPort(port) => Some(destination.port() == *port),
        Permission::DestinationPorts(ports) => Some(ports.contains(&destination.port())),
        // No server name is an empty one, as in Envoy.
        Permission::ServerName(matcher) => Some(matcher.matches(server_name.unwrap_or(""))),
    }
}

fn principal(rule: &Principal, facts: &Facts<'_>) -> Truth {
    let Connection {
        peer,
        source,
        client,
        ..
    } = facts.connection;
    match rule {
        Principal::Any => Some(true),
        Principal::All(list) => all(list, |p| principal(p, facts)),
        Principal::OneOf(list) => any(list, |p| principal(p, facts)),
        Principal::Not(inner) => not(principal(inner, facts)),
        Principal::Authenticated(None) => Some(peer.is_some()),
        Principal::Authenticated(Some(matcher)) => {
            Some(peer.is_some_and(|id| matcher.matches(id.as_str())))
        }
        Principal::DirectRemoteIp(net) => Some(holds(net, source.ip())),
        Principal::RemoteIp(net) => Some(holds(net, *client)),
        Principal::Header(matcher) => facts.request.map(|view| matcher.matches(view)),
        Principal::Path(matcher) => path_holds(matcher, facts),
    }
}

fn path_holds(matcher: &StringMatch, facts: &Facts<'_>) -> Truth {
    facts.request.map(|view| matcher.matches(view.path()))
}

/// An IPv4 address that came over an IPv6 socket is the IPv4 address.
fn holds(net: &IpNet, ip: IpAddr) -> bool {
    net.contains(&ip.to_canonical())
}

#[cfg(test)]
mod tests;
