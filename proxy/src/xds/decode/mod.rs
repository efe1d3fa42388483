//! Protobuf in, domain types out. The only place that names the resource messages of
//! `outrigger_proto`; nothing past it sees one.
//!
//! Parse, don't validate: a resource becomes a `config` value or an [`Invalid`] that names the
//! resource, the path of the field and the reason. What it sets and we do not honour is either
//! harmless, and then remarked by path, or would change the meaning if passed over, and then the
//! resource is refused. An unknown extension is refused unless it is marked optional.

mod action;
mod at;
mod balancing;
mod cluster;
mod endpoint;
mod health;
mod http;
mod listener;
mod matcher;
mod rbac;
mod route;
mod tls;
mod value;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use at::{At, Notes};
use outrigger_proto::{
    any::{self, Any},
    envoy::{
        config::{
            cluster::v3::Cluster as ClusterMessage,
            core::v3::{ConfigSource, config_source::ConfigSourceSpecifier},
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener as ListenerMessage,
            route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::Resource as Wrapper,
    },
};
use prost::{Message, Name};
use value::Decoded;

use super::kind::Kind;
use crate::config::{Cluster, Endpoints, Invalid, Listener, RouteConfig, tls::InlineSecret};

/// A resource in domain terms.
#[derive(Clone, Debug)]
pub enum Resource {
    Cluster(Arc<Cluster>, Option<Arc<Endpoints>>),
    Endpoints(Arc<Endpoints>),
    Listener(Arc<Listener>),
    Route(Arc<RouteConfig>),
    Secret(Arc<InlineSecret>),
}

/// A resource that was understood.
#[derive(Debug)]
pub struct Parsed {
    /// The name inside the resource.
    pub name: String,
    pub resource: Resource,
    /// Paths of fields that were passed over.
    pub ignored: Vec<String>,
}

/// Decodes one resource of a type from its wire form.
///
/// # Errors
/// The resource, the field and the reason.
pub fn parse(kind: Kind, bytes: &[u8]) -> Result<Parsed, Invalid> {
    match kind {
        Kind::Cluster => parse_as(
            kind,
            bytes,
            |m: &ClusterMessage| &m.name,
            |at, message| {
                let (cluster, members) = cluster::cluster(at, message)?;
                Ok(Resource::Cluster(Arc::new(cluster), members.map(Arc::new)))
            },
        ),
        Kind::Endpoints => parse_as(
            kind,
            bytes,
            |m: &ClusterLoadAssignment| &m.cluster_name,
            |at, message| {
                let endpoints = endpoint::assignment(at, message)?;
                Ok(Resource::Endpoints(Arc::new(endpoints)))
            },
        ),
        Kind::Listener => parse_as(
            kind,
            bytes,
            |m: &ListenerMessage| &m.name,
            |at, message| {
                Ok(Resource::Listener(Arc::new(listener::listener(
                    at, message,
                )?)))
            },
        ),
        Kind::Route => parse_as(
            kind,
            bytes,
            |m: &RouteConfiguration| &m.name,
            |at, message| Ok(Resource::Route(Arc::new(route::config(at, message)?))),
        ),
        Kind::Secret => parse_as(
            kind,
            bytes,
            |m: &Secret| &m.name,
            |at, message| Ok(Resource::Secret(Arc::new(tls::secret(at, message)?))),
        ),
    }
}

fn parse_as<M: Message + Name + Default>(
    kind: Kind,
    bytes: &[u8],
    name: fn(&M) -> &String,
    decode: fn(At<'_>, &M) -> Decoded<Resource>,
) -> Result<Parsed, Invalid> {
    let notes = Notes::default();
    let at = At::top(&notes);
    let refuse = |name: &str, why: Invalid| why.of(kind.as_str(), name);
    // prost bounds recursion and allocates no more than the bytes there are (XD-08).
    let message =
        M::decode(bytes).map_err(|error| refuse("", at.bad(format!("malformed: {error}"))))?;
    let own = name(&message);
    if own.is_empty() {
        return Err(refuse("", at.field("name").bad("must not be empty")));
    }
    at.suspect_if(message.encoded_len() != bytes.len());
    let resource = decode(at, &message).map_err(|why| refuse(own, why))?;
    if notes.is_suspicious() {
        for finding in outrigger_proto::unknown::scan::<M>(bytes).findings {
            notes.push(finding.path);
        }
    }
    Ok(Parsed {
        name: own.clone(),
        resource,
        ignored: notes.into_vec(),
    })
}

/// The name inside a resource, for the protocol variant that does not say it outside.
#[must_use]
pub fn name_of(kind: Kind, bytes: &[u8]) -> Option<String> {
    fn read<M: Message + Default>(bytes: &[u8], name: fn(M) -> String) -> Option<String> {
        M::decode(bytes).ok().map(name)
    }
    match kind {
        Kind::Cluster => read(bytes, |m: ClusterMessage| m.name),
        Kind::Endpoints => read(bytes, |m: ClusterLoadAssignment| m.cluster_name),
        Kind::Listener => read(bytes, |m: ListenerMessage| m.name),
        Kind::Route => read(bytes, |m: RouteConfiguration| m.name),
        Kind::Secret => read(bytes, |m: Secret| m.name),
    }
}

/// The wrapper that a state-of-the-world answer puts around a resource with a TTL.
#[must_use]
pub fn unwrapped(any: &Any) -> Option<Wrapper> {
    any::is::<Wrapper>(any).then(|| any::unpack(any).unwrap_or_default())
}

/// A resource for people's eyes, in Envoy's JSON; keys are redacted.
#[must_use]
pub fn to_json(kind: Kind, bytes: &[u8]) -> serde_json::Value {
    outrigger_proto::json::any_to_json_redacted(&Any {
        type_url: kind.type_url().to_owned(),
        value: bytes.to_vec(),
    })
}

/// Whether an extension may be passed over wherever it stands: it only observes, or it serves
/// another data plane's needs.
fn is_noop(any: Option<&Any>) -> bool {
    /// Extensions of Istio's sidecars (they exchange labels, write statistics, rename ALPN), and
    /// statistics of gRPC calls, which are counted anyway.
    const HARMLESS: [&str; 7] = [
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "envoy.extensions.filters.http.set_filter_state.v3.Config",
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        "io.istio.http.peer_metadata.Config",
        "io.istio.network.metadata_exchange.Config",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "stats.PluginConfig",
    ];
    use outrigger_proto::{udpa::r#type::v1::TypedStruct as Older, xds::r#type::v3::TypedStruct};
    let Some(any) = any else { return false };
    let harmless = |url: &str| HARMLESS.contains(&any::type_name(url));
    harmless(&any.type_url)
        || any::unpack::<TypedStruct>(any).is_ok_and(|inner| harmless(&inner.type_url))
        || any::unpack::<Older>(any).is_ok_and(|inner| harmless(&inner.type_url))
}

/// Resources come from the one control plane there is: over ADS, or by a source of its own that we
/// read as the same.
fn own_source(at: At<'_>, source: Option<&ConfigSource>) -> Decoded<()> {
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::PathConfigSource(_)) => {
            Err(at.field("path_config_source").bad("files are not watched"))
        }
        Some(
            ConfigSourceSpecifier::Ads(_)
            | ConfigSourceSpecifier::Self_(_)
            | ConfigSourceSpecifier::ApiConfigSource(_),
        )
        | None => Ok(()),
    }
}
