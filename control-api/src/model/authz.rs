//! `AuthorizationPolicy`: who may call.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::common::{Faults, MAX_LIST, Selector, TargetRef, TextMatch, is_token, target_faults};

/// First every `deny` that applies is asked, then, if there is any `allow`, one of them has to
/// match. `audit` only takes notes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The ports of these Services. Not beside `selector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Workloads. Neither this nor `targetRefs`: all of the namespace, or, in `outrigger-system`,
    /// all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What a match means.
    #[serde(default)]
    pub action: Action,
    /// Only count and log what it would do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Any of these matches; none: nothing does.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Let it in.
    #[default]
    Allow,
    /// Keep it out.
    Deny,
    /// Note it.
    Audit,
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        })
    }
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_lowercase().as_str() {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            "audit" => Ok(Self::Audit),
            _ => Err(de::Error::custom(format!(
                "{text:?} is not one of allow, deny, audit"
            ))),
        }
    }
}

/// Matches when a source and an operation match; an empty list matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Any of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Source>,
    /// Any of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Operation>,
}

/// A caller; every field that is there has to match, each by any of its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// SPIFFE IDs, or `<namespace>/<service account>`; `*` at the beginning or the end stands for
    /// anything, alone for any identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_identities: Vec<String>,
    /// Namespaces of identities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<Block>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<Block>,
}

/// An address or a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block(pub IpNet);

impl Serialize for Block {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = text.parse::<IpNet>().ok();
        let host = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
        net.or_else(host)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is no address or CIDR")))
    }
}

/// What is called; every field that is there has to match, each by any of its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Ports on which the workload listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
    /// HTTP methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// Paths; `*` at the beginning or the end stands for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
    /// `Host`; `*` at the beginning or the end stands for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// All of these headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Which.
    pub name: String,
    /// How it is compared.
    pub value: TextMatch,
    /// The rule needs it not to match.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
}

impl Operation {
    /// Whether it looks at the request, which only HTTP has.
    #[must_use]
    pub fn is_http(&self) -> bool {
        let lists = [
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
            &self.hosts,
            &self.not_hosts,
        ];
        !self.headers.is_empty() || lists.iter().any(|list| !list.is_empty())
    }
}

impl AuthorizationPolicySpec {
    /// Everything wrong with it: path below `spec`, and why.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::new();
        target_faults(&self.target_refs, &mut faults);
        if self.selector.is_some() && !self.target_refs.is_empty() {
            faults.push(("selector".into(), "must not stand beside targetRefs".into()));
        }
        if self.rules.len() > MAX_LIST {
            faults.push(("rules".into(), "must have at most 1000 entries".into()));
        }
        for (r, rule) in self.rules.iter().enumerate() {
            for (i, source) in rule.from.iter().enumerate() {
                source.check(&format!("rules[{r}].from[{i}]"), &mut faults);
            }
            for (i, operation) in rule.to.iter().enumerate() {
                operation.check(&format!("rules[{r}].to[{i}]"), &mut faults);
            }
        }
        faults
    }
}

/// `*` only at the beginning or the end.
fn pattern_fault(pattern: &str) -> Option<&'static str> {
    let inner = pattern.strip_prefix('*').unwrap_or(pattern);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    let both = pattern.len() > 1 && pattern.starts_with('*') && pattern.ends_with('*');
    if pattern.is_empty() {
        Some("must not be empty")
    } else if inner.contains('*') || both {
        Some("must have * only at the beginning or only at the end")
    } else {
        None
    }
}

impl Source {
    fn check(&self, path: &str, faults: &mut Faults) {
        let before = faults.len();
        for (field, list) in [
            ("identities", &self.identities),
            ("notIdentities", &self.not_identities),
        ] {
            for (i, identity) in list.iter().enumerate() {
                let short = identity.split('/').count() == 2;
                let known = identity.starts_with("spiffe://") || identity.starts_with('*') || short;
                let why = if known {
                    pattern_fault(identity)
                } else {
                    Some(IDENTITY)
                };
                faults.extend(why.map(|why| (format!("{path}.{field}[{i}]"), why.to_owned())));
            }
        }
        for (field, list) in [
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
        ] {
            for (i, name) in list.iter().enumerate() {
                if !super::manifest::is_dns(name, 63) {
                    let why = "must be the name of a namespace";
                    faults.push((format!("{path}.{field}[{i}]"), why.into()));
                }
            }
        }
        if *self == Self::default() && faults.len() == before {
            faults.push((path.to_owned(), "must say something".into()));
        }
    }
}

const IDENTITY: &str = "must be spiffe://…, <namespace>/<service account> or *";

impl Operation {
    fn check(&self, path: &str, faults: &mut Faults) {
        let lists = [
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
        ];
        for (field, list) in lists {
            for (i, pattern) in list.iter().enumerate() {
                let why = pattern_fault(pattern);
                faults.extend(why.map(|why| (format!("{path}.{field}[{i}]"), why.to_owned())));
            }
        }
        for (field, list) in [
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
        ] {
            for (i, method) in list.iter().enumerate() {
                if !is_token(method) {
                    faults.push((format!("{path}.{field}[{i}]"), "must be a method".into()));
                }
            }
        }
        for (field, list) in [("ports", &self.ports), ("notPorts", &self.not_ports)] {
            for (i, port) in list.iter().enumerate() {
                if *port == 0 {
                    faults.push((format!("{path}.{field}[{i}]"), "must be 1 to 65535".into()));
                }
            }
        }
        for (i, header) in self.headers.iter().enumerate() {
            if !is_token(&header.name) {
                let why = "must be a header's name";
                faults.push((format!("{path}.headers[{i}].name"), why.into()));
            }
            let why = header.value.fault();
            faults.extend(why.map(|why| (format!("{path}.headers[{i}].value"), why)));
        }
        if *self == Self::default() {
            faults.push((path.to_owned(), "must say something".into()));
        }
    }
}
