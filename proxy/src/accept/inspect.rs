//! Looking at a connection's first bytes when its listener asks for it, without making a client
//! wait that waits for the server (TC-03): after a short silence the upstream is dialled, and
//! whoever speaks first decides.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{Facts, Refused, opaque};
use crate::{
    config::{
        Listener,
        listener::{ChainKind, Transport},
    },
    detect::{Peek, Protocol},
    policy::worker::Worker,
};

/// A client that says nothing for so long may be waiting for the server. Clients that speak first
/// do so in their first packet after the handshake.
const SILENCE: Duration = Duration::from_millis(20);

/// Endpoints that are dialled for a silent client. One that leaves before anybody has spoken is
/// replaced (KU-01): that it is shutting down says nothing about the client, who may be about to
/// speak HTTP. A service that takes connections only to close them is seen as that in the end.
const SILENT_DIALS: u32 = 3;

/// A connection with its first bytes.
pub(super) struct Seen {
    pub(super) io: TcpStream,
    pub(super) prefix: Bytes,
    /// `None` when nobody looked.
    pub(super) protocol: Option<Protocol>,
    pub(super) dialled: Option<opaque::Upstream>,
}

impl Seen {
    pub(super) fn facts(&self, source: SocketAddr, destination: SocketAddr) -> Facts {
        let mut facts = Facts {
            source,
            destination,
            transport: Transport::RawBuffer,
            server_name: None,
            protocols: Vec::new(),
        };
        match &self.protocol {
            Some(Protocol::Tls(hello)) => {
                facts.transport = Transport::Tls;
                facts.server_name.clone_from(&hello.server_name);
                facts.protocols.clone_from(&hello.alpn);
            }
            Some(other) => {
                let name = other.http_inspector_name();
                facts.protocols.extend(name.map(<[u8]>::to_vec));
            }
            None => {}
        }
        facts
    }

    pub(super) fn describe(&self) -> String {
        match &self.protocol {
            Some(Protocol::Tls(hello)) => {
                let alpn: Vec<_> = hello.alpn.iter().map(|p| p.escape_ascii()).collect();
                let name = hello.server_name.as_deref().unwrap_or("none");
                format!("TLS with server name {name}, ALPN {alpn:?}").replace('"', "")
            }
            Some(Protocol::Http10 | Protocol::Http11 | Protocol::Http2) => "plain HTTP".into(),
            Some(Protocol::Opaque) | None => "plain TCP".into(),
        }
    }
}

/// Reads as much as is needed to tell the protocol. `None` when the client left without a word.
pub(super) async fn inspect(
    worker: &Arc<Worker>,
    listener: &Listener,
    mut io: TcpStream,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Option<Seen>, Refused> {
    let mut seen = Seen {
        prefix: Bytes::new(),
        protocol: None,
        dialled: None,
        io: {
            let mut peek = Peek::default();
            if listener.needs_inspection() {
                let silent = Instant::now() + SILENCE;
                let read = tokio::select! {
                    biased;
                    read = peek.read_more(&mut io) => Some(read),
                    () = sleep_until(silent) => None,
                };
                return match read {
                    Some(read) => {
                        read?;
                        decide(listener, io, peek, None).await
                    }
                    None => wait_for_both(worker, listener, io, peek, source, destination).await,
                };
            }
            io
        },
    };
    seen.protocol = None;
    Ok(Some(seen))
}

/// Reads on until the verdict falls.
async fn decide(
    listener: &Listener,
    mut io: TcpStream,
    mut peek: Peek,
    dialled: Option<opaque::Upstream>,
) -> Result<Option<Seen>, Refused> {
    if peek.is_empty() && peek.ended() && dialled.is_none() {
        return Ok(None);
    }
    let give_up = Instant::now() + listener.inspect_timeout;
    let protocol = loop {
        if let Some(verdict) = peek.verdict() {
            break verdict;
        }
        tokio::select! {
            read = peek.read_more(&mut io) => read?,
            () = sleep_until(give_up) => break Protocol::Opaque,
        }
    };
    // A listener that looks for one kind only does not know the other.
    let wanted = match protocol {
        Protocol::Tls(_) => listener.inspect_tls,
        Protocol::Http10 | Protocol::Http11 | Protocol::Http2 => listener.inspect_http,
        Protocol::Opaque => true,
    };
    let protocol = if wanted { protocol } else { Protocol::Opaque };
    // What was dialled as opaque serves nothing else.
    let dialled = dialled.filter(|_| protocol == Protocol::Opaque);
    Ok(Some(Seen {
        io,
        prefix: peek.into_bytes(),
        protocol: Some(protocol),
        dialled,
    }))
}

/// The client is silent: dials as if it were opaque and waits for the first byte of either side.
async fn wait_for_both(
    worker: &Arc<Worker>,
    listener: &Listener,
    mut io: TcpStream,
    mut peek: Peek,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<Option<Seen>, Refused> {
    let plain = Facts {
        source,
        destination,
        transport: Transport::RawBuffer,
        server_name: None,
        protocols: Vec::new(),
    };
    let chain = plain.chain(listener);
    let opaque = chain.as_deref().filter(|chain| chain.tls.is_none());
    let mut dials = 0;
    loop {
        dials += 1;
        let mut upstream = match opaque.map(|chain| &chain.kind) {
            Some(ChainKind::Tcp(proxy)) => {
                let dial = opaque::dial(worker, proxy, destination);
                tokio::select! {
                    read = peek.read_more(&mut io) => {
                        read?;
                        return decide(listener, io, peek, None).await;
                    }
                    dialled = dial => dialled.ok(),
                }
            }
            _ => None,
        };
        let Some(dialled) = &mut upstream else {
            // Nothing to dial: the client has to speak.
            let give_up = Instant::now() + listener.inspect_timeout;
            tokio::select! {
                read = peek.read_more(&mut io) => read?,
                () = sleep_until(give_up) => return Ok(None),
            }
            return decide(listener, io, peek, None).await;
        };
        // Neither has a time limit here: a session may begin with a long silence of both (TC-05).
        let spoke = tokio::select! {
            read = peek.read_more(&mut io) => {
                read?;
                return decide(listener, io, peek, upstream).await;
            }
            spoke = dialled.first_byte() => matches!(spoke, Ok(1..)),
        };
        if spoke || dials >= SILENT_DIALS {
            return Ok(Some(Seen {
                io,
                prefix: peek.into_bytes(),
                protocol: Some(Protocol::Opaque),
                dialled: upstream,
            }));
        }
    }
}
