//! `AuthorizationPolicy`: who may call what.
//!
//! For each request: denied if a `DENY` policy matches; else, if there are `ALLOW` policies for the
//! workload, allowed only if one of them matches; else allowed. `AUDIT` policies only note.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Faults, HeaderMatch, Selector, Spec, TargetRef, matching, reference::targets};

/// `spec` of an `AuthorizationPolicy`. Without `selector` and `targetRefs` it is for every workload
/// of its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The workloads it protects, by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The Services whose endpoints it protects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// What happens on a match.
    #[serde(default)]
    pub action: Action,
    /// It matches if any of them does. Without rules an `ALLOW` policy lets nobody in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What it would do is noted, not done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// What happens on a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// It goes through, and what nobody allows does not.
    #[default]
    Allow,
    /// It does not go through.
    Deny,
    /// It is noted.
    Audit,
}

/// Any source and any operation; an empty list means every one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Who.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Source>,
    /// What.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Operation>,
}

/// Who calls: every field that is given must hold. In names a `*` at the beginning or end stands
/// for anything; alone it stands for any identity that was proved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// SPIFFE IDs, like `spiffe://outrigger.local/ns/shop/sa/web`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Service accounts, like `shop/web`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// Namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// Addresses or ranges of the connection's other end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
}

/// What is called: every field that is given must hold. In paths, methods and hosts a `*` at the
/// beginning or end stands for anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Ports of the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
    /// `Host` or `:authority`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// Methods of HTTP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// Paths without their query; for gRPC `/<service>/<method>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
    /// All of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

impl Operation {
    /// Whether it looks at more than the connection.
    #[must_use]
    pub fn is_http(&self) -> bool {
        let lists = [
            &self.hosts,
            &self.not_hosts,
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
        ];
        lists.iter().any(|list| !list.is_empty()) || !self.headers.is_empty()
    }
}

/// Entries of a list; each becomes a rule in every proxy it is for.
const MAX_ENTRIES: usize = 256;
/// Longest entry: a SPIFFE ID has at most so many bytes (SPIFFE-ID §2.3).
const MAX_ENTRY: usize = 2048;

impl Spec for AuthorizationPolicySpec {
    fn check(&self, faults: &mut Faults) {
        let both = self.selector.is_some() && !self.target_refs.is_empty();
        faults.add_if(both, "targetRefs", "excludes selector");
        faults.some("selector", self.selector.as_ref(), |faults, inner| {
            inner.check(faults)
        });
        if !self.target_refs.is_empty() {
            targets(faults, &self.target_refs, &["Service"]);
        }
        let idle = self.rules.is_empty() && self.action != Action::Allow;
        faults.add_if(
            idle,
            "rules",
            "must not be empty: without rules nothing ever matches",
        );
        faults.add_if(
            self.rules.len() > MAX_ENTRIES,
            "rules",
            "must have at most 256 entries",
        );
        let pointless = self.dry_run && self.action == Action::Audit;
        faults.add_if(pointless, "dryRun", "is no use: AUDIT only notes anyhow");
        faults.each("rules", &self.rules, |faults, rule| {
            faults.add_if(
                rule.from.len() > MAX_ENTRIES,
                "from",
                "must have at most 256 entries",
            );
            faults.each("from", &rule.from, |faults, source| source.check(faults));
            faults.add_if(
                rule.to.len() > MAX_ENTRIES,
                "to",
                "must have at most 256 entries",
            );
            faults.each("to", &rule.to, |faults, operation| operation.check(faults));
        });
    }
}

impl Source {
    fn check(&self, faults: &mut Faults) {
        faults.add_if(
            *self == Self::default(),
            "",
            "must not be empty; leave `from` out for all",
        );
        patterns(faults, "namespaces", &self.namespaces);
        patterns(faults, "notNamespaces", &self.not_namespaces);
        for (field, all) in [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
        ] {
            patterns(faults, field, all);
            for (i, principal) in all.iter().enumerate() {
                let whole = principal.starts_with("spiffe://") || principal.starts_with('*');
                faults.add_if(
                    !whole,
                    &format!("{field}[{i}]"),
                    "must begin with spiffe:// or *",
                );
            }
        }
        patterns(faults, "serviceAccounts", &self.service_accounts);
        for (i, account) in self.service_accounts.iter().enumerate() {
            let parts = account.split_once('/');
            let two = parts.is_some_and(|(ns, sa)| {
                let spelt = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
                spelt(ns) && spelt(sa)
            });
            let field = format!("serviceAccounts[{i}]");
            faults.add_if(!two, &field, "must be <namespace>/<service account>");
        }
        for (field, all) in [
            ("ipBlocks", &self.ip_blocks),
            ("notIpBlocks", &self.not_ip_blocks),
        ] {
            faults.add_if(
                all.len() > MAX_ENTRIES,
                field,
                "must have at most 256 entries",
            );
            for (i, block) in all.iter().enumerate() {
                let bad = parse_block(block).is_none();
                faults.add_if(
                    bad,
                    &format!("{field}[{i}]"),
                    "must be an address or a CIDR range",
                );
            }
        }
    }
}

/// An address, or a range of them.
pub(super) fn parse_block(text: &str) -> Option<IpNet> {
    let range = text.parse::<IpNet>().ok();
    range.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl Operation {
    fn check(&self, faults: &mut Faults) {
        faults.add_if(
            *self == Self::default(),
            "",
            "must not be empty; leave `to` out for all",
        );
        for (field, all) in [("ports", &self.ports), ("notPorts", &self.not_ports)] {
            faults.add_if(
                all.len() > MAX_ENTRIES,
                field,
                "must have at most 256 entries",
            );
            for (i, port) in all.iter().enumerate() {
                faults.add_if(*port == 0, &format!("{field}[{i}]"), "must be 1 to 65535");
            }
        }
        let lists = [
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
        ];
        for (field, all) in lists {
            patterns(faults, field, all);
        }
        for (field, all) in [("paths", &self.paths), ("notPaths", &self.not_paths)] {
            for (i, path) in all.iter().enumerate() {
                let bad = !path.starts_with(['/', '*']) || path.contains(['?', '#']);
                let why = "must begin with '/' or '*' and have no query";
                faults.add_if(bad, &format!("{field}[{i}]"), why);
            }
        }
        matching::headers(faults, &self.headers);
    }
}

fn patterns(faults: &mut Faults, field: &str, all: &[String]) {
    faults.add_if(
        all.len() > MAX_ENTRIES,
        field,
        "must have at most 256 entries",
    );
    for (i, text) in all.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let bad = text.is_empty() || text.len() > MAX_ENTRY;
        faults.add_if(bad, &field, "must have 1 to 2048 characters");
        let stars = text.matches('*').count();
        let edges = usize::from(text.starts_with('*')) + usize::from(text.ends_with('*'));
        let good = stars == 0 || text == "*" || stars == 1 && edges == 1;
        faults.add_if(!good, &field, "may have one '*', at its beginning or end");
    }
}
