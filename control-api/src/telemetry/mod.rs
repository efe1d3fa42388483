//! Metrics and health of the control plane, on a port of its own.

mod server;

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

pub use server::serve;

use crate::{
    model::{Kind, Objects},
    translate::ResourceType,
    xds::Proxies,
};

impl EncodeLabelValue for ResourceType {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.word().encode(encoder)
    }
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.as_str().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfType {
    r#type: ResourceType,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Everything that is counted. Labels come from fixed sets, so their number is bounded.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    answers: Family<OfType, Counter>,
    refusals: Family<OfType, Counter>,
    certificates: Family<Outcome, Counter>,
    proxies: Gauge,
    behind: Gauge,
    rejecting: Gauge,
    revision: Gauge,
    objects: Family<OfKind, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("outrigger_control");
        let answers = Family::default();
        registry.register("xds_answers", "Answers sent to proxies", answers.clone());
        let refusals = Family::default();
        registry.register(
            "xds_refusals",
            "Answers that proxies refused",
            refusals.clone(),
        );
        let certificates = Family::default();
        registry.register(
            "certificates",
            "Requests for certificates",
            certificates.clone(),
        );
        let proxies = Gauge::default();
        registry.register("proxies", "Connected proxies", proxies.clone());
        let behind = Gauge::default();
        let help = "Connected proxies that have not answered the newest revision";
        registry.register("proxies_behind", help, behind.clone());
        let rejecting = Gauge::default();
        let help = "Connected proxies that refused something and have not taken it since";
        registry.register("proxies_rejecting", help, rejecting.clone());
        let revision = Gauge::default();
        registry.register(
            "revision",
            "Newest revision of the objects",
            revision.clone(),
        );
        let objects = Family::default();
        registry.register("objects", "Objects in the store", objects.clone());
        Self {
            registry,
            answers,
            refusals,
            certificates,
            proxies,
            behind,
            rejecting,
            revision,
            objects,
        }
    }
}

impl Metrics {
    /// An answer was sent.
    pub fn answered(&self, kind: ResourceType) {
        self.answers.get_or_create(&OfType { r#type: kind }).inc();
    }

    /// An answer was refused.
    pub fn refused(&self, kind: ResourceType) {
        self.refusals.get_or_create(&OfType { r#type: kind }).inc();
    }

    /// A certificate was asked for, and given or not.
    pub fn certificate(&self, given: bool) {
        let outcome = if given { "issued" } else { "refused" };
        self.certificates.get_or_create(&Outcome { outcome }).inc();
    }

    /// Everything as Prometheus reads it.
    #[must_use]
    pub fn text(&self, proxies: &Arc<Proxies>, objects: &Objects) -> String {
        let all = proxies.all();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.proxies.set(count(all.len()));
        let behind = all.iter().filter(|p| p.settled < objects.revision);
        self.behind.set(count(behind.count()));
        self.rejecting
            .set(count(all.iter().filter(|p| p.is_rejecting()).count()));
        self.revision
            .set(i64::try_from(objects.revision).unwrap_or(i64::MAX));
        for kind in Kind::ALL {
            let of_kind = objects.by_key.keys().filter(|key| key.kind == *kind);
            let gauge = self.objects.get_or_create(&OfKind { kind: *kind });
            gauge.set(count(of_kind.count()));
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}
