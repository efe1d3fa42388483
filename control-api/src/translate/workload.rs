//! Policies of workloads: which of them holds for a proxy.

use std::{collections::BTreeMap, fmt, sync::Arc};

use outrigger_proto::envoy::{
    config::accesslog::v3::{AccessLog, access_log},
    extensions::access_loggers::stream::v3::StdoutAccessLog,
};

use super::{
    Viewer,
    proto::any,
    world::{SYSTEM_NAMESPACE, World},
};
use crate::model::{Key, MutualTlsSpec, Object, RateLimitSpec, Selector, Share, Spec, TlsMode};

/// How exactly a policy is aimed: the mesh, a namespace, some workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Aim {
    Mesh,
    Namespace,
    Workload,
}

/// The aim of a policy of this name and selector; `None` if it is not for `viewer`.
pub(super) fn aim(key: &Key, selector: Option<&Selector>, viewer: &Viewer) -> Option<Aim> {
    match selector {
        Some(selector) if !selector.match_labels.is_empty() => {
            let here = key.namespace == viewer.namespace;
            (here && selector.selects(&viewer.labels)).then_some(Aim::Workload)
        }
        _ if key.namespace == SYSTEM_NAMESPACE => Some(Aim::Mesh),
        _ => (key.namespace == viewer.namespace).then_some(Aim::Namespace),
    }
}

/// The policies that are aimed at a workload: those of the mesh first, of each the oldest first.
pub fn aimed_at<'w>(world: &'w World, viewer: &'w Viewer) -> impl Iterator<Item = &'w Arc<Object>> {
    let all = world.workload_policies(&viewer.namespace);
    all.filter(move |object| {
        let selector = match &object.spec {
            Spec::MutualTls(spec) => spec.selector.as_ref(),
            Spec::Telemetry(spec) => spec.selector.as_ref(),
            Spec::RateLimit(spec) => spec.selector.as_ref(),
            Spec::AuthorizationPolicy(spec) => spec.selector.as_ref(),
            _ => return false,
        };
        aim(&object.key, selector, viewer).is_some()
    })
}

/// Whether a workload demands mutual TLS on `port`, or, without one, wherever it does not say.
#[must_use]
pub fn is_strict(world: &World, viewer: &Viewer, port: Option<u16>) -> bool {
    MutualTls::of(world, viewer).is_strict(port)
}

/// What is told of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Telemetry {
    /// Share of requests that are traced when their caller does not say; `None` leaves that to the
    /// proxy.
    pub(super) sampling: Option<Share>,
    pub(super) access_log: bool,
}

impl Telemetry {
    /// The most exact policy that says something counts; of equals the oldest.
    pub(super) fn of(world: &World, viewer: &Viewer) -> Self {
        let (mut sampling, mut access_log) = (None, None);
        for object in world.workload_policies(&viewer.namespace) {
            let Spec::Telemetry(spec) = &object.spec else {
                continue;
            };
            let Some(aim) = aim(&object.key, spec.selector.as_ref(), viewer) else {
                continue;
            };
            let share = spec.tracing.as_ref().and_then(|tracing| tracing.sampling);
            prefer(&mut sampling, aim, share);
            prefer(&mut access_log, aim, spec.access_log);
        }
        Self {
            sampling: sampling.map(|(_, share)| share),
            access_log: access_log.is_none_or(|(_, on)| on),
        }
    }
}

impl Telemetry {
    /// What a filter says of its access log.
    pub(super) fn log(self) -> Vec<AccessLog> {
        let stdout = AccessLog {
            name: "envoy.access_loggers.stdout".to_owned(),
            config_type: Some(access_log::ConfigType::TypedConfig(any(
                &StdoutAccessLog::default(),
            ))),
            ..AccessLog::default()
        };
        self.access_log.then_some(stdout).into_iter().collect()
    }
}

impl fmt::Display for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sampling {
            Some(share) => write!(f, "{}/{}", share.millionths, self.access_log),
            None => write!(f, "-/{}", self.access_log),
        }
    }
}

fn prefer<T>(best: &mut Option<(Aim, T)>, aim: Aim, value: Option<T>) {
    if let Some(value) = value
        && best.as_ref().is_none_or(|(held, _)| aim > *held)
    {
        *best = Some((aim, value));
    }
}

/// Whether mutual TLS is demanded, for each port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MutualTls {
    strict: bool,
    ports: BTreeMap<u16, bool>,
}

impl MutualTls {
    /// The most exact policies count; of several that are equally exact the stricter wins, port by
    /// port: two people who each secured something must not open it for each other.
    pub(super) fn of(world: &World, viewer: &Viewer) -> Self {
        let mut best: Option<Aim> = None;
        let mut chosen: Vec<&MutualTlsSpec> = Vec::new();
        for object in world.workload_policies(&viewer.namespace) {
            let Spec::MutualTls(spec) = &object.spec else {
                continue;
            };
            let Some(aim) = aim(&object.key, spec.selector.as_ref(), viewer) else {
                continue;
            };
            if best.is_none_or(|held| aim > held) {
                best = Some(aim);
                chosen.clear();
            }
            if best == Some(aim) {
                chosen.push(spec.as_ref());
            }
        }
        let strict = |mode: TlsMode| mode == TlsMode::Strict;
        let on = |port: &u16| {
            let mut modes = chosen
                .iter()
                .map(|spec| spec.ports.get(port).unwrap_or(&spec.mode));
            modes.any(|mode| strict(*mode))
        };
        let named = chosen.iter().flat_map(|spec| spec.ports.keys());
        Self {
            strict: chosen.iter().any(|spec| strict(spec.mode)),
            ports: named.map(|port| (*port, on(port))).collect(),
        }
    }

    /// On this port, or, without one, on all that are not named.
    pub(super) fn is_strict(&self, port: Option<u16>) -> bool {
        let own = port.and_then(|port| self.ports.get(&port));
        own.copied().unwrap_or(self.strict)
    }

    /// Ports that are named.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }
}

/// How many requests the workload takes: the most exact policy, of equals the oldest.
pub(super) fn rate_limit<'w>(world: &'w World, viewer: &Viewer) -> Option<&'w RateLimitSpec> {
    let mut best = None;
    for object in world.workload_policies(&viewer.namespace) {
        let Spec::RateLimit(spec) = &object.spec else {
            continue;
        };
        if let Some(aim) = aim(&object.key, spec.selector.as_ref(), viewer) {
            prefer(&mut best, aim, Some(spec.as_ref()));
        }
    }
    best.map(|(_, spec)| spec)
}
