//! Immutable domain types that steer the data path. `xds::decode` makes them from protobuf, the
//! workers read them through an atomic pointer, and nothing here knows protobuf, clocks or sockets.
//!
//! Bad states are unsayable where the type system allows it; where it does not, the constructor
//! refuses with [`Invalid`], whose text is what a control plane gets back as the NACK.

pub mod cluster;
pub mod endpoint;
pub mod listener;
pub mod matcher;
pub mod rbac;
pub mod route;
pub mod snapshot;
pub mod tls;
pub mod units;

pub use cluster::Cluster;
pub use endpoint::Endpoints;
pub use listener::Listener;
pub use route::RouteConfig;
pub use snapshot::Snapshot;
pub use units::{ClusterName, ListenerName, RouteConfigName, SpiffeId, TrustDomain};

/// Why a resource was refused: `cluster "cart": outlier_detection.interval: must be over 0s`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {path}: {why}")]
pub struct Invalid {
    /// Kind and name of the resource, `cluster "cart"`.
    pub resource: Box<str>,
    /// Path of the field inside the resource, in protobuf field names.
    pub path: String,
    /// What is wrong with it, and what would be right.
    pub why: Box<str>,
}

impl Invalid {
    /// An error at `path`; the resource is filled in by whoever knows its name.
    pub fn at(path: impl Into<String>, why: impl Into<Box<str>>) -> Self {
        Self {
            resource: "".into(),
            path: path.into(),
            why: why.into(),
        }
    }

    /// The same error with `outer` put before its path.
    #[must_use]
    pub fn under(mut self, outer: &str) -> Self {
        self.path = match self.path.as_str() {
            "" => outer.to_owned(),
            inner if inner.starts_with('[') => format!("{outer}{inner}"),
            inner => format!("{outer}.{inner}"),
        };
        self
    }

    /// The same error, belonging to the resource `kind "name"`.
    #[must_use]
    pub fn of(mut self, kind: &str, name: &str) -> Self {
        self.resource = format!("{kind} {name:?}").into();
        self
    }
}
