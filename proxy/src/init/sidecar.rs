//! The proxy of this pod, as `check` sees it: asked at its admin port, and looked for among the
//! sockets that listen here.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

use super::{
    CheckArgs,
    check::{Finding, Verdict, finding},
    rules::Families,
    run::family_name,
};

/// For connecting, and for each read: the admin port is on this machine.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Larger answers of the pages that are asked for are not the proxy's.
const MAX_ANSWER: u64 = 1 << 20;
/// `TCP_LISTEN` in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// All that can be said about the proxy.
pub(super) fn look(args: &CheckArgs, families: Families) -> Vec<Finding> {
    let mut list = vec![ports(args, families)];
    match ask(args.admin_addr, "/server_info") {
        Err(why) => {
            let at = args.admin_addr;
            list.push(finding(
                "proxy",
                Verdict::Bad,
                format!(
                    "nobody answers at its admin port {at}: {why}; is `outrigger-proxy run` \
                     running, and with this --admin-addr?"
                ),
            ));
        }
        Ok(info) => {
            list.push(process(&info));
            list.extend(control_plane(&info));
            list.push(certificate(args.admin_addr, &info));
            list.push(configuration(&info));
        }
    }
    list
}

/// One page of the admin port, as JSON.
fn ask(address: SocketAddr, page: &str) -> Result<Value, String> {
    let get = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let head = format!("GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = get().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if head.split(' ').nth(1) != Some("200") {
        let first = head.lines().next().unwrap_or_default();
        return Err(format!("{page} was answered with {first:?}"));
    }
    serde_json::from_str(body).map_err(|error| format!("{page} is not JSON: {error}"))
}

/// Whether somebody listens where the rules lead, in each family.
fn ports(args: &CheckArgs, families: Families) -> Finding {
    let mut deaf = Vec::new();
    for ipv6 in families.iter() {
        let file = if ipv6 { "tcp6" } else { "tcp" };
        let table = |file: &str| fs::read_to_string(format!("/proc/self/net/{file}"));
        let own = table(file).unwrap_or_default();
        // A socket of IPv6 may serve both.
        let both = table("tcp6").unwrap_or_default();
        for port in [args.rules.outbound_port, args.rules.inbound_port] {
            if !listens(&own, port) && !listens(&both, port) {
                deaf.push(format!("{port} ({})", family_name(ipv6)));
            }
        }
    }
    if deaf.is_empty() {
        let (out, inbound) = (args.rules.outbound_port, args.rules.inbound_port);
        let detail = format!("{out} and {inbound} listen ({families})");
        return finding("ports", Verdict::Good, detail);
    }
    let detail = format!(
        "nobody listens on {}: redirected connections are refused until `outrigger-proxy run` does",
        deaf.join(", ")
    );
    finding("ports", Verdict::Bad, detail)
}

/// Whether a socket listens on `port`, in the text of `/proc/net/tcp` or its IPv6 twin (proc(5)).
pub(super) fn listens(table: &str, port: u16) -> bool {
    let ending = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&ending)) && state == Some(LISTENING)
    })
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or("?")
}

fn process(info: &Value) -> Finding {
    let state = text(info, "/state");
    let detail = format!(
        "{}, {}, up {}, node {}",
        text(info, "/version"),
        state.to_lowercase(),
        text(info, "/uptime_current_epoch"),
        text(info, "/node/id")
    );
    let verdict = if state == "LIVE" {
        Verdict::Good
    } else {
        Verdict::Note
    };
    finding("proxy", verdict, detail)
}

/// `None` for a proxy that has no control plane.
fn control_plane(info: &Value) -> Option<Finding> {
    let stream = info.get("control_plane").filter(|v| !v.is_null())?;
    let connected = stream.get("connected").and_then(Value::as_bool);
    if connected == Some(true) {
        let detail = "its stream is open".to_owned();
        return Some(finding("control plane", Verdict::Good, detail));
    }
    let why = match (stream.get("trouble"), info.get("certificate_trouble")) {
        (Some(Value::String(why)), _) | (_, Some(Value::String(why))) => why.as_str(),
        _ => "the proxy has not reached it yet",
    };
    let detail = format!(
        "not connected: {why}; see that outrigger-control runs, and --control-plane, \
         --trust-bundle and --token-file of this proxy"
    );
    Some(finding("control plane", Verdict::Bad, detail))
}

fn certificate(admin: SocketAddr, info: &Value) -> Finding {
    let what = "certificate";
    let why = info.get("certificate_trouble").and_then(Value::as_str);
    let certs = match ask(admin, "/certs") {
        Ok(certs) => certs,
        Err(error) => return finding(what, Verdict::Bad, error),
    };
    let Some(leaf) = certs.pointer("/certificates/0/cert_chain/0") else {
        let waits = info.get("control_plane").is_some_and(|v| !v.is_null());
        return match (why, waits) {
            (Some(why), _) => finding(
                what,
                Verdict::Bad,
                format!(
                    "none: {why}; a join token comes from `outrigger token create` and ends \
                     with its --ttl"
                ),
            ),
            (None, true) => finding(what, Verdict::Bad, "none yet".to_owned()),
            (None, false) => {
                let detail = "none, and no source of one: no mutual TLS".to_owned();
                finding(what, Verdict::Note, detail)
            }
        };
    };
    let until = text(leaf, "/expiration_time");
    let mut detail = format!("{} until {until}", text(&certs, "/identity"));
    let verdict = match why {
        Some(why) => {
            detail.push_str(&format!("; no newer one: {why}"));
            Verdict::Note
        }
        None => Verdict::Good,
    };
    finding(what, verdict, detail)
}

fn configuration(info: &Value) -> Finding {
    let what = "configuration";
    let waiting: Vec<_> = info
        .get("waiting_for")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if waiting.contains(&"the configuration") {
        let detail = "the first has not come; see what is said of the control plane";
        return finding(what, Verdict::Bad, detail.to_owned());
    }
    let number = info.get("config_generation").and_then(Value::as_u64);
    let number = number.unwrap_or_default();
    if info.pointer("/control_plane/configuration_from_disk") == Some(&Value::Bool(true)) {
        let detail = format!("number {number}, the last one of before, from disk");
        return finding(what, Verdict::Note, detail);
    }
    finding(what, Verdict::Good, format!("number {number} in force"))
}
