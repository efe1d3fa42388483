//! One proxy as a process on a loopback address of its own, with static configuration: no control
//! plane, no namespaces, no rights. Clients and endpoints are scripts of the test.
//!
//! ```text
//! let upstream = raw::serve(async |mut stream, _nth| { … }).await;
//! let proxy = Setup::http(upstream).route(json!({"timeout": "1s"})).start().await;
//! let mut client = TcpStream::connect(proxy.address).await.unwrap();
//! ```

pub mod certs;
pub mod frames;
pub mod h2;
pub mod raw;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use outrigger_proto::type_url;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

use crate::bin;

/// Where a proxy's listener is; the address is its own.
const PORT: u16 = 8080;
/// Long enough for a debug build on a busy machine; reached only on failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy to be: one listener in front of one cluster, `app`, each part open to changes.
#[derive(Clone, Debug)]
pub struct Setup {
    address: Ipv4Addr,
    listener: Value,
    chain: Value,
    /// The chain's network filter, without its type.
    filter: Value,
    kind: &'static str,
    route: Value,
    cluster: Value,
    more_clusters: Vec<Value>,
    more_listeners: Vec<Value>,
    secrets: Vec<Value>,
    flags: Vec<String>,
}

impl Setup {
    fn new(kind: &'static str, filter: Value, upstreams: &[SocketAddr]) -> Self {
        let [.., b, c, d] = rand::random::<[u8; 4]>();
        Self {
            // No two proxies share an address, so ports need no choosing. 127.0/16 is for others.
            address: Ipv4Addr::new(127, b.max(1), c, d.clamp(1, 254)),
            listener: json!({"name": "test", "traffic_direction": "OUTBOUND"}),
            chain: json!({}),
            filter,
            kind,
            route: json!({"cluster": "app", "timeout": "0s"}),
            cluster: cluster("app", upstreams),
            more_clusters: Vec::new(),
            more_listeners: Vec::new(),
            secrets: Vec::new(),
            flags: Vec::new(),
        }
    }

    /// All HTTP requests, in any version, go to `upstream` in HTTP/1.1 and without time limit.
    #[must_use]
    pub fn http(upstream: SocketAddr) -> Self {
        let router = json!([{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": type_url::ROUTER},
        }]);
        let filter = json!({"stat_prefix": "test", "http_filters": router});
        Self::new(type_url::HTTP_CONNECTION_MANAGER, filter, &[upstream])
    }

    /// All bytes go to `upstream`.
    #[must_use]
    pub fn tcp(upstream: SocketAddr) -> Self {
        let filter = json!({"stat_prefix": "test", "cluster": "app"});
        Self::new(type_url::TCP_PROXY, filter, &[upstream])
    }

    /// Other endpoints in place of the one.
    #[must_use]
    pub fn endpoints(mut self, upstreams: &[SocketAddr]) -> Self {
        let listed = cluster("app", upstreams);
        merge(&mut self.cluster, &listed);
        self
    }

    /// The cluster speaks HTTP/2.
    #[must_use]
    pub fn http2(self) -> Self {
        self.http2_with(&json!({}))
    }

    /// The cluster speaks HTTP/2 with these `Http2ProtocolOptions`.
    #[must_use]
    pub fn http2_with(self, options: &Value) -> Self {
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        self.cluster(&json!({"typed_extension_protocol_options": {name: {
            "@type": format!("type.googleapis.com/{name}"),
            "explicit_http_config": {"http2_protocol_options": options},
        }}}))
    }

    /// Changes the listener.
    #[must_use]
    pub fn listener(mut self, changes: &Value) -> Self {
        merge(&mut self.listener, changes);
        self
    }

    /// Changes the filter chain.
    #[must_use]
    pub fn chain(mut self, changes: &Value) -> Self {
        merge(&mut self.chain, changes);
        self
    }

    /// Changes the connection manager, or the TCP proxy.
    #[must_use]
    pub fn filter(mut self, changes: &Value) -> Self {
        merge(&mut self.filter, changes);
        self
    }

    /// Puts an HTTP filter before the router.
    #[must_use]
    pub fn http_filter(mut self, name: &str, typed_config: &Value) -> Self {
        if let Some(filters) = self.filter["http_filters"].as_array_mut() {
            let filter = json!({"name": name, "typed_config": typed_config});
            filters.insert(filters.len().saturating_sub(1), filter);
        }
        self
    }

    /// Changes the `RouteAction` of the one route.
    #[must_use]
    pub fn route(mut self, changes: &Value) -> Self {
        merge(&mut self.route, changes);
        self
    }

    /// Changes the cluster.
    #[must_use]
    pub fn cluster(mut self, changes: &Value) -> Self {
        merge(&mut self.cluster, changes);
        self
    }

    /// Adds a cluster.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Value) -> Self {
        self.more_clusters.push(cluster);
        self
    }

    /// Adds a listener.
    #[must_use]
    pub fn with_listener(mut self, listener: Value) -> Self {
        self.more_listeners.push(listener);
        self
    }

    /// Adds a secret.
    #[must_use]
    pub fn with_secret(mut self, secret: Value) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Adds command-line flags.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// The address that the proxy will have for itself.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn document(&self) -> Value {
        let mut filter = self.filter.clone();
        if self.kind == type_url::HTTP_CONNECTION_MANAGER && filter.get("route_config").is_none() {
            filter["route_config"] = json!({"name": "test", "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": self.route}],
            }]});
        }
        filter["@type"] = json!(self.kind);
        let mut chain = json!({"filters": [{"name": "it", "typed_config": filter}]});
        merge(&mut chain, &self.chain);
        let mut listener = json!({
            "address": socket_address(SocketAddr::from((self.address, PORT))),
            "filter_chains": [chain],
        });
        merge(&mut listener, &self.listener);
        let mut listeners = vec![listener];
        listeners.extend(self.more_listeners.iter().cloned());
        let mut clusters = vec![self.cluster.clone()];
        clusters.extend(self.more_clusters.iter().cloned());
        json!({"static_resources": {
            "listeners": listeners, "clusters": clusters, "secrets": self.secrets,
        }})
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When it does not come up; its log says why.
    pub async fn start(self) -> Proxy {
        let dir = tempfile::Builder::new()
            .prefix("outrigger-loopback-")
            .tempdir()
            .expect("a folder for the test's files");
        let config = dir.path().join("config.json");
        fs::write(&config, self.document().to_string()).expect("written");
        let log = dir.path().join("proxy.log");
        let out = fs::File::create(&log).expect("a log file");
        let ip = self.address;
        let mut command = Command::new(bin("outrigger-proxy"));
        command
            .arg("run")
            .arg("--config")
            .arg(&config)
            .args(["--inbound-port", "0"])
            .args(["--admin-addr", &format!("{ip}:15000")])
            .args(["--telemetry-addr", &format!("{ip}:15020")])
            .args(["--health-addr", &format!("{ip}:15021")])
            .args(["--access-log", "json", "--pod-ip", "192.0.2.1"]);
        for (flag, usual) in [("--workers", "1"), ("--outbound-port", "0")] {
            if !self.flags.iter().any(|given| given == flag) {
                command.args([flag, usual]);
            }
        }
        let child = command
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a second handle"))
            .stderr(out)
            .spawn()
            .expect("the proxy starts");
        let mut proxy = Proxy {
            address: SocketAddr::from((ip, PORT)),
            ip,
            child,
            log,
            _dir: dir,
        };
        proxy.wait_for_listener().await;
        proxy
    }
}

/// An address as xDS writes it.
#[must_use]
pub fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {
        "address": address.ip().to_string(), "port_value": address.port(),
    }})
}

/// A cluster of fixed endpoints that is asked round robin.
#[must_use]
pub fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let listed = endpoints
        .iter()
        .map(|&endpoint| json!({"endpoint": {"address": socket_address(endpoint)}}));
    let listed: Vec<_> = listed.collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": listed}]},
    })
}

/// Puts `changes` over `base`; objects are merged, everything else is replaced.
pub fn merge(base: &mut Value, changes: &Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(base.entry(key.clone()).or_insert(Value::Null), change);
            }
        }
        (base, change) => *base = change.clone(),
    }
}

/// A running proxy; killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Its listener.
    pub address: SocketAddr,
    ip: Ipv4Addr,
    child: Child,
    log: PathBuf,
    _dir: TempDir,
}

impl Proxy {
    async fn wait_for_listener(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            if TcpStream::connect(self.address).await.is_ok() {
                return;
            }
            let gone = self.child.try_wait().expect("a child");
            assert!(gone.is_none(), "the proxy ended: {gone:?}");
            assert!(Instant::now() < end, "the proxy does not listen");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A connection to its listener.
    ///
    /// # Panics
    /// When it cannot be had.
    pub async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.expect("connected");
        stream.set_nodelay(true).expect("a socket");
        stream
    }

    /// What it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first `count` lines of its access log, in their order, waited for.
    ///
    /// # Panics
    /// When there are not as many.
    pub async fn access_log(&self, count: usize) -> Vec<Value> {
        self.lines(count, Value::is_object).await
    }

    /// The first `count` lines of its access log that name a cause of failure, waited for.
    ///
    /// # Panics
    /// When there are not as many.
    pub async fn faults(&self, count: usize) -> Vec<Value> {
        self.lines(count, |line| line.get("cause").is_some()).await
    }

    async fn lines(&self, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            let lines: Vec<Value> = lines.filter(&wanted).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < end, "{count} lines of log, got {lines:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A page of its admin port.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn admin(&self, path: &str) -> String {
        self.page(15000, path).await
    }

    /// Its metrics, as text.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn metrics(&self) -> String {
        self.page(15020, "/metrics").await
    }

    /// The status of a page of its health port.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn health(&self, path: &str) -> u16 {
        raw::status(&self.answer(15021, path).await)
    }

    async fn page(&self, port: u16, path: &str) -> String {
        let text = self.answer(port, path).await;
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        body.to_owned()
    }

    async fn answer(&self, port: u16, path: &str) -> String {
        let stream = TcpStream::connect((self.ip, port)).await;
        let mut stream = stream.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n");
        raw::write(&mut stream, request.as_bytes()).await;
        let (bytes, _) = raw::read_to_end(&mut stream).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a live process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB"));
        kib.and_then(|n| n.trim().parse::<u64>().ok())
            .expect("a number")
            * 1024
    }

    /// Processor time that it has used so far, in steps of the kernel's hundredths of a second.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let stat = stat.expect("a live process");
        // The name in parentheses may hold spaces; user and system time are fields 14 and 15.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let ticks = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// Open file descriptors.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Sends it a signal, by name.
    ///
    /// # Panics
    /// When that fails.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(sent.expect("kill").success(), "kill -{name}");
    }

    /// Waits for it to end by itself: its exit code.
    ///
    /// # Panics
    /// When it does not end within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Option<i32> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < end, "the proxy has not ended");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(40);
            eprintln!("--- the proxy's log");
            for line in lines.get(from..).unwrap_or_default() {
                eprintln!("{line}");
            }
        }
    }
}
