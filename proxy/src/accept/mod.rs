//! An accepted connection, up to the point where its kind is known: where it was going, what it
//! speaks, which filter chain serves it, who the peer is.

mod http;
mod inspect;
mod opaque;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::{
        Listener, ListenerName,
        listener::{ChainKind, ConnFacts, Direction, FilterChain, Transport},
        rbac::Rbac,
        tls::ServerTls,
    },
    detect::Protocol,
    fault::Fault,
    net::{BoxIo, Io, Prefixed, canonical, original_destination, tune_accepted},
    policy::{
        authz,
        serve::Connection,
        worker::{Worker, World},
    },
    telemetry::{ConnectionRecord, TlsFailure},
    tls::{self, peer_identity},
    xds::{Demanded, InUse},
};

/// How long an unknown destination may take to be asked for.
const DEMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// For a client's TLS handshake (LK-05).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read of a client, and how long it is waited for, so that it sees why its handshake was
/// refused.
const PARTING_BYTES: u64 = 64 << 10;
const PARTING_TIME: Duration = Duration::from_secs(1);

/// Which socket a connection came in by.
#[derive(Clone, Debug)]
pub enum Door {
    /// The one that the kernel redirects to.
    Redirect(Direction),
    /// A listener with a socket of its own.
    Listener(ListenerName),
}

impl Door {
    fn direction(&self, world: &World) -> Direction {
        match self {
            Self::Redirect(direction) => *direction,
            Self::Listener(name) => {
                let listener = world.live.snapshot.listeners.get(name);
                listener.map_or(Direction::Inbound, |listener| listener.direction)
            }
        }
    }
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it was not redirected here; this port is not to be connected to")]
    NotRedirected,
    #[error("its destination is this proxy itself")]
    Loop,
    #[error("no listener serves it")]
    NoListener,
    #[error("the control plane cannot be asked for its destination")]
    NoConfig,
    #[error("no filter chain takes it ({0})")]
    NoChain(String),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Tls(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Refused {
    const fn fault(&self) -> Fault {
        match self {
            Self::NotRedirected | Self::Loop => Fault::LoopDetected,
            Self::NoListener | Self::NoConfig => Fault::NoConfig,
            Self::NoChain(_) => Fault::NoRoute,
            Self::Denied(_) => Fault::Denied,
            Self::Tls(_) => Fault::DownstreamTls,
            Self::Io(_) => Fault::DownstreamReset,
        }
    }
}

/// What the choice of a chain was based on; kept to choose again when configuration changes.
#[derive(Debug)]
struct Facts {
    source: SocketAddr,
    destination: SocketAddr,
    transport: Transport,
    server_name: Option<String>,
    protocols: Vec<Vec<u8>>,
}

impl Facts {
    fn chain(&self, listener: &Listener) -> Option<Arc<FilterChain>> {
        let protocols: Vec<&[u8]> = self.protocols.iter().map(Vec::as_slice).collect();
        let facts = ConnFacts {
            source: self.source,
            destination: self.destination,
            transport: self.transport,
            server_name: self.server_name.as_deref(),
            application_protocols: &protocols,
        };
        listener.chain(&facts).cloned()
    }
}

/// A connection whose chain is known.
struct Chosen {
    conn: Connection,
    chain: Arc<FilterChain>,
    facts: Facts,
    io: BoxIo,
    /// Negotiated in TLS.
    alpn: Option<Vec<u8>>,
    /// Seen in clear text.
    protocol: Option<Protocol>,
    /// Already dialled while waiting for the first byte.
    dialled: Option<opaque::Upstream>,
    /// Keeps the destination subscribed.
    _in_use: Option<InUse>,
}

/// Serves one connection to its end.
pub async fn connection(worker: Arc<Worker>, stream: TcpStream, source: SocketAddr, door: Door) {
    let _open = worker.shared.drain.connection();
    let telemetry = Arc::clone(&worker.shared.telemetry);
    let direction = door.direction(&worker.shared.world.load());
    let _counted = telemetry.accepted(direction);
    tune_accepted(&stream);
    let source = canonical(source);
    // Boxed: what a handshake needs is not kept as long as the connection lives.
    let Some(chosen) = Box::pin(admitted(&worker, stream, source, &door)).await else {
        return;
    };
    match chosen.chain.kind.clone() {
        ChainKind::Http(manager) => Box::pin(http::serve(&worker, chosen, manager)).await,
        ChainKind::Tcp(proxy) => Box::pin(opaque::serve(&worker, chosen, &proxy)).await,
    }
}

/// A connection with its chain; one that is not served is logged here. Apart from [`connection`],
/// so that its record does not stay for the life of the connection.
async fn admitted(
    worker: &Arc<Worker>,
    stream: TcpStream,
    source: SocketAddr,
    door: &Door,
) -> Option<Box<Chosen>> {
    let direction = door.direction(&worker.shared.world.load());
    let mut record = ConnectionRecord::new(direction, source, source, None, Instant::now());
    let refused = match choose(worker, stream, door, &mut record).await {
        Ok(Some(chosen)) => return Some(Box::new(chosen)),
        Ok(None) => None,
        Err(refused) => Some(refused),
    };
    record.ended = Instant::now();
    if let Some(refused) = refused {
        record.fault = Some(refused.fault());
        record.details = refused.to_string();
    }
    worker.shared.telemetry.connection(&record);
    None
}

/// Finds listener, protocol, chain and peer. `None` when the client left before saying anything.
async fn choose(
    worker: &Arc<Worker>,
    stream: TcpStream,
    door: &Door,
    record: &mut ConnectionRecord,
) -> Result<Option<Chosen>, Refused> {
    let source = record.source;
    let local = canonical(stream.local_addr()?);
    let original = original_destination(&stream)?;
    let destination = original.unwrap_or(local);
    record.destination = destination;
    let (listener, in_use) = match find(worker, door, original, destination).await {
        Ok(found) => found,
        Err(refused) => {
            stream.reset_on_drop();
            return Err(refused);
        }
    };
    let seen = inspect::inspect(worker, &listener, stream, source, destination).await?;
    let Some(seen) = seen else {
        return Ok(None);
    };
    let facts = seen.facts(source, destination);
    let Some(chain) = facts.chain(&listener) else {
        seen.io.reset_on_drop();
        return Err(Refused::NoChain(format!(
            "to {destination}, {}",
            seen.describe()
        )));
    };
    let mut conn = Connection {
        listener,
        source,
        destination,
        peer: None,
        server_name: facts.server_name.clone(),
        tls: false,
        cut: worker.shared.drain.cut(),
    };
    let inspect::Seen {
        io,
        prefix,
        protocol,
        dialled,
    } = seen;
    let (io, alpn) = match &chain.tls {
        None if prefix.is_empty() => (Box::new(io) as BoxIo, None),
        None => (Box::new(Prefixed::new(io, prefix)) as BoxIo, None),
        Some(tls) => {
            let seen = Prefixed::new(io, prefix);
            terminate(worker, tls, seen, &facts.protocols, &mut conn).await?
        }
    };
    record.peer.clone_from(&conn.peer);
    for rbac in &chain.rbac {
        if let Err(refused) = authorize(rbac, &conn) {
            io.reset_on_drop();
            return Err(refused);
        }
    }
    Ok(Some(Chosen {
        conn,
        chain,
        facts,
        io,
        alpn,
        protocol,
        dialled,
        _in_use: in_use,
    }))
}

/// The listener for a connection.
async fn find(
    worker: &Arc<Worker>,
    door: &Door,
    original: Option<SocketAddr>,
    destination: SocketAddr,
) -> Result<(Arc<Listener>, Option<InUse>), Refused> {
    let shared = &worker.shared;
    let world = shared.world.load_full();
    let direction = match door {
        Door::Listener(name) => {
            let listener = world.live.snapshot.listeners.get(name);
            return listener
                .map(|found| (Arc::clone(found), None))
                .ok_or(Refused::NoListener);
        }
        Door::Redirect(direction) => *direction,
    };
    // TC-10: whoever dials the redirect port itself would make us dial ourselves.
    let Some(original) = original else {
        return Err(Refused::NotRedirected);
    };
    let ip = original.ip();
    let own = ip.is_loopback() || shared.own_ips.contains(&ip);
    if own && shared.own_ports.contains(&original.port()) {
        return Err(Refused::Loop);
    }
    let mut in_use = None;
    if direction == Direction::Outbound {
        if let Some(found) = world.destination(destination) {
            if let Some(Demanded::Known(guard)) = shared.demand().peek(destination) {
                in_use = Some(guard);
            }
            return Ok((Arc::clone(found), in_use));
        }
        let asked = shared.demand().destination(destination);
        match timeout(DEMAND_TIMEOUT, asked).await {
            Ok(Demanded::Known(guard)) => {
                in_use = Some(guard);
                let world = shared.world.load_full();
                if let Some(found) = world.destination(destination) {
                    return Ok((Arc::clone(found), in_use));
                }
            }
            Ok(Demanded::Absent) => {}
            // Not known is not the same as not in the mesh: it is not let out in clear text.
            Ok(Demanded::Unavailable) | Err(_) => return Err(Refused::NoConfig),
        }
    }
    let world = shared.world.load_full();
    let found = world.catch_all(direction).cloned();
    found
        .map(|found| (found, in_use))
        .ok_or(Refused::NoListener)
}

/// Terminates the mesh's TLS (or a listener's own).
async fn terminate(
    worker: &Arc<Worker>,
    tls: &Arc<ServerTls>,
    io: Prefixed<TcpStream>,
    offered: &[Vec<u8>],
    conn: &mut Connection,
) -> Result<(BoxIo, Option<Vec<u8>>), Refused> {
    let direction = conn.listener.direction;
    let count = |why| worker.shared.telemetry.tls_failure(direction, why);
    let config = worker.shared.server_tls.config(tls).map_err(|error| {
        count(TlsFailure::NoIdentity);
        Refused::Tls(format!("TLS settings: {error}"))
    })?;
    let accept = TlsAcceptor::from(config).accept(io).into_fallible();
    let failed = |why: String| {
        let offered: Vec<_> = offered
            .iter()
            .map(|name| name.escape_ascii().to_string())
            .collect();
        Refused::Tls(format!(
            "TLS handshake: {why} (server name {}, ALPN {})",
            conn.server_name.as_deref().unwrap_or("-"),
            offered.join(" "),
        ))
    };
    let stream = match timeout(HANDSHAKE_TIMEOUT, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, io))) => {
            count(tls_failure(&error));
            tokio::spawn(part(io));
            return Err(failed(tls::explain(&error)));
        }
        Err(_) => {
            count(TlsFailure::Timeout);
            return Err(failed(format!("not done within {HANDSHAKE_TIMEOUT:?}")));
        }
    };
    let (_, session) = stream.get_ref();
    conn.peer = peer_identity(session.peer_certificates());
    conn.tls = true;
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    Ok((Box::new(stream), alpn))
}

/// Lets the alert that ends a handshake arrive: a close with unread data would be a reset, which
/// throws away what is on its way, and the client would not learn what is wrong.
async fn part(mut io: Prefixed<TcpStream>) {
    let rest = async {
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(PARTING_BYTES), &mut tokio::io::sink()).await
    };
    // However it ends, the connection is over.
    drop(timeout(PARTING_TIME, rest).await);
}

fn tls_failure(error: &std::io::Error) -> TlsFailure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::NoCertificatesPresented) => TlsFailure::NoPeerCertificate,
        Some(rustls::Error::InvalidCertificate(_)) => TlsFailure::PeerRefused,
        _ => TlsFailure::Protocol,
    }
}

fn authorize(rbac: &Rbac, conn: &Connection) -> Result<(), Refused> {
    let facts = authz::Connection {
        peer: conn.peer.as_ref(),
        source: conn.source,
        client: conn.source.ip(),
        destination: conn.destination,
        server_name: conn.server_name.as_deref(),
    };
    let verdict = authz::connection(rbac, &facts);
    if verdict.enforced.allowed {
        return Ok(());
    }
    Err(Refused::Denied(verdict.enforced.reason()))
}

/// The chain as the configuration now in force has it; `None` when nothing takes the connection any
/// more.
fn rechoose(world: &World, listener: &Listener, facts: &Facts) -> Option<Arc<FilterChain>> {
    let snapshot = &world.live.snapshot;
    let now = snapshot
        .listeners
        .get(&listener.name)
        .or_else(|| snapshot.by_destination.get(&listener.address))?;
    facts.chain(now)
}

#[cfg(test)]
mod tests {
    use super::{connection, opaque};
    use crate::sizes::{check, of_3, of_4};

    #[test]
    fn connections_are_small() {
        check(&[
            // What it is found to be is boxed, so this stays beside it.
            ("connection", of_4(connection), 256),
            ("opaque", of_3(opaque::serve), 2048),
        ]);
    }
}
