//! Whether rules that were taken do anything: one connection is made and has to come back.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::SockRef;

use super::InitArgs;

/// Documentation addresses (RFC 5737, RFC 3849): nothing answers there, so an answer is ours.
const PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
const PROBE_PORT: u16 = 9;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether this is the network namespace of the process that runs the machine. One that cannot be
/// told is taken for a pod's: process 1 then belongs to the pod as well.
pub(super) fn is_host_network() -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let host = || {
        let cgroup = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
        let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
        cgroup
            .lines()
            .all(|line| line.ends_with(":/") || line.ends_with("/init.scope"))
            && matches!(init.trim(), "systemd" | "init")
    };
    match (namespace("self"), namespace("1")) {
        (Some(own), Some(first)) => own == first && host(),
        _ => false,
    }
}

/// Dials an address where nobody is, and listens where the rules send that. A family without a
/// route to anywhere cannot be tried and lets nothing out either; false when that holds for all.
pub(super) fn by_traffic(args: &InitArgs, ipv6: bool) -> Result<bool, String> {
    let mut tried = false;
    let probes = if ipv6 { &PROBES[..] } else { &PROBES[..1] };
    for probe in probes {
        let any: IpAddr = match probe {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let listener = match TcpListener::bind((any, args.outbound_port)) {
            Ok(listener) => Some(listener),
            // The proxy runs already; that the probe is accepted at all shows the redirect.
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
            Err(error) => {
                return Err(format!(
                    "cannot listen on port {}: {error}",
                    args.outbound_port
                ));
            }
        };
        let target = SocketAddr::new(*probe, PROBE_PORT);
        let dialled = match TcpStream::connect_timeout(&target, TIMEOUT) {
            Ok(stream) => stream,
            Err(error) if no_route(&error) => continue,
            Err(error) => return Err(format!("{target}: {error}")),
        };
        tried = true;
        let Some(listener) = listener else {
            continue;
        };
        let local = dialled.local_addr().map_err(|e| e.to_string())?;
        let (accepted, from) = listener.accept().map_err(|e| e.to_string())?;
        if from != local {
            return Err(format!("somebody else ({from}) answered the probe"));
        }
        let socket = SockRef::from(&accepted);
        let original = if probe.is_ipv4() {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        let original = original.map_err(|e| format!("SO_ORIGINAL_DST: {e}"))?;
        if original.as_socket() != Some(target) {
            return Err(format!("SO_ORIGINAL_DST gives {original:?}, not {target}"));
        }
    }
    Ok(tried)
}

fn no_route(error: &std::io::Error) -> bool {
    // ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL.
    matches!(error.raw_os_error(), Some(101 | 113 | 99))
}
