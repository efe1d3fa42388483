//! The kernel's sockets: listening, dialling, and where a redirected connection wanted to go.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, USER_TIMEOUT};

/// Length of the accept queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A listening socket that shares its port with the other workers' (`SO_REUSEPORT`). An IPv6
/// address takes IPv6 only, so that both families can be bound side by side.
///
/// # Errors
/// What the kernel says, such as an address in use.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Settings for a connection that was accepted.
pub fn tune_accepted(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let done = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive()))
        .and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)));
    if let Err(error) = done {
        // The connection works without; the peer may just be gone already.
        tracing::debug!(%error, "could not tune an accepted connection");
    }
}

const fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Where a redirected connection was going (`SO_ORIGINAL_DST`), or `None` when it was not
/// redirected: the kernel then has no record, or gives our own address back.
///
/// # Errors
/// When the socket itself is unusable.
pub fn original_destination(stream: &impl AsFd) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(stream);
    let local = socket.local_addr()?.as_socket();
    let local = canonical(local.ok_or(io::ErrorKind::Unsupported)?);
    let found = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    // ENOENT / ENOPROTOOPT: no NAT record, that is, not redirected.
    let found = found.ok().and_then(|address| address.as_socket());
    Ok(found.map(canonical).filter(|address| *address != local))
}

/// An IPv4 address written as IPv6 is the IPv4 address.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(v6) = address
        && let Some(v4) = v6.ip().to_ipv4_mapped()
    {
        return SocketAddr::from((v4, v6.port()));
    }
    address
}

/// How connections are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dialer {
    /// `SO_MARK` of the proxy's own connections, which the redirect rules let pass. `None` when
    /// they tell the proxy by its uid.
    pub mark: Option<u32>,
}

impl Dialer {
    /// Connects within `timeout`.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`, otherwise what the kernel says.
    pub async fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        {
            let socket = SockRef::from(&socket);
            if let Some(mark) = self.mark {
                socket.set_mark(mark)?;
            }
            socket.set_tcp_nodelay(true)?;
            socket.set_tcp_keepalive(&keepalive())?;
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        }
        match tokio::time::timeout(timeout, socket.connect(to)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {to} within {timeout:?}"),
            )),
        }
    }
}

/// Whether this machine has IPv6 at all; where it is switched off, binding to it is no error.
#[must_use]
pub fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))
        .and_then(|s| s.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()))
        .is_ok()
}

/// The addresses of this network namespace, loopback left out. Read from the kernel's own tables;
/// what cannot be read is left out.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = Vec::new();
    let mut candidate = None;
    for line in read("/proc/net/fib_trie").lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            candidate = address.parse::<Ipv4Addr>().ok();
        } else if line.contains("host LOCAL") {
            found.extend(candidate.take().map(IpAddr::V4));
        }
    }
    for line in read("/proc/net/if_inet6").lines() {
        let digits = line.split_whitespace().next().unwrap_or_default();
        if let Ok(bits) = u128::from_str_radix(digits, 16) {
            found.push(IpAddr::V6(Ipv6Addr::from(bits)));
        }
    }
    found.retain(|address| !address.is_loopback());
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let listener = listen("127.0.0.1:0".parse().expect("address")).expect("bound");
        let listener = tokio::net::TcpListener::from_std(listener).expect("usable");
        let address = listener.local_addr().expect("address");
        let dial = Dialer::default();
        let (client, server) = tokio::join!(
            dial.connect(address, Duration::from_secs(5)),
            listener.accept()
        );
        let (server, _) = server.expect("accepted");
        client.expect("connected");
        tune_accepted(&server);
        assert_eq!(original_destination(&server).expect("usable"), None);
    }

    #[tokio::test]
    async fn two_workers_share_a_port() {
        let first = listen("127.0.0.1:0".parse().expect("address")).expect("bound");
        let address = first.local_addr().expect("address");
        listen(address).expect("the second one too");
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_that_says_so() {
        let free = listen("127.0.0.1:0".parse().expect("address"))
            .and_then(|l| l.local_addr())
            .expect("address");
        let error = Dialer::default()
            .connect(free, Duration::from_secs(5))
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
