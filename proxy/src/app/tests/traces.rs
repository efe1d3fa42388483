//! The spans of requests that went wrong in one way or another (OB-02).

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use outrigger_proto::type_url;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::{Door, connection},
    app::publish::Publisher,
    config::endpoint::Locality,
    drain::Drain,
    net::Dialer,
    policy::{
        fault_injection::ActiveFaults,
        worker::{Shared, Worker, World},
    },
    pool::Pool,
    telemetry::{
        Setup, Telemetry,
        spans::testing::{Seen, Stub},
    },
    tls::{ClientTlsCache, IdentityStore, ServerTlsCache},
    xds,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const PATIENCE: Duration = Duration::from_secs(20);

/// What an endpoint does with a connection, once it has read a head.
#[derive(Clone, Copy)]
enum Act {
    Say(&'static str),
    /// Ends the connection without a word.
    Close,
    /// Does not answer.
    Hang,
}

/// Endpoints that take their acts one after the other from one script.
struct Script {
    acts: &'static [Act],
    turn: AtomicUsize,
    /// Heads that were read.
    heads: Mutex<Vec<String>>,
}

impl Script {
    async fn endpoint(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let this = Arc::clone(&self);
            tokio::spawn(async move { this.play(stream).await });
        }
    }

    async fn play(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).expect("text");
        self.heads.lock().expect("lock").push(head);
        match self.acts[self.turn.fetch_add(1, Relaxed)] {
            Act::Say(text) => stream.write_all(text.as_bytes()).await.expect("written"),
            Act::Close => return,
            Act::Hang => {}
        }
        // Until the proxy closes.
        let _end = stream.read_u8().await;
    }
}

struct Rig {
    worker: Arc<Worker>,
    script: Arc<Script>,
    collector: Stub,
    stop: CancellationToken,
    exporter: tokio::task::JoinHandle<()>,
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A listener `web` whose only route leads to two endpoints, with `more` to it.
fn configuration(endpoints: [SocketAddr; 2], more: &str) -> Arc<crate::config::Snapshot> {
    let members: String = endpoints
        .iter()
        .map(|address| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}},",
                address.ip(),
                address.port()
            )
        })
        .collect();
    let yaml = format!(
        "listeners: [{{name: web, address: {{socket_address: {{address: 127.0.0.1, port_value: \
         1}}}}, traffic_direction: OUTBOUND, filter_chains: [{{filters: [{{name: http, \
         typed_config: {{'@type': {}, stat_prefix: web, route_config: {{name: local, \
         virtual_hosts: [{{name: all, domains: ['*'], routes: [{{name: shop, match: {{prefix: \
         /shop}}, route: {{{more} cluster: app, timeout: 0s, retry_policy: {{retry_on: \
         '5xx,reset', num_retries: 3, retry_back_off: {{base_interval: 0.001s}}}}}}}}]}}]}}, \
         http_filters: [{{name: r, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}]\n\
         clusters: [{{name: app, type: STATIC, load_assignment: {{cluster_name: app, endpoints: \
         [{{lb_endpoints: [{members}]}}]}}}}]\n",
        type_url::HTTP_CONNECTION_MANAGER
    );
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(yaml.as_bytes()).expect("written");
    let loaded = xds::local::load(file.path(), SystemTime::UNIX_EPOCH);
    loaded.unwrap_or_else(|wrong| panic!("{wrong:?}")).snapshot
}

async fn rig(acts: &'static [Act]) -> Rig {
    rig_with(acts, "").await
}

async fn rig_with(acts: &'static [Act], more: &str) -> Rig {
    let script = Arc::new(Script {
        acts,
        turn: AtomicUsize::new(0),
        heads: Mutex::default(),
    });
    let ((one, first), (other, second)) = (listener().await, listener().await);
    tokio::spawn(Arc::clone(&script).endpoint(one));
    tokio::spawn(Arc::clone(&script).endpoint(other));
    let stop = CancellationToken::new();
    let (collector, spans, exporter) = Stub::start(stop.clone());
    let identity = IdentityStore::new();
    let shared = Arc::new(Shared {
        world: ArcSwap::from_pointee(World::default()),
        changed: Notify::new(),
        demand: OnceLock::new(),
        identity: Arc::clone(&identity),
        server_tls: ServerTlsCache::new(Arc::clone(&identity)),
        drain: Drain::default(),
        telemetry: Arc::new(Telemetry::new(Setup {
            spans: Some(spans),
            ..Setup::default()
        })),
        faults: ActiveFaults::default(),
        own_ports: Vec::new(),
        own_ips: Vec::new(),
    });
    let publisher = Publisher::new(Arc::clone(&shared), Locality::default(), Instant::now());
    publisher.publish(configuration([first, second], more));
    let tls = Arc::new(ClientTlsCache::new(identity));
    let pool = Pool::new(Dialer { mark: None }, tls);
    Rig {
        worker: Worker::new(shared, pool, 1),
        script,
        collector,
        stop,
        exporter,
    }
}

impl Rig {
    /// A client's connection through the proxy.
    async fn connect(&self) -> TcpStream {
        let (listener, address) = listener().await;
        let client = TcpStream::connect(address).await.expect("connected");
        let (stream, source) = listener.accept().await.expect("accepted");
        let door = Door::Listener("web".into());
        tokio::spawn(connection(Arc::clone(&self.worker), stream, source, door));
        client
    }

    /// The answer to a GET, as it came.
    async fn get(&self, path: &str, header: &str) -> String {
        let mut client = self.connect().await;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: web\r\n{header}connection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        timeout(PATIENCE, read)
            .await
            .expect("in time")
            .expect("an answer");
        answer
    }

    /// Waits until no connection is served.
    async fn ended(&self) {
        let ended = async {
            while self.worker.shared.drain.connections() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, ended).await.expect("connections end");
    }

    /// Waits until endpoints have read so many heads.
    async fn asked(&self, times: usize) {
        let asked = async {
            while self.heads().len() < times {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, asked).await.expect("endpoints are asked");
    }

    fn heads(&self) -> Vec<String> {
        self.script.heads.lock().expect("lock").clone()
    }

    /// All spans, once the proxy has stopped exporting.
    async fn spans(self) -> Vec<Seen> {
        self.stop.cancel();
        timeout(PATIENCE, self.exporter)
            .await
            .expect("in time")
            .expect("no panic");
        self.collector.seen()
    }
}

fn traceparent() -> String {
    format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n")
}

/// The span that a head names as its caller's.
fn told(head: &str) -> String {
    let line = head.lines().find(|line| line.starts_with("traceparent: "));
    let line = line.unwrap_or_else(|| panic!("no traceparent in {head}"));
    let parts: Vec<_> = line.split('-').collect();
    assert_eq!(parts[1], TRACE);
    parts[2].to_owned()
}

const OK: Act = Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");

#[tokio::test]
async fn ob_02_every_try_is_a_span_and_the_endpoint_is_told_its_own() {
    const ACTS: &[Act] = &[
        Act::Close,
        Act::Say("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        OK,
    ];
    let rig = rig(ACTS).await;
    let answer = rig.get("/shop", &traceparent()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let heads = rig.heads();
    let [request, closed, failed, good] = rig.spans().await.try_into().expect("four spans");
    assert_eq!((&*request.trace_id, &*request.parent), (TRACE, CALLER));
    assert_eq!(request.get("outrigger.route"), "shop");
    let tries = [&closed, &failed, &good];
    for (span, head) in tries.into_iter().zip(&heads) {
        assert_eq!((&span.parent, &span.id), (&request.id, &told(head)));
    }
    let errors = tries.map(|span| span.get("error.type"));
    assert_eq!(errors, ["UpstreamClosed", "503", ""]);
    assert_eq!((request.error, good.error), (false, false));
    assert!(closed.error && failed.error);
    assert_eq!(failed.get("http.response.status_code"), "503");
}

#[tokio::test]
async fn ob_02_an_interim_response_is_not_the_answer() {
    const ACTS: &[Act] = &[Act::Say(
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    )];
    let rig = rig(ACTS).await;
    let answer = rig.get("/shop", &traceparent()).await;
    assert!(answer.starts_with("HTTP/1.1 103"), "{answer}");
    let heads = rig.heads();
    let [span] = rig.spans().await.try_into().expect("one span");
    assert_eq!(span.get("http.response.status_code"), "200");
    assert_eq!((&*span.parent, &span.id), (CALLER, &told(&heads[0])));
    assert!(!span.error);
}

#[tokio::test]
async fn ob_02_a_client_that_leaves_is_not_an_error_of_the_endpoint() {
    const ACTS: &[Act] = &[Act::Hang];
    let rig = rig(ACTS).await;
    let mut client = rig.connect().await;
    let request = format!("GET /shop HTTP/1.1\r\nhost: web\r\n{}\r\n", traceparent());
    client.write_all(request.as_bytes()).await.expect("sent");
    rig.asked(1).await;
    // A reset; ending its side alone would not mean that it no longer waits.
    client.set_zero_linger().expect("a socket");
    drop(client);
    rig.ended().await;
    let [span] = rig.spans().await.try_into().expect("one span");
    assert_eq!(span.get("outrigger.cause"), "DownstreamReset");
    assert_eq!(span.get("outrigger.response_flag"), "DC");
    assert_eq!((span.error, span.get("error.type")), (false, ""));
}

#[tokio::test]
async fn ob_02_an_answer_of_the_proxy_states_its_cause_in_its_span() {
    let rig = rig(&[]).await;
    let answer = rig.get("/elsewhere", &traceparent()).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("proxy-status: outrigger"), "{answer}");
    let metrics = rig.worker.shared.telemetry.scrape().openmetrics();
    assert!(metrics.contains("flag=\"NR\"} 1"), "{metrics}");
    let [span] = rig.spans().await.try_into().expect("one span");
    assert_eq!(span.get("outrigger.response_flag"), "NR");
    assert_eq!(span.get("outrigger.cause"), "NoRoute");
    assert!(span.error && span.events == ["fault"]);
    assert!(span.description.starts_with("no route matches"), "{span:?}");
}

#[tokio::test]
async fn ob_02_what_is_no_request_has_a_span_too() {
    let rig = rig(&[]).await;
    let mut client = rig.connect().await;
    let nonsense = "GET /shop HTTP/1.1\r\nhost: web\r\nnot a header\r\n\r\n";
    client.write_all(nonsense.as_bytes()).await.expect("sent");
    client.shutdown().await.expect("ended");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    rig.ended().await;
    let [span] = rig.spans().await.try_into().expect("one span");
    assert_eq!(span.get("outrigger.cause"), "DownstreamProtocol");
    assert_eq!(span.get("http.response.status_code"), "400");
    assert_eq!(span.parent, "");
}

#[tokio::test]
async fn ob_01_an_unsampled_callers_context_goes_on_and_nothing_is_exported() {
    const ACTS: &[Act] = &[OK];
    let rig = rig(ACTS).await;
    let unsampled = traceparent().replace("-01\r", "-00\r");
    assert!(
        rig.get("/shop", &unsampled)
            .await
            .starts_with("HTTP/1.1 200")
    );
    let heads = rig.heads();
    assert_ne!(told(&heads[0]), CALLER);
    assert!(heads[0].contains("-00\r\n"), "{}", heads[0]);
    assert!(rig.spans().await.is_empty());
}

#[tokio::test]
async fn ob_01_a_copy_belongs_to_the_trace_of_what_it_copies() {
    const ACTS: &[Act] = &[OK, OK];
    let rig = rig_with(ACTS, "request_mirror_policies: [{cluster: app}],").await;
    let answer = rig.get("/shop", &traceparent()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    rig.asked(2).await;
    let heads = rig.heads();
    let [span] = rig.spans().await.try_into().expect("one span");
    assert_eq!(
        heads.iter().map(|head| told(head)).collect::<Vec<_>>(),
        [span.id.clone(), span.id]
    );
}
