//! A proxy of another version, as a control plane meets it: it joins with a token, subscribes to a
//! cluster over mutual TLS, takes what it is sent, and from some moment on refuses it.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
};

use outrigger_proto::{
    envoy::{
        config::core::v3::{Node, node::UserAgentVersionType},
        service::discovery::v3::{
            DeltaDiscoveryRequest,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use outrigger_proxy::{
    config::{SpiffeId, TrustDomain},
    control::{CertificateSource, Connector, ConnectorSettings, WallClock},
    net::Dialer,
    tls::IdentityStore,
};
use prost_types::{Struct, Value, value::Kind};
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

/// The type that it subscribes to.
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// Where it joins, and as what.
#[derive(Debug)]
pub struct Refuser {
    pub control_plane: String,
    pub root: PathBuf,
    pub token: PathBuf,
    pub namespace: String,
    pub service_account: String,
    pub address: Ipv4Addr,
    /// The cluster that it subscribes to.
    pub cluster: String,
    /// What it says when it refuses.
    pub reason: String,
}

/// What it does, from outside.
#[derive(Clone, Debug, Default)]
pub struct Refusing {
    refuse: Arc<AtomicBool>,
    taken: Arc<AtomicU32>,
}

impl Refusing {
    /// From now on every answer is refused.
    pub fn begin(&self) {
        self.refuse.store(true, SeqCst);
    }

    /// Answers that it took.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken.load(SeqCst)
    }
}

impl Refuser {
    /// Joins, in a thread of its own, which ends with the process.
    ///
    /// # Panics
    /// In its thread, when the control plane does not take it.
    #[must_use]
    pub fn start(self) -> Refusing {
        let refusing = Refusing::default();
        let seen = refusing.clone();
        thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().expect("a runtime");
            runtime.block_on(self.run(&seen));
        });
        refusing
    }

    async fn run(self, seen: &Refusing) {
        let store = IdentityStore::new();
        let domain = TrustDomain::parse("outrigger.local").expect("a trust domain");
        let connector = Connector::new(ConnectorSettings {
            addresses: vec![self.control_plane.clone()],
            bundle: self.root.clone(),
            domain: domain.clone(),
            dialer: Dialer::default(),
            identity: Arc::clone(&store),
            clock: WallClock::system(),
        });
        let connector = connector.expect("set up");
        let id = SpiffeId::of(&domain, &self.namespace, &self.service_account);
        let source = CertificateSource {
            authority: connector.clone(),
            id: id.expect("an identity"),
            token_file: Some(self.token.clone()),
            clock: WallClock::system(),
            state_dir: None,
        };
        store.set(source.fetch(None, 0).await.expect("a certificate"));
        let channel = Endpoint::from_static("http://control-plane")
            .connect_with_connector(connector)
            .await
            .expect("a connection");
        self.subscribe(channel, seen).await;
    }

    async fn subscribe(self, channel: tonic::transport::Channel, seen: &Refusing) {
        let (send, mut requests) = mpsc::channel(4);
        let first = DeltaDiscoveryRequest {
            node: Some(self.node()),
            type_url: CLUSTER.to_owned(),
            resource_names_subscribe: vec![self.cluster.clone()],
            ..DeltaDiscoveryRequest::default()
        };
        send.send(first).await.expect("room");
        let requests = futures_util::stream::poll_fn(move |cx| requests.poll_recv(cx));
        let answers = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(requests)
            .await
            .expect("a stream");
        let mut answers = answers.into_inner();
        while let Ok(Some(answer)) = answers.message().await {
            let refuse = seen.refuse.load(SeqCst);
            if !refuse {
                seen.taken.fetch_add(1, SeqCst);
            }
            let error = refuse.then(|| rpc::Status {
                code: 3,
                message: self.reason.clone(),
                ..rpc::Status::default()
            });
            let reply = DeltaDiscoveryRequest {
                type_url: answer.type_url,
                response_nonce: answer.nonce,
                error_detail: error,
                ..DeltaDiscoveryRequest::default()
            };
            if send.send(reply).await.is_err() {
                return;
            }
        }
    }

    fn node(&self) -> Node {
        let text = |value: &str| Value {
            kind: Some(Kind::StringValue(value.to_owned())),
        };
        let on = Value {
            kind: Some(Kind::StringValue("true".to_owned())),
        };
        let fields = [
            ("NAMESPACE", text(&self.namespace)),
            ("SERVICE_ACCOUNT", text(&self.service_account)),
            ("WORKLOAD_NAME", text(&self.service_account)),
            ("INSTANCE_IPS", text(&self.address.to_string())),
            ("OUTRIGGER_ON_DEMAND", on),
        ];
        let fields = fields.map(|(key, value)| (key.to_owned(), value));
        let (ip, namespace, workload) = (self.address, &self.namespace, &self.service_account);
        Node {
            id: format!("sidecar~{ip}~{workload}.{namespace}~{namespace}.svc.outrigger.local"),
            user_agent_name: "another".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                "0.0.1".to_owned(),
            )),
            metadata: Some(Struct {
                fields: fields.into_iter().collect(),
            }),
            ..Node::default()
        }
    }
}
