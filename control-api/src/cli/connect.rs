//! The way to the control API: in clear on the loopback, over TLS and with a token elsewhere.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use http::{HeaderValue, Uri, header::AUTHORIZATION};
use hyper_util::rt::TokioIo;
use outrigger_proto::outrigger::control::v1::control_service_client::ControlServiceClient;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls13_signature},
    server::ParsedCertificate,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::Args;
use crate::tls;

/// Where the control API is when nobody says.
pub(super) const DEFAULT_SERVER: &str = "127.0.0.1:15010";

/// For a call and for the connection that it needs; waiting calls say their own.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A list of everything may be longer than what was ever applied at once.
const MAX_ANSWER: usize = 256 << 20;
/// Name in the handshake; the certificate is checked for the identity instead.
const SERVER_NAME: &str = "outrigger-control";

/// What calls go through.
pub(super) type Client = ControlServiceClient<InterceptedService<Channel, Token>>;

/// Shows the token with each call, if there is one.
#[derive(Debug, Clone)]
pub(super) struct Token(Option<HeaderValue>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            let shown = value.to_str().ok().and_then(|text| text.parse().ok());
            let shown = shown.ok_or_else(|| Status::invalid_argument("the token is not ASCII"))?;
            request.metadata_mut().insert(AUTHORIZATION.as_str(), shown);
        }
        Ok(request)
    }
}

/// Connects when the first call is made.
pub(super) fn connect(args: &Args) -> anyhow::Result<Client> {
    let server = args.server.as_deref().unwrap_or(DEFAULT_SERVER);
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .with_context(|| format!("--server {server:?} is not host:port"))?
        .connect_timeout(CONNECT_TIMEOUT);
    let token = token(args)?;
    let channel = match &args.ca {
        Some(ca) => endpoint.connect_with_connector_lazy(Secure {
            tls: config(ca)?.into(),
            server: server.into(),
        }),
        None if token.is_some() && !is_loopback(server) => anyhow::bail!(
            "the token would go to {server} in clear; give --ca, the root of the control plane"
        ),
        None => endpoint.connect_lazy(),
    };
    Ok(over(channel, token))
}

/// Calls through `channel`.
pub(super) fn over(channel: Channel, token: Option<HeaderValue>) -> Client {
    let client = ControlServiceClient::with_interceptor(channel, Token(token));
    client.max_decoding_message_size(MAX_ANSWER)
}

fn token(args: &Args) -> anyhow::Result<Option<HeaderValue>> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .with_context(|| format!("--token-file {}", file.display()))?,
        (None, None) => return Ok(None),
    };
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .context("the token cannot stand in a header")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn is_loopback(server: &str) -> bool {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn config(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let at = || format!("--ca {}", ca.display());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).with_context(at)? {
        roots.add(root.with_context(at)?).with_context(at)?;
    }
    if roots.is_empty() {
        anyhow::bail!("{}: holds no certificate", at());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ControlPlane {
        roots: Arc::new(roots),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The other end must have the identity of the control plane; what host it is does not matter.
#[derive(Debug)]
struct ControlPlane {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ControlPlane {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            between,
            now,
            algorithms,
        )?;
        tls::is_control_plane(leaf).map_err(rustls::Error::General)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Makes connections over TLS.
#[derive(Clone)]
struct Secure {
    tls: TlsConnector,
    server: Arc<str>,
}

impl tower_service::Service<Uri> for Secure {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            let connect = async {
                let tcp = TcpStream::connect(&*this.server).await?;
                tcp.set_nodelay(true)?;
                this.tls.connect(name, tcp).await
            };
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
            let stream = stream.map_err(|_| std::io::ErrorKind::TimedOut)?;
            Ok(TokioIo::new(stream?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_loopback_is_known() {
        for near in [
            "127.0.0.1:1",
            "127.1.2.3:15010",
            "[::1]:1",
            "localhost:15010",
        ] {
            assert!(is_loopback(near), "{near}");
        }
        for far in [
            "10.0.0.1:1",
            "control:15010",
            "[fd00::1]:1",
            "localhost.evil:1",
        ] {
            assert!(!is_loopback(far), "{far}");
        }
    }
}
