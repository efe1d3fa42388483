//! The resource types that the proxy subscribes to.

/// One xDS resource type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    // In the order in which requests are sent and answers hoped for (xds_protocol.rst, "eventual
    // consistency": make before break).
    Cluster,
    Endpoints,
    Listener,
    Route,
    Secret,
}

impl Kind {
    /// All of them, in sending order.
    pub const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::Route,
        Self::Secret,
    ];

    /// The type URL on the wire.
    #[must_use]
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind with this type URL.
    #[must_use]
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Short name: metric label and word in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Route => "route",
            Self::Secret => "secret",
        }
    }

    /// Whether a state-of-the-world answer lists everything there is, so that what is missing is
    /// deleted (xds_protocol.rst, "deleting resources": only LDS and CDS).
    #[must_use]
    pub const fn answers_are_complete(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// Position in [`Kind::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One value per kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerKind<T>([T; Kind::ALL.len()]);

impl<T> PerKind<T> {
    pub(crate) const fn of(&self, kind: Kind) -> &T {
        let [cluster, endpoints, listener, route, secret] = &self.0;
        match kind {
            Kind::Cluster => cluster,
            Kind::Endpoints => endpoints,
            Kind::Listener => listener,
            Kind::Route => route,
            Kind::Secret => secret,
        }
    }

    pub(crate) const fn of_mut(&mut self, kind: Kind) -> &mut T {
        let [cluster, endpoints, listener, route, secret] = &mut self.0;
        match kind {
            Kind::Cluster => cluster,
            Kind::Endpoints => endpoints,
            Kind::Listener => listener,
            Kind::Route => route,
            Kind::Secret => secret,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &T)> {
        Kind::ALL.into_iter().zip(&self.0)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Kind, &mut T)> {
        Kind::ALL.into_iter().zip(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_type_url_and_stands_at_its_index() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(Kind::from_type_url(kind.type_url()), Some(kind));
            assert_eq!(kind.index(), at);
        }
        assert_eq!(Kind::from_type_url("type.googleapis.com/x.Y"), None);
    }
}
