//! `MutualTLS`: whether a workload takes connections without mutual TLS.

use serde::{Deserialize, Serialize};

use super::{Faults, Selector, Spec};

/// `spec` of a `MutualTLS`. Without `selector` it is for every workload of its namespace. A port of
/// a workload's policy counts before the policy, a workload's before its namespace's, a namespace's
/// before the mesh's, which is the one without selector in the control plane's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MutualTlsSpec {
    /// The workloads it is for, by label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What holds for ports that are not named.
    pub mode: Mode,
    /// What holds for single ports of the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMode>,
}

/// Whether it must be mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Clear text is taken, too.
    #[default]
    #[serde(alias = "permissive")]
    Permissive,
    /// Nothing but mutual TLS of the mesh.
    #[serde(alias = "strict")]
    Strict,
}

/// What holds for one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMode {
    /// Where the workload listens.
    pub port: u16,
    /// What holds there.
    pub mode: Mode,
}

const MAX_PORTS: usize = 64;

impl Spec for MutualTlsSpec {
    fn check(&self, faults: &mut Faults) {
        faults.some("selector", self.selector.as_ref(), |faults, inner| {
            inner.check(faults)
        });
        let lost = !self.ports.is_empty() && self.selector.is_none();
        faults.add_if(lost, "ports", "needs a selector: ports belong to workloads");
        faults.add_if(
            self.ports.len() > MAX_PORTS,
            "ports",
            "must have at most 64 entries",
        );
        for (i, port) in self.ports.iter().enumerate() {
            let again = self
                .ports
                .iter()
                .take(i)
                .any(|other| other.port == port.port);
            faults.add_if(again, &format!("ports[{i}].port"), "stands there twice");
            faults.add_if(
                port.port == 0,
                &format!("ports[{i}].port"),
                "must be 1 to 65535",
            );
        }
    }
}

impl MutualTlsSpec {
    /// What holds for a port, and how closely it was meant: higher counts before lower.
    #[must_use]
    pub fn mode_of(&self, port: u16) -> (u8, Mode) {
        let own = self.ports.iter().find(|own| own.port == port);
        match (own, &self.selector) {
            (Some(own), _) => (2, own.mode),
            (None, Some(_)) => (1, self.mode),
            (None, None) => (0, self.mode),
        }
    }
}
