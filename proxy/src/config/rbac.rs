//! Authorization rules (Envoy `config.rbac.v3`): policies of permissions and principals, compiled.
//! Evaluation is in `policy::authz`.

use std::{ops::Range, sync::Arc};

use ipnet::IpNet;

use super::matcher::{HeaderMatch, StringMatch};

/// One RBAC filter: the enforced rules and those that are only watched.
#[derive(Clone, Debug, Default)]
pub struct Rbac {
    /// `None` enforces nothing.
    pub rules: Option<Rules>,
    /// Evaluated and reported, never enforced (dry run).
    pub shadow: Option<Rules>,
}

/// A set of policies under one action.
#[derive(Clone, Debug)]
pub struct Rules {
    pub action: RbacAction,
    /// Sorted by name, which is the order of evaluation and what is reported.
    pub policies: Vec<Policy>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    /// Allowed if any policy matches, else denied.
    Allow,
    /// Denied if any policy matches, else allowed.
    Deny,
    /// Always allowed; a match is logged.
    Log,
}

/// A named policy; it matches when one permission and one principal match.
#[derive(Clone, Debug)]
pub struct Policy {
    pub name: Arc<str>,
    pub permissions: Vec<Permission>,
    pub principals: Vec<Principal>,
}

/// What is asked for. On a raw TCP connection a condition on HTTP is false (Envoy and Istio), so
/// that an ALLOW by path never lets an opaque connection in.
#[derive(Clone, Debug)]
pub enum Permission {
    Any,
    All(Vec<Self>),
    OneOf(Vec<Self>),
    Not(Box<Self>),
    Header(HeaderMatch),
    /// The path without its query.
    Path(StringMatch),
    DestinationIp(IpNet),
    DestinationPort(u16),
    DestinationPorts(Range<u16>),
    ServerName(StringMatch),
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum Principal {
    Any,
    All(Vec<Self>),
    OneOf(Vec<Self>),
    Not(Box<Self>),
    /// The peer's authenticated identity; `None` asks only that there is one.
    Authenticated(Option<StringMatch>),
    /// The address of the connection's peer.
    DirectRemoteIp(IpNet),
    /// The client's address after trusted `x-forwarded-for` hops; equal to the above when the
    /// proxy trusts none.
    RemoteIp(IpNet),
    Header(HeaderMatch),
    Path(StringMatch),
}
