//! Between the protocol's own terms and the discovery messages.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use outrigger_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource, ResourceError,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc::Status as RpcStatus,
};
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::{Code, Status, transport::Channel};

use super::{
    client::{Answer, Received},
    decode,
    kind::Kind,
    protocol::{Body, Name, Request, Variant},
};

/// tonic's default of 4 MiB is below what a control plane sends for a large mesh in one answer;
/// this is above any sane one, and still bounds what a broken one can make us hold (XD-08).
pub const MAX_ANSWER: usize = 64 << 20;

/// What a stream gives: an answer, or `None` for one of a type that is not known.
pub(crate) type Item = Result<Option<Answer>, Status>;

/// Opens the stream. Nothing is sent, and nothing received, before the result is polled; the server
/// may hold back its headers until it has something to say.
pub(crate) fn open(
    channel: Channel,
    variant: Variant,
    node: Node,
    requests: mpsc::Receiver<Request>,
) -> impl Stream<Item = Item> + Send + Unpin {
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let opened = async move {
        Ok::<_, Status>(match variant {
            Variant::Delta => {
                let requests = outgoing(requests, move |request| delta(request, &node));
                let answers = client.delta_aggregated_resources(requests).await?;
                answers.into_inner().map_ok(delta_answer).left_stream()
            }
            Variant::Sotw => {
                let requests = outgoing(requests, move |request| sotw(request, &node));
                let answers = client.stream_aggregated_resources(requests).await?;
                answers.into_inner().map_ok(sotw_answer).right_stream()
            }
        })
    };
    stream::once(Box::pin(opened)).try_flatten()
}

fn outgoing<T>(
    mut requests: mpsc::Receiver<Request>,
    message: impl Fn(Request) -> T,
) -> impl Stream<Item = T> {
    stream::poll_fn(move |cx| requests.poll_recv(cx)).map(message)
}

fn strings(names: Vec<Name>) -> Vec<String> {
    names.into_iter().map(|name| name.to_string()).collect()
}

fn error_detail(error: Option<String>) -> Option<RpcStatus> {
    error.map(|message| RpcStatus {
        code: Code::InvalidArgument as i32,
        message,
        details: Vec::new(),
    })
}

fn delta(request: Request, node: &Node) -> DeltaDiscoveryRequest {
    let mut message = DeltaDiscoveryRequest {
        node: request.with_node.then(|| node.clone()),
        type_url: request.kind.type_url().to_owned(),
        response_nonce: request.nonce,
        error_detail: error_detail(request.error),
        ..DeltaDiscoveryRequest::default()
    };
    if let Body::Delta {
        subscribe,
        unsubscribe,
        initial_versions,
    } = request.body
    {
        message.resource_names_subscribe = strings(subscribe);
        message.resource_names_unsubscribe = strings(unsubscribe);
        let versions = initial_versions.into_iter();
        message.initial_resource_versions = versions
            .map(|(name, version)| (name.to_string(), version.to_string()))
            .collect();
    }
    message
}

fn sotw(request: Request, node: &Node) -> DiscoveryRequest {
    let mut message = DiscoveryRequest {
        node: request.with_node.then(|| node.clone()),
        type_url: request.kind.type_url().to_owned(),
        response_nonce: request.nonce,
        error_detail: error_detail(request.error),
        ..DiscoveryRequest::default()
    };
    if let Body::Sotw { version, names } = request.body {
        message.version_info = version;
        message.resource_names = strings(names);
    }
    message
}

fn errors(all: Vec<ResourceError>) -> Vec<(String, String)> {
    let each = all.into_iter();
    each.map(|error| {
        let name = error.resource_name.unwrap_or_default().name;
        (name, error.error_detail.unwrap_or_default().message)
    })
    .collect()
}

fn known(type_url: &str) -> Option<Kind> {
    let kind = Kind::from_type_url(type_url);
    if kind.is_none() {
        tracing::warn!(type_url, "an answer of a type that was not asked for");
    }
    kind
}

fn delta_answer(message: DeltaDiscoveryResponse) -> Option<Answer> {
    let kind = known(&message.type_url)?;
    Some(Answer {
        kind,
        nonce: message.nonce,
        version: message.system_version_info,
        resources: message.resources.into_iter().map(received).collect(),
        removed: message.removed_resources,
        errors: errors(message.resource_errors),
    })
}

fn sotw_answer(message: DiscoveryResponse) -> Option<Answer> {
    let kind = known(&message.type_url)?;
    let version = message.version_info;
    let resources = message.resources.into_iter().map(|any| {
        // A resource with a TTL comes wrapped.
        decode::unwrapped(&any).map_or_else(
            || Received {
                name: String::new(),
                version: version.clone(),
                ttl: None,
                body: Some(body(any)),
            },
            |inner| Received {
                version: version.clone(),
                ..received(inner)
            },
        )
    });
    Some(Answer {
        kind,
        nonce: message.nonce,
        resources: resources.collect(),
        version,
        removed: Vec::new(),
        errors: errors(message.resource_errors),
    })
}

fn received(resource: Resource) -> Received {
    let ttl = resource.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
    Received {
        name: resource.name,
        version: resource.version,
        // Zero, or a time beyond all clocks, is no TTL.
        ttl: ttl.filter(|ttl| !ttl.is_zero() && *ttl < Duration::from_secs(1 << 30)),
        body: resource.resource.map(body),
    }
}

fn body(any: Any) -> (String, Bytes) {
    // The vector may be larger than what it holds.
    (any.type_url, Bytes::from(any.value.into_boxed_slice()))
}
