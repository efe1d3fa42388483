//! Talking OTLP over gRPC to a collector, on connections that somebody else makes.

use std::{
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::{Resource, trace::SpanExporter as _};
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;
use tonic::transport;
use tower_service::Service;

use super::{Exporter, Queue};
use crate::{
    config::{ClusterName, listener::Collector},
    net::BoxIo,
};

/// OTLP's port for gRPC.
const PORT: u16 = 4317;
/// For name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The address of a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`.
    authority: String,
}

impl Endpoint {
    /// Reads `http://host[:port]`.
    ///
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "https is not spoken; use a collector in the pod or in the mesh".into(),
                );
            }
            _ => return Err(format!("{text:?} does not begin with http://")),
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{text:?} has a path; OTLP over gRPC has none"));
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("{text:?} names no host"))?;
        Ok(Self {
            authority: format!("{host}:{}", uri.port_u16().unwrap_or(PORT)),
        })
    }
}

/// Where a connection has to go.
#[derive(Clone, Debug)]
pub enum To {
    /// `host:port`.
    Address(String),
    Cluster(ClusterName),
}

/// Makes connections.
pub type Dial = Arc<dyn Fn(To) -> BoxFuture<'static, io::Result<BoxIo>> + Send + Sync>;

/// What spans say about where they come from.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    /// Tells the workload's instances apart.
    pub instance: String,
    pub region: String,
    pub zone: String,
}

impl Workload {
    /// The standard variable `OTEL_RESOURCE_ATTRIBUTES` may add to it, such as the pod's name.
    fn resource(&self, service_name: &str) -> Resource {
        let name = if service_name.is_empty() {
            &self.name
        } else {
            service_name
        };
        let more = [
            ("service.namespace", &self.namespace),
            ("service.instance.id", &self.instance),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let more = more.into_iter().filter(|(_, value)| !value.is_empty());
        Resource::builder()
            .with_service_name(name.to_owned())
            .with_attributes(more.map(|(key, value)| KeyValue::new(key, value.clone())))
            .build()
    }
}

/// Sends the spans in `queue` until `stop`, and then those that wait: to `endpoint`, or, without
/// one, to the collectors that the configuration names.
pub async fn export(
    queue: Queue,
    endpoint: Option<Endpoint>,
    workload: Workload,
    dial: Dial,
    rng: StdRng,
    stop: CancellationToken,
) {
    let make = move |named: Option<&Collector>| {
        let (authority, to, name) = match (&endpoint, named) {
            (Some(own), _) => (
                own.authority.as_str(),
                To::Address(own.authority.clone()),
                "",
            ),
            (None, Some(named)) => {
                let authority = match &*named.authority {
                    "" => "collector",
                    authority => authority,
                };
                let to = To::Cluster(named.cluster.clone());
                (authority, to, &*named.service_name)
            }
            (None, None) => return None,
        };
        match client(authority, to, &dial) {
            Ok(mut client) => {
                client.set_resource(&workload.resource(name));
                Some(client)
            }
            Err(error) => {
                tracing::warn!(authority, %error, "the collector of traces is unusable");
                None
            }
        }
    };
    Exporter::new(queue, make, rng).run(stop).await;
}

fn client(authority: &str, to: To, dial: &Dial) -> Result<SpanExporter, ClientError> {
    let connector = Connector {
        to,
        dial: Arc::clone(dial),
    };
    let channel = transport::Endpoint::from_shared(format!("http://{authority}"))?
        .user_agent(concat!("outrigger-proxy/", env!("CARGO_PKG_VERSION")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(connector);
    Ok(SpanExporter::builder()
        .with_tonic()
        .with_channel(channel)
        // Repeating is the exporter's, which knows when to stop.
        .with_retry_policy(RetryPolicy::disabled())
        .build()?)
}

#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error(transparent)]
    Transport(#[from] transport::Error),
    #[error(transparent)]
    Otlp(#[from] opentelemetry_otlp::ExporterBuildError),
}

#[derive(Clone)]
struct Connector {
    to: To,
    dial: Dial,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<BoxIo>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<BoxIo>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connected = (self.dial)(self.to.clone());
        Box::pin(async move { connected.await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_perhaps_a_port() {
        let authority = |text| Endpoint::parse(text).map(|endpoint| endpoint.authority);
        assert_eq!(authority("http://jaeger:4317"), Ok("jaeger:4317".into()));
        assert_eq!(authority("http://10.0.0.1/"), Ok("10.0.0.1:4317".into()));
        assert_eq!(authority("http://[::1]:9"), Ok("[::1]:9".into()));
        for (bad, why) in [
            ("jaeger:4317", "http://"),
            ("https://jaeger:4317", "https"),
            ("http://jaeger:4317/v1/traces", "path"),
            ("http://", ""),
            ("", ""),
        ] {
            let error = authority(bad).expect_err(bad);
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
