//! `envoy.service.discovery.v3.AggregatedDiscoveryService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use outrigger_proto::envoy::config::core::v3::Node;
use outrigger_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{DeltaStream, NodeInfo, Proxies, ProxyEntry, Published, ViewOf, proxies::Connected};
use crate::{
    clock::Clock,
    model::Objects,
    tls::Peer,
    translate::{ResourceType, World},
};

/// Changes that come one right after the other are sent together. Short: `apply` waits for it.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Answers that wait for the network; a proxy that does not read holds up only itself.
const QUEUE: usize = 16;

/// Turns each state of the objects into a published world, until `stop`.
pub async fn publish(
    mut objects: watch::Receiver<Arc<Objects>>,
    trust_domain: String,
    published: watch::Sender<Arc<Published>>,
    stop: CancellationToken,
) {
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = objects.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        tokio::time::sleep(DEBOUNCE).await;
        let now = Arc::clone(&objects.borrow_and_update());
        let world = World::new(now, &trust_domain);
        published.send_replace(Arc::new(Published::new(world)));
    }
}

/// Serves configuration streams.
#[derive(Debug, Clone)]
pub struct AdsServer {
    published: watch::Receiver<Arc<Published>>,
    proxies: Arc<Proxies>,
    clock: Clock,
    stop: CancellationToken,
}

impl AdsServer {
    /// Serves what is published, until `stop`, and enters who is connected into `proxies`.
    #[must_use]
    pub const fn new(
        published: watch::Receiver<Arc<Published>>,
        proxies: Arc<Proxies>,
        clock: Clock,
        stop: CancellationToken,
    ) -> Self {
        Self {
            published,
            proxies,
            clock,
            stop,
        }
    }

    async fn delta(
        mut self,
        peer: Peer,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let Some(mut first) = requests.message().await? else {
            return Ok(());
        };
        let node = first.node.take();
        let (node, connected) = self.connect(&peer, &node.unwrap_or_default())?;
        let mut state = DeltaStream::default();
        let mut next = Some(first);
        loop {
            if let Some(request) = next.take() {
                match ResourceType::of(&request.type_url) {
                    Some(kind) => {
                        note_refusal(&node, &request);
                        state.request(kind, request)?;
                    }
                    None => send(&answers, none_of_type(request)).await?,
                }
            }
            let published = Arc::clone(&self.published.borrow_and_update());
            let view = ViewOf {
                published: &published,
                viewer: &node.viewer,
            };
            for answer in state.push(&view) {
                send(&answers, Some(answer)).await?;
            }
            connected.update(|entry| refresh(entry, &state));
            tokio::select! {
                () = self.stop.cancelled() => {
                    return Err(Status::unavailable("the control plane is stopping"));
                }
                () = answers.closed() => return Ok(()),
                changed = self.published.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane is stopping"))?;
                }
                message = requests.message() => match message? {
                    Some(request) => next = Some(request),
                    None => return Ok(()),
                },
            }
        }
    }

    fn connect(&self, peer: &Peer, node: &Node) -> Result<(Arc<NodeInfo>, Connected), Status> {
        let identity = peer.identity.clone().ok_or_else(|| {
            Status::unauthenticated("configuration is only for those with a certificate")
        })?;
        let node = NodeInfo::read(node, &identity).map_err(Status::invalid_argument)?;
        tracing::info!(node = node.id, %identity, address = %peer.address, "proxy connected");
        let node = Arc::new(node);
        let connected = self.proxies.add(ProxyEntry {
            node: Arc::clone(&node),
            identity,
            address: peer.address,
            since: self.clock.unix(),
            sent: 0,
            settled: 0,
            rejected: Vec::new(),
            held: Vec::new(),
        });
        Ok((node, connected))
    }
}

fn refresh(entry: &mut ProxyEntry, state: &DeltaStream) {
    entry.sent = state.looked_at();
    entry.settled = state.settled();
    entry.rejected = state.rejected().map(|(k, r)| (k, r.clone())).collect();
    let held = state.held();
    entry.held = held
        .map(|(k, n, v)| (k, n.to_owned(), v.to_owned()))
        .collect();
}

fn note_refusal(node: &NodeInfo, request: &DeltaDiscoveryRequest) {
    if let Some(error) = &request.error_detail {
        let (node, kind) = (&node.id, &request.type_url);
        tracing::warn!(
            node,
            kind,
            reason = error.message,
            "proxy refused configuration"
        );
    }
}

/// There is nothing of a type that we do not serve, and who asks must not wait for it.
fn none_of_type(request: DeltaDiscoveryRequest) -> Option<DeltaDiscoveryResponse> {
    let removed = request.resource_names_subscribe;
    (!removed.is_empty()).then(|| DeltaDiscoveryResponse {
        type_url: request.type_url,
        nonce: "0".to_owned(),
        removed_resources: removed,
        ..DeltaDiscoveryResponse::default()
    })
}

async fn send(
    answers: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    answer: Option<DeltaDiscoveryResponse>,
) -> Result<(), Status> {
    match answer {
        Some(answer) => answers
            .send(Ok(answer))
            .await
            .map_err(|_| Status::cancelled("the proxy went away")),
        None => Ok(()),
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsServer {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("use DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("nobody is at the other end"))?;
        let (answers, queue) = mpsc::channel(QUEUE);
        let server = self.clone();
        tokio::spawn(async move {
            let address = peer.address;
            let ended = server
                .delta(peer, request.into_inner(), answers.clone())
                .await;
            if let Err(status) = ended {
                tracing::info!(%address, reason = status.message(), "stream ended");
                // Gone already when the proxy is.
                drop(answers.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(from_queue(queue))))
    }
}

/// A queue as a stream.
pub(crate) fn from_queue<T: Send>(queue: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    futures_util::stream::unfold(queue, |mut queue| async {
        let next = queue.recv().await?;
        Some((next, queue))
    })
}
