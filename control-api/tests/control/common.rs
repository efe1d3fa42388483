//! A control plane in this process, and clients of it.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use outrigger_control::{
    app::{self, Running, Settings},
    clock::Clock,
};
use outrigger_proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    outrigger::{
        control::v1::{self as pb, control_service_client::ControlServiceClient},
        identity::v1::{
            CreateCertificateRequest, CreateCertificateResponse,
            certificate_service_client::CertificateServiceClient,
        },
    },
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn control_plane(dir: &Path, clock: Clock) -> Running {
    app::start(settings(dir), clock).await.unwrap()
}

pub(crate) fn settings(dir: &Path) -> Settings {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Settings {
        state_dir: dir.to_owned(),
        kubernetes: None,
        xds_addr: any,
        api_addr: any,
        api_insecure: false,
        api_token_file: None,
        ca_files: None,
        telemetry_addr: any,
        trust_domain: "outrigger.local".into(),
        certificate_ttl: Duration::from_secs(3_600),
    }
}

pub(crate) fn api(running: &Running) -> ControlServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", running.api_addr)).unwrap();
    ControlServiceClient::new(endpoint.connect_lazy())
}

pub(crate) async fn apply(running: &Running, manifest: &str) -> Result<pb::ApplyResponse, Status> {
    let request = pb::ApplyRequest {
        manifest: manifest.into(),
        ..pb::ApplyRequest::default()
    };
    Ok(api(running).apply(request).await?.into_inner())
}

pub(crate) async fn token(running: &Running, namespace: &str, account: &str) -> String {
    let request = pb::CreateTokenRequest {
        namespace: namespace.into(),
        service_account: account.into(),
        ttl: None,
    };
    api(running)
        .create_token(request)
        .await
        .unwrap()
        .into_inner()
        .token
}

/// Checks the chain and nothing about names, as SPIFFE has it.
#[derive(Debug)]
struct AnyName(Arc<RootCertStore>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let cert = rustls::server::ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.0,
            intermediates,
            now,
            algorithms.all,
        )?;
        let cert = webpki::EndEntityCert::try_from(leaf).unwrap();
        let names: Vec<_> = cert.valid_uri_names().collect();
        assert_eq!(
            names,
            ["spiffe://outrigger.local/ns/outrigger-system/sa/outrigger-control"]
        );
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Svid {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// A channel to the port of the proxies; with a certificate if there is one.
pub(crate) async fn channel(
    running: &Running,
    root: &Path,
    svid: Option<&Svid>,
) -> Result<Channel, tonic::transport::Error> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(root).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(Arc::new(roots))));
    let mut config = match svid {
        None => config.with_no_client_auth(),
        Some(svid) => {
            let chain = CertificateDer::pem_slice_iter(svid.chain.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(svid.key.as_bytes()).unwrap();
            let chain = chain.collect::<Result<_, _>>().unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let address = running.xds_addr;
    let service = tower_service_fn(move || {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from("control").unwrap();
            Ok(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    Endpoint::from_static("http://control")
        .connect_with_connector(service)
        .await
}

type Io = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

fn tower_service_fn<F, Fut>(connect: F) -> Connect<F>
where
    F: Fn() -> Fut,
    Fut: Future<Output = std::io::Result<Io>>,
{
    Connect(connect)
}

#[derive(Clone)]
struct Connect<F>(F);

impl<F, Fut> tower_service::Service<http::Uri> for Connect<F>
where
    F: Fn() -> Fut,
    Fut: Future<Output = std::io::Result<Io>>,
{
    type Response = Io;
    type Error = std::io::Error;
    type Future = Fut;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Fut {
        (self.0)()
    }
}

pub(crate) fn new_request() -> (String, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec!["ignored.example".to_owned()]).unwrap();
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (csr, key)
}

pub(crate) async fn certificate(
    channel: Channel,
    token: &str,
) -> Result<(CreateCertificateResponse, Svid), Status> {
    let (csr_pem, key) = new_request();
    let request = CreateCertificateRequest {
        csr_pem,
        token: token.into(),
        validity: None,
    };
    let mut client = CertificateServiceClient::new(channel);
    let answer = client.create_certificate(request).await?.into_inner();
    let svid = Svid {
        chain: answer.cert_chain_pem.clone(),
        key: key.serialize_pem(),
    };
    Ok((answer, svid))
}

/// An open configuration stream.
pub(crate) struct Ads {
    pub(crate) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) answers: Streaming<DeltaDiscoveryResponse>,
}

impl Ads {
    pub(crate) async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(16);
        let stream = futures_util::stream::unfold(queue, |mut queue| async {
            let next = queue.recv().await?;
            Some((next, queue))
        });
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        // The server answers the headers only with the first message, so send one at once.
        let answers = client
            .delta_aggregated_resources(stream)
            .await?
            .into_inner();
        Ok(Self { requests, answers })
    }

    pub(crate) async fn subscribe(&self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn answer(&self, to: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let error = refusal.map(|message| outrigger_proto::google::rpc::Status {
            code: 3,
            message: message.into(),
            details: Vec::new(),
        });
        let request = DeltaDiscoveryRequest {
            type_url: to.type_url.clone(),
            response_nonce: to.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = timeout(PATIENCE, self.answers.message()).await;
        next.unwrap().unwrap().unwrap()
    }
}

pub(crate) fn node() -> Node {
    Node {
        id: "sidecar~10.1.0.2~cart-1.shop~shop.svc.outrigger.local".into(),
        ..Node::default()
    }
}
