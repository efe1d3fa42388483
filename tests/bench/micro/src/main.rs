//! Operations that every request or every update pays for, to be counted in instructions.
//!
//!     outrigger-bench-micro OPERATION TIMES
//!
//! does one of them so many times. `tests/bench/count` runs that twice under valgrind with different
//! numbers of times; the difference is the operation's own cost, to the instruction, whatever else
//! the machine is doing. Without arguments it names the operations and does each once.

use std::{
    hint::black_box,
    io::Write as _,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use outrigger_proto::{
    envoy::config::{cluster::v3::Cluster, listener::v3::Listener},
    json,
};
use outrigger_proxy::{
    balance::{ClusterHandle, Clusters, Outcome, PickCx},
    config::{
        Snapshot,
        listener::{ChainKind, Routes},
        matcher::RequestView,
    },
    http::h1::{Limits, ServerConn, strip_hop_by_hop},
    route::RouteTable,
    xds::{Kind, decode, local},
};
use prost::Message as _;
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;

const HEAD: &[u8] = b"GET /api/items/42?page=2 HTTP/1.1\r\nHost: shop.bench\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/130.0\r\n\
    Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Encoding: gzip, br\r\n\
    Accept-Language: en\r\nCookie: session=0123456789abcdef\r\nX-Request-Id: 5b2c8a4e\r\n\
    Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    Connection: keep-alive\r\n\r\n";

/// Does something so many times.
type Operation = fn(usize);

/// Every operation, by the name that `tests/bench/count` asks for.
const OPERATIONS: [(&str, Operation); 6] = [
    ("http1-head", http1_head),
    ("header-hygiene", header_hygiene),
    ("route-match", route_match),
    ("pick", pick),
    ("decode-cluster", decode_cluster),
    ("decode-listener", decode_listener),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [name, times] = words.as_slice()
        && let Ok(times) = times.parse()
    {
        let found = OPERATIONS.iter().find(|(known, _)| known == name);
        let (_, operation) = found.expect("a known operation");
        return operation(times);
    }
    for (name, operation) in OPERATIONS {
        operation(1);
        println!("{name}");
    }
}

/// A request head, from the bytes of a new connection to its fields.
fn http1_head(times: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    // Never read: all there is to read is there at once.
    let (mut io, _peer) = tokio::io::duplex(1);
    for _ in 0..times {
        let prefix = Bytes::from_static(black_box(HEAD));
        let mut server = ServerConn::new(io, prefix, Limits::default());
        let Poll::Ready(Ok(Some(head))) = server.poll_request(&mut cx) else {
            unreachable!("the head is whole");
        };
        black_box(head);
        (io, _) = server.into_parts();
    }
}

/// Removing what belongs to the connection.
fn header_hygiene(times: usize) {
    let mut headers = HeaderMap::new();
    for name in ["host", "user-agent", "accept", "cookie", "x-request-id"] {
        let value = HeaderValue::from_static("something of usual length");
        headers.insert(HeaderName::from_static(name), value);
    }
    for _ in 0..times {
        headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
        strip_hop_by_hop(black_box(&mut headers));
    }
    assert_eq!(headers.len(), 5, "only the connection's own are removed");
}

/// The last but one of twenty routes of the last of a hundred virtual hosts.
fn route_match(times: usize) {
    let snapshot = snapshot();
    let listener = snapshot.listeners.get("web").expect("there");
    let ChainKind::Http(manager) = &listener.chains.first().expect("one").kind else {
        unreachable!("it is HTTP");
    };
    let Routes::Inline(config) = &manager.routes else {
        unreachable!("the routes stand in it");
    };
    let table = RouteTable::new(Arc::clone(config));
    let mut headers = HeaderMap::new();
    headers.insert("x-user", HeaderValue::from_static("alice"));
    let view = RequestView {
        method: "GET",
        path_and_query: "/api/v18/items?page=2",
        authority: "shop-99.bench",
        scheme: "http",
        headers: &headers,
    };
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..times {
        let hit = table.hit(black_box(&view), false, &mut rng);
        assert_eq!(hit.expect("a route").route.name.as_ref(), "route-18");
    }
}

/// One of ten endpoints, two choices by load, and what was learned from the answer.
fn pick(times: usize) {
    let now = Instant::now();
    let live = Clusters::new(now).update(snapshot(), now);
    let cluster: &Arc<ClusterHandle> = live.clusters.get("app").expect("there");
    let mut rng = StdRng::seed_from_u64(1);
    for n in 0..times {
        let now = now + Duration::from_micros(n as u64);
        let cx = PickCx {
            hash: None,
            tried: &[],
            original_dst: None,
            now,
        };
        let picked = cluster.pick(black_box(&cx), &mut rng).expect("one");
        picked.record(Outcome::Success, Duration::from_millis(1), now);
    }
}

fn decode_cluster(times: usize) {
    let parsed = json::from_json_lenient::<Cluster>(&cluster());
    let bytes = parsed.expect("a cluster").0.encode_to_vec();
    for _ in 0..times {
        let parsed = decode::parse(Kind::Cluster, black_box(&bytes));
        black_box(parsed.expect("good"));
    }
}

fn decode_listener(times: usize) {
    let parsed = json::from_json_lenient::<Listener>(&listener());
    let bytes = parsed.expect("a listener").0.encode_to_vec();
    for _ in 0..times {
        let parsed = decode::parse(Kind::Listener, black_box(&bytes));
        black_box(parsed.expect("good"));
    }
}

fn snapshot() -> Arc<Snapshot> {
    let all = json!({ "listeners": [listener()], "clusters": [cluster()] });
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(all.to_string().as_bytes()).expect("written");
    let loaded = local::load(file.path(), SystemTime::UNIX_EPOCH);
    loaded.expect("good").snapshot
}

fn address(ip: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": ip, "port_value": port } })
}

fn typed(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/envoy.extensions.{kind}").into();
    json!({ "name": kind, "typed_config": fields })
}

/// What our control plane sends for a service of ten endpoints, near enough.
fn cluster() -> Value {
    let endpoints: Vec<_> = (1..=10)
        .map(|n| json!({ "endpoint": { "address": address(&format!("10.1.0.{n}"), 8080) } }))
        .collect();
    let tls = json!({
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "default" }],
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": { "exact": "spiffe://outrigger.local/ns/shop/sa/app" },
                }] },
                "validation_context_sds_secret_config": { "name": "ROOTCA" },
            },
        },
    });
    json!({
        "name": "app", "type": "STATIC", "connect_timeout": "5s", "lb_policy": "LEAST_REQUEST",
        "load_assignment": { "cluster_name": "app", "endpoints": [{ "lb_endpoints": endpoints }] },
        "outlier_detection": { "consecutive_5xx": 5 },
        "circuit_breakers": { "thresholds": [{ "max_connections": 1024 }] },
        "transport_socket": typed("transport_sockets.tls.v3.UpstreamTlsContext", tls),
    })
}

/// A hundred virtual hosts; the last has twenty routes.
fn listener() -> Value {
    let to_app = json!({ "cluster": "app", "timeout": "15s" });
    let routes: Vec<_> = (0..20)
        .map(|n| {
            json!({
                "name": format!("route-{n}"), "route": to_app,
                "match": {
                    "path_separated_prefix": format!("/api/v{n}"),
                    "headers": [{ "name": "x-user", "string_match": { "prefix": "a" } }],
                },
            })
        })
        .collect();
    let hosts: Vec<_> = (0..100)
        .map(|n| {
            let simple = json!([{ "match": { "prefix": "/" }, "route": to_app }]);
            json!({
                "name": format!("shop-{n}"), "domains": [format!("shop-{n}.bench")],
                "routes": if n == 99 { Value::from(routes.clone()) } else { simple },
            })
        })
        .collect();
    let manager = json!({
        "stat_prefix": "web",
        "route_config": { "name": "routes", "virtual_hosts": hosts },
        "http_filters": [typed("filters.http.router.v3.Router", json!({}))],
    });
    let kind = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({
        "name": "web", "address": address("127.0.0.1", 8080),
        "filter_chains": [{ "filters": [typed(kind, manager)] }],
    })
}
