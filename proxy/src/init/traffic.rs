//! Whether rules that are there do anything: a connection is made and has to come back.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    time::Duration,
};

use super::RuleArgs;
use crate::net;

/// Documentation addresses (RFC 5737, RFC 3849): nobody answers there, so an answer is ours.
const PROBES_V4: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
];
const PROBES_V6: [IpAddr; 1] = [IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// The discard port first: should the rules not work, nobody is disturbed.
const FIRST_PORT: u16 = 9;
/// For a handshake that does not leave the machine, and its arrival.
const TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// What a connection showed of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Dialled there, it came to the outbound port, and the kernel told where it had been going.
    Redirected(SocketAddr),
    /// Dialled there, it was taken; the proxy listens already, so that is all that can be seen.
    Taken(SocketAddr),
    /// Nothing can be dialled: there is no route and no address to get out by.
    NoWay,
    /// Nothing was tried, and why.
    Untested(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redirected(to) => write!(f, "a connection to {to} was redirected"),
            Self::Taken(to) => write!(
                f,
                "a connection to {to} was taken by who listens on the outbound port"
            ),
            Self::NoWay => f.write_str("nothing gets out: there is no route and no address"),
            Self::Untested(why) => write!(f, "not tried by traffic: {why}"),
        }
    }
}

/// Tries one family.
///
/// # Errors
/// What happened instead of a redirect.
pub(super) fn probe(args: &RuleArgs, ipv6: bool) -> Result<Seen, String> {
    if let Some(why) = own_traffic_passes(args) {
        return Ok(Seen::Untested(why));
    }
    let excluded = &args.exclude_outbound_ports;
    let Some(port) = (FIRST_PORT..=u16::MAX).find(|port| !excluded.contains(*port)) else {
        return Ok(Seen::Untested("every outbound port is excluded".to_owned()));
    };
    for address in candidates(args, ipv6) {
        let target = SocketAddr::new(address, port);
        match dial(args, target) {
            Err(Failure::NoRoute) => {}
            Err(Failure::Other(why)) => return Err(why),
            Ok(seen) => return Ok(seen),
        }
    }
    Ok(Seen::NoWay)
}

/// Why the connections of this very process are not redirected.
fn own_traffic_passes(args: &RuleArgs) -> Option<String> {
    let own = fs::metadata("/proc/self").ok()?;
    let (uid, gid) = (own.uid(), own.gid());
    if args.uid() == Some(uid) || args.exclude_uids.iter().any(|id| *id == uid) {
        return Some(format!("connections of user {uid} are not redirected"));
    }
    let gid = args.proxy_gid.filter(|id| *id == gid)?;
    Some(format!("connections of group {gid} are not redirected"))
}

/// Addresses that the rules redirect, best first: where nobody is; the first of an included
/// network; one of our own, which has a route where nothing else has.
fn candidates(args: &RuleArgs, ipv6: bool) -> Vec<IpAddr> {
    let nowhere: &[IpAddr] = if ipv6 { &PROBES_V6 } else { &PROBES_V4 };
    let included = args.include_outbound_cidrs.family(ipv6);
    let first = included.filter_map(|net| net.hosts().next());
    let own = net::own_addresses().into_iter();
    let of_use = |address: &IpAddr| {
        let unusable = match address {
            IpAddr::V4(v4) => v4.is_unspecified() || v4.is_loopback(),
            // Link-local addresses need an interface.
            IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local(),
        };
        address.is_ipv6() == ipv6
            && !unusable
            && args.include_outbound_cidrs.contains(*address)
            && !args.exclude_outbound_cidrs.contains(*address)
    };
    let all = nowhere.iter().copied().chain(first).chain(own);
    all.filter(of_use).collect()
}

enum Failure {
    /// The kernel knows no way there: nothing gets out either.
    NoRoute,
    Other(String),
}

fn dial(args: &RuleArgs, target: SocketAddr) -> Result<Seen, Failure> {
    let port = args.outbound_port;
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = match TcpListener::bind((any, port)) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(error) => {
            return Err(Failure::Other(format!(
                "cannot listen on port {port}: {error}"
            )));
        }
    };
    let dialled = match TcpStream::connect_timeout(&target, TIMEOUT) {
        Ok(stream) => stream,
        Err(error) if is_no_route(&error) => return Err(Failure::NoRoute),
        Err(error) if listener.is_none() && was_closed(&error) => return Ok(Seen::Taken(target)),
        Err(error) => return Err(Failure::Other(format!("dialling {target}: {error}"))),
    };
    let Some(listener) = listener else {
        return Ok(Seen::Taken(target));
    };
    let other = |what: String| Failure::Other(format!("a connection to {target} {what}"));
    let accepted = accept(&listener, &dialled)
        .map_err(|error| other(format!("was taken, but not on port {port}: {error}")))?;
    let original = net::original_destination(&accepted).map_err(|error| {
        other(format!(
            "was redirected, but where it went is lost: {error}"
        ))
    })?;
    if original != Some(target) {
        return Err(other(format!("was redirected as one to {original:?}")));
    }
    Ok(Seen::Redirected(target))
}

/// Whether a connection was made, and reset before we looked: a proxy that runs already has no use
/// for one to nowhere. Where nobody takes it, it is refused or not answered.
fn was_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

/// The other end of `dialled`, in bounded time.
fn accept(listener: &TcpListener, dialled: &TcpStream) -> io::Result<TcpStream> {
    let own = dialled.local_addr()?;
    listener.set_nonblocking(true)?;
    let mut waited = Duration::ZERO;
    while waited < TIMEOUT {
        match listener.accept() {
            Ok((accepted, from)) if net::canonical(from) == own => return Ok(accepted),
            // An application that dials already.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pause(POLL);
                waited += POLL;
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::TimedOut))
}

#[expect(
    clippy::disallowed_methods,
    reason = "init and check are commands of their own, without workers"
)]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn is_no_route(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    [
        K::NetworkUnreachable,
        K::HostUnreachable,
        K::AddrNotAvailable,
    ]
    .contains(&error.kind())
}
