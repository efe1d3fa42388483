//! An API server that plays a script: it holds objects, answers as Kubernetes does, and leads
//! port-forwards to ports of this machine.
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

/// Where the objects of a kind are, and what it is called there.
const PLURALS: &[(&str, &str)] = &[
    ("Pod", "pods"),
    ("Namespace", "namespaces"),
    ("Deployment", "deployments"),
    (
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
    ),
    (
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    ),
    ("HTTPRoute", "httproutes"),
    ("GRPCRoute", "grpcroutes"),
    ("TCPRoute", "tcproutes"),
    ("TLSRoute", "tlsroutes"),
    ("TrafficPolicy", "trafficpolicies"),
    ("AuthorizationPolicy", "authorizationpolicies"),
    ("MutualTLS", "mutualtls"),
    ("FaultInjection", "faultinjections"),
    ("RateLimit", "ratelimits"),
    ("Telemetry", "telemetries"),
];

/// What it knows.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) minor: u32,
    pub(crate) objects: Vec<Value>,
    /// API groups with their versions, and the kinds in them.
    pub(crate) kinds: BTreeMap<&'static str, Vec<&'static str>>,
    /// Resources that may not be created.
    pub(crate) forbidden: BTreeSet<&'static str>,
    /// Where the port of a pod leads.
    pub(crate) ports: BTreeMap<(String, u16), SocketAddr>,
}

/// A running one.
pub(crate) struct ApiServer {
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) kubeconfig: PathBuf,
}

impl ApiServer {
    pub(crate) async fn start(dir: &Path, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script));
        let known = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let known = Arc::clone(&known);
                let service = service_fn(move |request| {
                    let known = Arc::clone(&known);
                    async move { Ok::<_, Infallible>(answer(request, &known).await) }
                });
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(served.with_upgrades());
            }
        });
        let kubeconfig = dir.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        Self { script, kubeconfig }
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
}

fn failure(code: u16, reason: &str, message: &str) -> Response<Full<Bytes>> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": message, "code": code});
    reply(StatusCode::from_u16(code).unwrap(), &body)
}

async fn answer(request: Request<Incoming>, script: &Mutex<Script>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if path.ends_with("/portforward") {
        return forward(request, &path, &query, &script.lock().unwrap());
    }
    if path.ends_with("/selfsubjectaccessreviews") && request.method() == Method::POST {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        let asked = review.pointer("/spec/resourceAttributes/resource").unwrap();
        let forbidden = &script.lock().unwrap().forbidden;
        let allowed = !forbidden.contains(asked.as_str().unwrap());
        review["status"] = json!({"allowed": allowed});
        return reply(StatusCode::CREATED, &review);
    }
    let script = script.lock().unwrap();
    if path == "/version" {
        let minor = script.minor.to_string();
        let version = format!("v1.{minor}.0");
        return reply(
            StatusCode::OK,
            &json!({"major": "1", "minor": minor, "gitVersion": version, "gitCommit": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "",
                "platform": ""}),
        );
    }
    let parts: Vec<_> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["apis", group, version] => discovery(&script, &format!("{group}/{version}")),
        ["api", version, rest @ ..] => objects(&script, version, rest, &query),
        ["apis", group, version, rest @ ..] => {
            objects(&script, &format!("{group}/{version}"), rest, &query)
        }
        _ => failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
    }
}

fn discovery(script: &Script, version: &str) -> Response<Full<Bytes>> {
    let Some(kinds) = script.kinds.get(version) else {
        return failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
    };
    let resources = kinds.iter().map(|kind| {
        let plural = PLURALS.iter().find(|(own, _)| own == kind).unwrap().1;
        json!({"name": plural, "singularName": "", "namespaced": true, "kind": kind,
            "verbs": ["get", "list"]})
    });
    let list: Vec<_> = resources.collect();
    let list = json!({"kind": "APIResourceList", "groupVersion": version, "resources": list});
    reply(StatusCode::OK, &list)
}

fn objects(script: &Script, version: &str, rest: &[&str], query: &str) -> Response<Full<Bytes>> {
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
        ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
        [plural, name] => (None, *plural, Some(*name)),
        [plural] => (None, *plural, None),
        _ => return failure(404, "NotFound", "no such path"),
    };
    let kind = PLURALS
        .iter()
        .find(|(_, own)| *own == plural)
        .map(|(kind, _)| *kind);
    let selector = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("labelSelector="));
    let selector = selector.map(|text| text.replace("%3D", "=").replace("%2F", "/"));
    let wanted = |object: &&Value| {
        let label = selector.as_ref().and_then(|text| text.split_once('='));
        let labelled = label.is_none_or(|(key, value)| object["metadata"]["labels"][key] == value);
        object["apiVersion"] == version
            && object["kind"].as_str() == kind
            && namespace.is_none_or(|own| object["metadata"]["namespace"] == own)
            && name.is_none_or(|own| object["metadata"]["name"] == own)
            && labelled
    };
    let mut found = script.objects.iter().filter(wanted);
    match name {
        Some(name) => match found.next() {
            Some(object) => reply(StatusCode::OK, object),
            None => failure(404, "NotFound", &format!("{plural} {name:?} not found")),
        },
        None => {
            let items: Vec<_> = found.collect();
            let list = json!({"apiVersion": version, "kind": "List", "metadata": {},
                "items": items});
            reply(StatusCode::OK, &list)
        }
    }
}

/// As the API server and a kubelet do it, by the WebSocket protocol `v4.channel.k8s.io`.
fn forward(
    request: Request<Incoming>,
    path: &str,
    query: &str,
    script: &Script,
) -> Response<Full<Bytes>> {
    let pod = path
        .trim_end_matches("/portforward")
        .rsplit('/')
        .next()
        .unwrap();
    let port = query.rsplit("ports=").next().unwrap();
    let port: u16 = port.parse().unwrap();
    if script.forbidden.contains("pods/portforward") {
        return failure(403, "Forbidden", &format!("pods {pod:?} is forbidden"));
    }
    let to = script.ports.get(&(pod.to_owned(), port)).copied();
    let key = request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes();
    let accept = derive_accept_key(key);
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.unwrap();
        let stream = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        relay(socket, port, to).await;
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, "Upgrade".parse().unwrap());
    headers.insert(header::UPGRADE, "websocket".parse().unwrap());
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.parse().unwrap());
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        "v4.channel.k8s.io".parse().unwrap(),
    );
    response
}

async fn relay(
    mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    port: u16,
    to: Option<SocketAddr>,
) {
    for channel in [0, 1] {
        let [low, high] = port.to_le_bytes();
        let first = Message::binary(vec![channel, low, high]);
        socket.send(first).await.unwrap();
    }
    let connected = match to {
        Some(to) => TcpStream::connect(to).await.ok(),
        None => None,
    };
    let Some(mut tcp) = connected else {
        let text = b"\x01dial tcp4 127.0.0.1: connect: connection refused\n".to_vec();
        socket.send(Message::binary(text)).await.unwrap();
        drop(socket.close(None).await);
        // A socket that is closed with something unread takes back what it sent last.
        while let Some(Ok(_)) = socket.next().await {}
        return;
    };
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = tcp.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    let framed = [&[0], &buffer[..n]].concat();
                    if socket.send(Message::binary(framed)).await.is_err() {
                        return;
                    }
                }
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => tcp.write_all(&bytes[1..]).await.unwrap(),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
    drop(socket.close(None).await);
}
