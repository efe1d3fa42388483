//! Whether this is the network namespace of the node: rules there would take over every pod's
//! traffic and the node's own (KU-08).

use std::{fs, path::PathBuf};

/// Inode of the first network namespace, fixed since Linux 6.18 (`NET_NS_INIT_INO`).
const FIRST_NAMESPACE: &str = "net:[4026531833]";
/// Interfaces that container runtimes and network plug-ins make on a node.
const NODE_INTERFACES: [&str; 16] = [
    "docker0",
    "cni0",
    "cbr0",
    "podman0",
    "virbr0",
    "flannel.1",
    "kube-bridge",
    "kube-ipvs0",
    "nodelocaldns",
    "vxlan.calico",
    "cilium_host",
    "cilium_vxlan",
    "ovn-k8s-mp0",
    "br-int",
    "antrea-gw0",
    "weave",
];
/// How the node's ends of pods' interfaces are called; within a pod the end is `eth0`.
const NODE_PREFIXES: [&str; 4] = ["veth", "cali", "lxc", "azv"];
/// Process 1 of a machine, as opposed to that of a pod.
const MACHINE_INIT: [&str; 2] = ["systemd", "init"];

/// What can be seen of a network namespace from within.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// `net:[inode]` of this process.
    pub own: Option<PathBuf>,
    /// The same of process 1, which is the pod's own where process ids are the pod's own.
    pub first: Option<PathBuf>,
    /// Name of process 1.
    pub init: String,
    pub interfaces: Vec<String>,
}

impl Facts {
    /// Those of this process.
    pub(super) fn gather() -> Self {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let interfaces = read("/proc/self/net/dev");
        let interfaces = interfaces.lines().filter_map(|line| line.split_once(':'));
        Self {
            own: namespace("self"),
            first: namespace("1"),
            init: read("/proc/1/comm").trim().to_owned(),
            interfaces: interfaces.map(|(name, _)| name.trim().to_owned()).collect(),
        }
    }

    /// Why this is the node's namespace; `None` if it is a pod's.
    pub(super) fn host_network(&self) -> Option<String> {
        if self.own.as_ref()?.as_os_str() == FIRST_NAMESPACE {
            return Some("the first of this machine".to_owned());
        }
        if self.own == self.first && MACHINE_INIT.contains(&self.init.as_str()) {
            return Some(format!("that of process 1, {}", self.init));
        }
        let of_node = |name: &&String| {
            NODE_INTERFACES.contains(&name.as_str())
                || NODE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        };
        let found = self.interfaces.iter().find(of_node)?;
        Some(format!("it has the interface {found}"))
    }
}
