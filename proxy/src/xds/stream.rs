//! The task that keeps one ADS stream open: connects, sends what the client wants to say, hands it
//! what the server answers, starts anew when the stream ends or is dead.
//!
//! Nothing is dropped for want of a stream. A server that accepts but never answers is left for
//! another: HTTP/2 PINGs find a dead process, [`FIRST_ANSWER`] one that only looks alive (LB-02).
//! Attempts back off with full jitter, and only an answer resets that (XD-05).

#[cfg(test)]
mod tests;

use std::{
    future::{Future, pending},
    io,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    sync::atomic::Ordering,
    time::Duration,
};

use futures_util::StreamExt;
use http::Uri;
use rand::rngs::StdRng;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::{
    client::{Client, Publish, Subscription, WallClock},
    demand::{Ask, Demand, Destinations},
    node::NodeInfo,
    persist::{self, PersistError},
    protocol::{Request, Variant},
    stats::Stats,
    view::View,
    wire,
};
use crate::config::units::Backoff;

/// For one attempt: name, TCP, TLS, HTTP/2.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A new stream on which the server owes an answer and gives none for so long is dead.
pub const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// HTTP/2 PING interval, and how long its answer may take.
pub const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// A destination that no connection used for so long is not kept any more.
pub const IDLE: Duration = Duration::from_secs(3600);
/// First and longest wait between attempts. A thousand proxies that lost the same server come back
/// spread over these.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Requests on their way to the socket; more wait in the protocol, where they merge.
const MAX_REQUESTS: usize = 16;

/// What the stream needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: NodeInfo,
    pub variant: Variant,
    pub subscription: Subscription,
    /// See [`IDLE`].
    pub idle: Duration,
    /// Where the last good resources are kept, if anywhere.
    pub state_dir: Option<PathBuf>,
}

/// The task, before it runs.
#[derive(Debug)]
pub struct Xds {
    client: Client,
    asked: mpsc::Receiver<Ask>,
    node: NodeInfo,
    stats: Arc<Stats>,
    save: Save,
}

/// What others hold of it.
#[derive(Clone, Debug)]
pub struct Handles {
    /// For the data path.
    pub demand: Demand,
    /// For the admin.
    pub view: View,
    /// For telemetry.
    pub stats: Arc<Stats>,
}

/// Why a session ended.
enum End {
    /// Closed, after the server had answered: a restart, or the age limit of a connection.
    Closed,
    /// Failed before any answer, or found dead.
    Dead(String),
    Stopped,
}

impl Xds {
    /// Reads what an earlier run saved and publishes it if it is any good.
    ///
    /// # Panics
    /// Never; it has to be called inside a tokio runtime for its clock.
    #[must_use]
    pub fn new(settings: Settings, publish: Publish, clock: &WallClock) -> (Self, Handles) {
        let stats = Arc::new(Stats::default());
        let (destinations, demand, asked) = Destinations::new(settings.idle);
        let mut client = Client::new(
            settings.variant,
            &settings.subscription,
            destinations,
            Arc::clone(&stats),
            publish,
            Arc::clone(clock),
        );
        let save = Save {
            dir: settings.state_dir,
            node: settings.node.id.clone(),
            due: None,
            running: None,
        };
        save.load_into(&mut client, clock);
        let demand = match settings.subscription {
            Subscription::Named(_) => demand,
            Subscription::Everything => Demand::none(),
        };
        let handles = Handles {
            demand,
            view: View::new(Arc::clone(client.store())),
            stats: Arc::clone(&stats),
        };
        let task = Self {
            client,
            asked,
            node: settings.node,
            stats,
            save,
        };
        (task, handles)
    }

    /// Runs until `stop`. `connector` makes one connection a call, to whichever server is next.
    pub async fn run<C>(mut self, connector: C, mut rng: StdRng, stop: CancellationToken)
    where
        C: Service<Uri, Error = io::Error> + Clone + Send + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin,
        C::Future: Send,
    {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1).unwrap_or(Backoff::REQUEST);
        let mut failures = 0;
        loop {
            let attempt = connect(connector.clone());
            let end = match self.meanwhile(attempt, &stop).await {
                None => End::Stopped,
                Some(Err(error)) => End::Dead(error),
                Some(Ok(channel)) => self.session(channel, &stop).await,
            };
            match end {
                End::Stopped => break,
                End::Closed => {
                    failures = 0;
                    self.client.disconnected();
                    tracing::info!("the control plane closed the stream");
                }
                End::Dead(why) => {
                    self.stats.failures.fetch_add(1, Ordering::Relaxed);
                    self.client.unreachable();
                    tracing::warn!(why, failures, "no stream to the control plane");
                    self.stats.set_trouble(Some(why));
                }
            }
            let wait = tokio::time::sleep(backoff.wait(failures, &mut rng));
            failures = failures.saturating_add(1);
            if self.meanwhile(wait, &stop).await.is_none() {
                break;
            }
        }
        self.save.last(&self.client).await;
    }

    /// Does what is due while something else is waited for; `None` when it is time to stop.
    async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
        stop: &CancellationToken,
    ) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let due = self.due();
            tokio::select! {
                out = &mut work => return Some(out),
                () = stop.cancelled() => return None,
                Some(ask) = self.asked.recv() => self.client.ask(ask, Instant::now()),
                () = at(due) => self.timer(),
                () = self.save.written() => {}
            }
            self.save.note(&mut self.client);
        }
    }

    async fn session(&mut self, channel: Channel, stop: &CancellationToken) -> End {
        let (send, requests) = mpsc::channel(MAX_REQUESTS);
        let begun = Instant::now();
        self.client.connected(begun);
        self.stats.streams.fetch_add(1, Ordering::Relaxed);
        let variant = self.client.protocol().variant();
        let mut answers = wire::open(channel, variant, self.node.message(), requests);
        loop {
            let full = self.pump(&send);
            let silent = !self.client.protocol().answered() && self.client.protocol().owed();
            let dead = silent.then(|| begun + FIRST_ANSWER);
            let due = self.due();
            tokio::select! {
                answer = answers.next() => match answer {
                    Some(Ok(Some(answer))) => self.client.answer(answer, Instant::now()),
                    Some(Ok(None)) => {}
                    Some(Err(status)) => return self.ended(&status.to_string()),
                    None => return self.ended("closed"),
                },
                () = stop.cancelled() => return End::Stopped,
                Some(ask) = self.asked.recv() => self.client.ask(ask, Instant::now()),
                () = at(dead) => {
                    return End::Dead(format!("no answer within {FIRST_ANSWER:?}"));
                }
                () = at(due) => self.timer(),
                () = self.save.written() => {}
                // Only to wake up when there is room again.
                _ = send.reserve(), if full => {}
            }
            self.save.note(&mut self.client);
        }
    }

    /// Sends what is due. Returns whether the queue is full, so that more may be due.
    fn pump(&mut self, send: &mpsc::Sender<Request>) -> bool {
        while send.capacity() > 0 {
            let Some(request) = self.client.next_request(Instant::now()) else {
                return false;
            };
            if send.try_send(request).is_err() {
                return false;
            }
        }
        true
    }

    fn ended(&self, why: &str) -> End {
        if self.client.protocol().answered() {
            tracing::debug!(why, "stream ended");
            End::Closed
        } else {
            End::Dead(why.to_owned())
        }
    }

    fn due(&self) -> Option<Instant> {
        let client = self.client.deadline();
        client.into_iter().chain(self.save.due()).min()
    }

    fn timer(&mut self) {
        let now = Instant::now();
        self.client.timer(now);
        self.save.timer(&self.client, now);
    }
}

/// Sleeps until a moment, or for ever.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

async fn connect<C>(connector: C) -> Result<Channel, String>
where
    C: Service<Uri, Error = io::Error> + Send + 'static,
    C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin,
    C::Future: Send,
{
    let endpoint = Endpoint::from_static("http://control-plane")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| {
        // tonic's own text is "transport error"; the reason is behind it.
        let source = std::error::Error::source(&error);
        source.map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// Keeps the file up to date.
#[derive(Debug)]
struct Save {
    dir: Option<PathBuf>,
    node: String,
    due: Option<Instant>,
    running: Option<JoinHandle<Result<(), PersistError>>>,
}

impl Save {
    fn load_into(&self, client: &mut Client, clock: &WallClock) {
        let Some(dir) = &self.dir else { return };
        match persist::load(dir, &self.node) {
            Ok(saved) if saved.is_empty() => {}
            Ok(saved) => {
                let newest = saved.iter().map(|one| one.updated).max();
                let age = newest.and_then(|newest| clock().duration_since(newest).ok());
                let count = saved.len();
                tracing::warn!(
                    count,
                    ?age,
                    "serving from saved resources until a server answers"
                );
                client.restore(saved);
            }
            Err(error) => tracing::error!(%error, "saved resources are not used"),
        }
    }

    /// Plans a write if something changed.
    fn note(&mut self, client: &mut Client) {
        if client.take_dirty() && self.dir.is_some() && self.due.is_none() {
            self.due = Some(Instant::now() + persist::DEBOUNCE);
        }
    }

    /// When to write; a write that still runs goes first.
    fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.running.is_none())
    }

    fn timer(&mut self, client: &Client, now: Instant) {
        if self.due().is_some_and(|due| due <= now) {
            self.due = None;
            self.write(client);
        }
    }

    fn write(&mut self, client: &Client) {
        let Some(dir) = self.dir.clone() else { return };
        let (node, all) = (self.node.clone(), client.save());
        let job = move || persist::store(&dir, &node, &all);
        self.running = Some(tokio::task::spawn_blocking(job));
    }

    /// Waits for a write that runs, or for ever.
    async fn written(&mut self) {
        let Some(running) = &mut self.running else {
            return pending().await;
        };
        match running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "resources are not saved"),
            Err(error) => tracing::error!(%error, "saving resources was interrupted"),
        }
        self.running = None;
    }

    /// Before the task ends.
    async fn last(&mut self, client: &Client) {
        if self.running.is_some() {
            self.written().await;
        }
        if self.due.take().is_some() {
            self.write(client);
            self.written().await;
        }
    }
}
