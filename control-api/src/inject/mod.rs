//! Puts the proxy beside an application: from a pod to the pod with it, purely.
//!
//! What is added: an init container that redirects the pod's traffic, the proxy as a native
//! sidecar (an init container that goes on running: it starts before the application and ends
//! after it, and a Job ends in spite of it), and a volume with the token that proves who the pod is.
//! What is there stays as it is, but for the probes, which would not pass where mutual TLS is
//! demanded, and a short wait before the application is told to end, so that no caller finds it
//! gone.

mod annotations;
mod patch;
mod pod;
mod probe;
mod yaml;

#[cfg(test)]
mod tests;

use serde_json::Value;

pub use annotations::{Annotations, Warning};
pub use patch::patch;
pub use pod::PROXY;
pub use yaml::manifest;

/// What is the same for every pod of a cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The image with `outrigger-proxy`.
    pub image: String,
    /// Its pull policy.
    pub pull_policy: String,
    /// Where the control plane is, `host:port`.
    pub control_plane: String,
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Roots that authenticate the control plane, in PEM.
    pub trust_bundle: String,
    /// Where traces go; empty: nowhere.
    pub otlp_endpoint: String,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// This is the pod with the proxy.
    Injected {
        /// The pod.
        pod: Box<Value>,
        /// What its author should know.
        warnings: Vec<Warning>,
    },
    /// It stays as it is.
    Left(Reason),
    /// It must not run: it could be protected only in appearance.
    Refused(String),
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its author said so.
    OptedOut,
    /// It has the proxy already.
    Already,
}

/// The pod with the proxy.
#[must_use]
pub fn inject(pod: &Value, settings: &Settings) -> Outcome {
    let annotations = match Annotations::of(pod) {
        Ok(annotations) => annotations,
        Err(why) => return Outcome::Refused(why),
    };
    if annotations.opted_out {
        return Outcome::Left(Reason::OptedOut);
    }
    if pod::has_proxy(pod) {
        return Outcome::Left(Reason::Already);
    }
    if let Some(why) = pod::obstacle(pod) {
        return Outcome::Refused(why);
    }
    let mut new = pod.clone();
    pod::add(&mut new, &annotations, settings);
    Outcome::Injected {
        pod: Box::new(new),
        warnings: annotations.warnings,
    }
}
