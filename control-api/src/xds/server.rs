//! `envoy.service.discovery.v3.AggregatedDiscoveryService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use outrigger_proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    DeltaStream, NodeInfo, Proxies, ProxyEntry, Published, SotwStream, ViewOf, protocol::Protocol,
    proxies::Connected,
};
use crate::{
    clock::Clock,
    model::Objects,
    telemetry::Metrics,
    tls::Peer,
    translate::{ResourceType, World},
};

/// Changes that come one right after the other are sent together. Short: `apply` waits for it.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Answers that wait for the network; a proxy that does not read holds up only itself.
const QUEUE: usize = 16;
/// Proxies that are sent their first resources at the same time: when a thousand come back at once,
/// they are served one after the other instead of all being made to wait, and what is on its way to
/// them fits in memory (XD-05).
const NEWCOMERS: usize = 64;
/// A proxy that takes longer to answer its first resources does not keep others waiting.
const ADMISSION: Duration = Duration::from_secs(2);

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
        let before = Arc::clone(&published.borrow());
        published.send_replace(Arc::new(Published::after(&before, world)));
    }
}

/// Serves configuration streams.
#[derive(Debug, Clone)]
pub struct AdsServer {
    published: watch::Receiver<Arc<Published>>,
    proxies: Arc<Proxies>,
    clock: Clock,
    stop: CancellationToken,
    newcomers: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl AdsServer {
    /// Serves what is published, until `stop`, and enters who is connected into `proxies`.
    #[must_use]
    pub fn new(
        published: watch::Receiver<Arc<Published>>,
        proxies: Arc<Proxies>,
        clock: Clock,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            published,
            proxies,
            clock,
            stop,
            newcomers: Arc::new(Semaphore::new(NEWCOMERS)),
            metrics,
        }
    }

    /// Follows one stream until it ends.
    async fn follow<P: Protocol>(
        mut self,
        peer: Peer,
        mut requests: Streaming<P::Request>,
        answers: mpsc::Sender<Result<P::Answer, Status>>,
    ) -> Result<(), Status> {
        let Some(mut first) = requests.message().await? else {
            return Ok(());
        };
        let node = P::node(&mut first);
        let (node, connected) = self.connect(&peer, &node.unwrap_or_default())?;
        let mut state = P::default();
        let mut next = Some(first);
        let mut newcomer = Some(self.admit().await?);
        loop {
            if let Some(request) = next.take() {
                self.note_refusal(&node, P::refusal(&request));
                if let Some(answer) = state.take(request)? {
                    send(&answers, answer).await?;
                }
            }
            let published = Arc::clone(&self.published.borrow_and_update());
            let view = ViewOf {
                published: &published,
                viewer: &node.viewer,
            };
            for answer in state.push(&view) {
                if let Some(kind) = ResourceType::of(P::type_of(&answer)) {
                    self.metrics.answered(kind);
                }
                send(&answers, answer).await?;
            }
            connected.update(|entry| refresh(entry, &state));
            if state.looked_at() > 0 && state.settled() == state.looked_at() {
                // It has what it came for.
                newcomer = None;
            }
            let patience = async {
                match &newcomer {
                    Some(_) => tokio::time::sleep(ADMISSION).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {
                    return Err(Status::unavailable("the control plane is stopping"));
                }
                () = answers.closed() => return Ok(()),
                () = patience => newcomer = None,
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

    fn note_refusal(&self, node: &NodeInfo, refusal: Option<(&str, &str)>) {
        if let Some((url, reason)) = refusal {
            tracing::warn!(
                node = node.id,
                kind = url,
                reason,
                "proxy refused configuration"
            );
            if let Some(kind) = ResourceType::of(url) {
                self.metrics.refused(kind);
            }
        }
    }

    /// Waits for its turn among those who come anew.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let stopping = |_| Status::unavailable("the control plane is stopping");
        let newcomers = Arc::clone(&self.newcomers);
        newcomers.acquire_owned().await.map_err(stopping)
    }

    /// Answers a stream in a task of its own.
    fn spawn<P: Protocol>(
        &self,
        request: Request<Streaming<P::Request>>,
    ) -> Result<Response<Answers<P::Answer>>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("nobody is at the other end"))?;
        let (answers, queue) = mpsc::channel(QUEUE);
        let server = self.clone();
        tokio::spawn(async move {
            let address = peer.address;
            let requests = request.into_inner();
            let ended = server.follow::<P>(peer, requests, answers.clone()).await;
            if let Err(status) = ended {
                tracing::info!(%address, reason = status.message(), "stream ended");
                // Gone already when the proxy is.
                drop(answers.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(from_queue(queue))))
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
            certificate_until: peer.certificate_until,
            sent: 0,
            settled: 0,
            rejected: Vec::new(),
            held: Vec::new(),
        });
        Ok((node, connected))
    }
}

fn refresh(entry: &mut ProxyEntry, state: &impl Protocol) {
    entry.sent = state.looked_at();
    entry.settled = state.settled();
    entry.rejected = state.rejected();
    entry.held = state.held();
}

async fn send<T>(answers: &mpsc::Sender<Result<T, Status>>, answer: T) -> Result<(), Status> {
    let sent = answers.send(Ok(answer)).await;
    sent.map_err(|_| Status::cancelled("the proxy went away"))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsServer {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.spawn::<SotwStream>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.spawn::<DeltaStream>(request)
    }
}

/// A queue as a stream.
pub(crate) fn from_queue<T: Send>(queue: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    futures_util::stream::unfold(queue, |mut queue| async {
        let next = queue.recv().await?;
        Some((next, queue))
    })
}
