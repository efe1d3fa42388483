//! What an operator can ask the proxy and tell it, over HTTP/1.1, on three ports of the control
//! thread, so that nothing asked here slows a request down.
//!
//! * [`ADMIN`], loopback only: what is configured, who is well, log level, drain, quit. Paths and
//!   JSON are Envoy's wherever Envoy has them, so that its tools and people's fingers work.
//! * [`TELEMETRY`]: `/metrics` for Prometheus.
//! * [`HEALTH`]: `/healthz/ready` and `/healthz/live` for the kubelet, and the probes that it has
//!   for the application.
//!
//! A page that changes anything wants a POST, and one that no browser's page has sent.

mod call;
mod certs;
mod clusters;
mod config_dump;
mod probe;
mod ready;
mod server;
mod state;
mod stats;
mod steer;

use std::{fmt, sync::Arc};

use tokio::{sync::watch, time::Instant};

pub use call::Page;
pub use probe::Prober;
pub use ready::{BlockReady, Readiness};
pub use server::{MAX_BODY, MAX_CONNECTIONS, bind, serve};

use crate::{
    control::WallClock,
    policy::worker::Shared,
    xds::{NodeInfo, ResourceView, Stats, View},
};

/// Where a resource came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file, read at the start.
    File,
    /// The control plane.
    ControlPlane,
}

/// How the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quit {
    /// At once, whatever is open (KU-03).
    Now,
    /// As on SIGTERM.
    Gracefully,
}

/// Puts a log filter in force if one is given, and returns the one in force then; the error says
/// what is wrong with it.
pub type LogFilter = Box<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// Everything that the pages show and steer.
pub struct Admin {
    pub node: NodeInfo,
    pub shared: Arc<Shared>,
    /// Where resources come from.
    pub sources: Vec<(Origin, View)>,
    /// What happens on the stream to the control plane, if there is one.
    pub stream: Option<Arc<Stats>>,
    pub readiness: Readiness,
    pub prober: Prober,
    pub log_filter: LogFilter,
    /// Told when somebody asks the process to end.
    pub quit: watch::Sender<Option<Quit>>,
    pub started: Instant,
    pub clock: WallClock,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("node", &self.node.id)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// All resources of a kind, with where they came from.
    fn resources(&self, kind: crate::xds::Kind) -> impl Iterator<Item = (Origin, ResourceView)> {
        let each = self.sources.iter();
        each.flat_map(move |(origin, view)| {
            let resources = view.resources(kind).into_iter();
            resources.map(move |resource| (*origin, resource))
        })
    }
}

/// Pages of the admin port.
pub static ADMIN: &[Page] = &[
    Page::shows("/", &[], "this list", call::help),
    Page::shows(
        "/certs",
        &[],
        "certificate and trust bundle in force, and their ends",
        certs::page,
    ),
    Page::shows(
        "/clusters",
        &["format"],
        "clusters and endpoints: health, load, limits, breakers; format=text|json",
        clusters::page,
    ),
    Page::shows(
        "/config_dump",
        &["resource", "name_regex", "include_eds"],
        "the configuration, as received; resource=LIST, name_regex=REGEX, include_eds",
        config_dump::page,
    ),
    Page::changes(
        "/drain_listeners",
        &[],
        "tell clients to leave, as before an end; there is no way back",
        steer::drain,
    ),
    Page::shows("/help", &[], "this list", call::help),
    Page::shows(
        "/listeners",
        &["format"],
        "listeners and their addresses; format=text|json",
        state::listeners,
    ),
    Page::both(
        "/logging",
        &["level"],
        "log filter in force; POST level=FILTER puts another in force, as debug or info,h2=trace",
        steer::logging,
    ),
    Page::shows(
        "/memory",
        &[],
        "memory, by the kernel's books",
        state::memory,
    ),
    Page::changes(
        "/quitquitquit",
        &["graceful"],
        "end the process at once; graceful ends it as SIGTERM does",
        steer::quit,
    ),
    Page::shows(
        "/ready",
        &[],
        "200 when ready, else 503 and what is missing",
        state::ready,
    ),
    Page::shows(
        "/server_info",
        &[],
        "version, state, node",
        state::server_info,
    ),
    Page::shows(
        "/stats",
        &["filter", "format", "usedonly"],
        "numbers; filter=REGEX, format=text|json|prometheus, usedonly leaves zeros out",
        stats::page,
    ),
    Page::shows(
        "/stats/prometheus",
        &[],
        "numbers, for Prometheus",
        stats::prometheus,
    ),
];

/// Pages of the telemetry port.
pub static TELEMETRY: &[Page] = &[
    Page::shows(
        "/metrics",
        &[],
        "numbers, for Prometheus",
        stats::prometheus,
    ),
    Page::shows("/stats/prometheus", &[], "the same", stats::prometheus),
];

/// Pages of the health port.
pub static HEALTH: &[Page] = &[
    Page::shows(
        "/healthz/live",
        &[],
        "200 while the process works",
        state::live,
    ),
    Page::shows(
        "/healthz/ready",
        &[],
        "200 when ready, else 503 and what is missing",
        state::ready,
    ),
];

#[cfg(test)]
mod tests;
