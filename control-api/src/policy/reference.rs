//! What a policy points at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Faults;

/// Kubernetes' limit for names (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// Kubernetes' limit for label values and for the last part of label names.
const MAX_LABEL: usize = 63;
/// Labels in a selector; more than anybody writes, little enough to compare for each proxy.
const MAX_LABELS: usize = 32;
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// What a route attaches to: for a mesh, a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// API group; empty or `core` for Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Must be `Service`. Absent means the same: nothing else takes routes here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Absent: the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the Service.
    pub name: String,
    /// One port of it; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The port by its name; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

impl ParentRef {
    pub(super) fn check(&self, faults: &mut Faults) {
        let group = self.group.as_deref().unwrap_or_default();
        let core = matches!(group, "" | "core" | "outrigger.dev");
        faults.add_if(!core, "group", "must be empty: routes attach to Services");
        let kind = self.kind.as_deref().unwrap_or("Service");
        faults.add_if(kind != "Service", "kind", "must be Service");
        names(faults, self.namespace.as_deref(), &self.name);
        faults.add_if(self.port == Some(0), "port", "must be 1 to 65535");
    }

    /// Whether it means this port of this Service. `namespace` is the route's own.
    #[must_use]
    pub fn covers(&self, namespace: &str, service: (&str, &str), port: (u16, &str)) -> bool {
        let own = self.namespace.as_deref().unwrap_or(namespace);
        (own, self.name.as_str()) == service
            && self.port.is_none_or(|wanted| wanted == port.0)
            && self
                .section_name
                .as_deref()
                .is_none_or(|wanted| wanted == port.1)
    }
}

/// What a policy of ours applies to: a Service, one port of it, a route, or one rule of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group; what the kind has if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// Name, in the policy's own namespace.
    pub name: String,
    /// One port of a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Name of a Service's port, or of a route's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

impl TargetRef {
    pub(super) fn check(&self, faults: &mut Faults, kinds: &[&str]) {
        let known = kinds.contains(&self.kind.as_str());
        faults.add_if(!known, "kind", &format!("must be {}", kinds.join(" or ")));
        let wanted = match self.kind.as_str() {
            "Service" => ["", "core", "outrigger.dev"].as_slice(),
            _ => [GATEWAY_GROUP].as_slice(),
        };
        let group = self.group.as_deref();
        let other = known && group.is_some_and(|group| !wanted.contains(&group));
        faults.add_if(other, "group", "is not the group of this kind");
        names(faults, None, &self.name);
        let service = self.kind == "Service";
        faults.add_if(self.port == Some(0), "port", "must be 1 to 65535");
        let misplaced = self.port.is_some() && !service;
        faults.add_if(
            misplaced,
            "port",
            "is for Services; name a rule with sectionName",
        );
    }

    /// How closely it means a port of a Service: `None` not at all, 0 the Service, 1 the port.
    #[must_use]
    pub fn of_service(&self, name: &str, port: (u16, &str)) -> Option<u8> {
        let meant = self.kind == "Service"
            && self.name == name
            && self.port.is_none_or(|wanted| wanted == port.0)
            && self
                .section_name
                .as_deref()
                .is_none_or(|wanted| wanted == port.1);
        meant.then(|| u8::from(self.port.is_some() || self.section_name.is_some()))
    }

    /// How closely it means a rule of a route: `None` not at all, 0 the route, 1 the rule.
    #[must_use]
    pub fn of_rule(&self, kind: &str, name: &str, rule: Option<&str>) -> Option<u8> {
        let section = self.section_name.as_deref();
        let meant =
            self.kind == kind && self.name == name && (section.is_none() || section == rule);
        meant.then(|| u8::from(section.is_some()))
    }
}

/// Checks the list that most policies have.
pub(super) fn targets(faults: &mut Faults, all: &[TargetRef], kinds: &[&str]) {
    /// As many as a Gateway API policy may have.
    const MAX_TARGETS: usize = 16;
    let few = (1..=MAX_TARGETS).contains(&all.len());
    faults.add_if(!few, "targetRefs", "must have 1 to 16 entries");
    faults.each("targetRefs", all, |faults, target| {
        target.check(faults, kinds)
    });
    for (i, target) in all.iter().enumerate() {
        let again = all.iter().take(i).any(|other| other == target);
        faults.add_if(again, &format!("targetRefs[{i}]"), "stands there twice");
    }
}

/// Chooses workloads by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// All of them must be there with these values.
    pub match_labels: BTreeMap<String, String>,
}

impl Selector {
    pub(super) fn check(&self, faults: &mut Faults) {
        let empty = self.match_labels.is_empty();
        faults.add_if(
            empty,
            "matchLabels",
            "must not be empty; leave the selector out for all",
        );
        let many = self.match_labels.len() > MAX_LABELS;
        faults.add_if(many, "matchLabels", "must have at most 32 entries");
        for (name, value) in &self.match_labels {
            let long = name.is_empty() || name.len() > MAX_NAME + 1 + MAX_LABEL;
            let bad = long || value.len() > MAX_LABEL;
            faults.add_if(
                bad,
                &format!("matchLabels.{name}"),
                "is no label of Kubernetes",
            );
        }
    }

    /// Whether a workload with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut wanted = self.match_labels.iter();
        wanted.all(|(name, value)| labels.get(name) == Some(value))
    }
}

/// Checks the names of a reference.
pub(super) fn names(faults: &mut Faults, namespace: Option<&str>, name: &str) {
    let spelt = |text: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        edge(text.chars().next()) && edge(text.chars().next_back()) && text.chars().all(inner)
    };
    const NAME: &str = "must be lower-case letters, digits, '-' and '.'";
    faults.add_if(!spelt(name) || name.len() > MAX_NAME, "name", NAME);
    let bad = namespace.is_some_and(|ns| !spelt(ns) || ns.len() > MAX_LABEL || ns.contains('.'));
    faults.add_if(
        bad,
        "namespace",
        "must be lower-case letters, digits and '-'",
    );
}
