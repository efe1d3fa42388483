//! The kubelet's probes, passed on to the application (KU-10).
//!
//! Where mutual TLS is demanded the kubelet cannot reach the application. The injector points its
//! probes here; the application is asked as the kubelet would have asked it, over a connection that
//! the redirect rules leave alone, and what it answers is answered. Nothing of it is counted among
//! the application's requests.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::PathAndQuery};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::call::Answer;
use crate::{
    balance::health::{grpc_serving, http1_head},
    bootstrap::{Ask, Probe, Probes},
    net::BoxIo,
};

/// As the kubelet and Go's client have it.
const MAX_REDIRECTS: usize = 10;

/// Where the pages begin.
const PREFIX: &str = "/probe/";

/// Asks the applications of this pod.
#[derive(Debug)]
pub struct Prober {
    probes: Probes,
    /// The pod's own address, at which the kubelet would ask.
    address: IpAddr,
}

impl Prober {
    /// For these probes of the pod with this address.
    #[must_use]
    pub const fn new(probes: Probes, address: IpAddr) -> Self {
        Self { probes, address }
    }

    /// The answer to a probe; `None` for what is none of its pages.
    pub(super) async fn answer(&self, path: &str) -> Option<Answer> {
        let name = path.strip_prefix(PREFIX)?;
        let Some(probe) = self.probes.0.get(name) else {
            let text = format!("no probe {name:?} is known\n");
            return Some(Answer::new(StatusCode::NOT_FOUND, Answer::TEXT, text));
        };
        let asked = timeout(probe.timeout, Box::pin(self.ask(probe))).await;
        let (status, text) = match asked {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            Err(_) => {
                let text = format!("no answer within {:?}", probe.timeout);
                (StatusCode::GATEWAY_TIMEOUT, text)
            }
        };
        Some(Answer::new(status, Answer::TEXT, format!("{text}\n")))
    }

    async fn ask(&self, probe: &Probe) -> io::Result<(StatusCode, String)> {
        let at = |port| SocketAddr::new(self.address, port);
        match &probe.ask {
            Ask::Tcp { port } => {
                TcpStream::connect(at(*port)).await?;
                Ok((StatusCode::OK, "connected".into()))
            }
            Ask::Grpc { port, service } => {
                let at = at(*port);
                let io = Box::new(TcpStream::connect(at).await?);
                match grpc_serving(io, at.to_string(), service).await? {
                    Ok(()) => Ok((StatusCode::OK, "serving".into())),
                    Err(why) => Ok((StatusCode::SERVICE_UNAVAILABLE, why)),
                }
            }
            Ask::Http {
                port,
                tls,
                path,
                headers,
            } => http(at(*port), *tls, path.clone(), headers).await,
        }
    }
}

/// The status that the application gives in the end; redirects to itself are followed, others
/// pass for good, as the kubelet does.
async fn http(
    at: SocketAddr,
    tls: bool,
    mut path: PathAndQuery,
    headers: &HeaderMap,
) -> io::Result<(StatusCode, String)> {
    let mut fields = headers.clone();
    let own = HeaderValue::from_str(&at.to_string()).map_err(io::Error::other)?;
    let host = fields.remove(header::HOST).unwrap_or(own);
    for _ in 0..MAX_REDIRECTS {
        let io = connect(at, tls).await?;
        let (status, answer) = http1_head(io, &host, &Method::GET, &path, &fields).await?;
        let text = format!("the application answered {}", status.as_u16());
        if !status.is_redirection() {
            return Ok((status, text));
        }
        let location = answer.get(header::LOCATION);
        match location.and_then(|location| own_path(location, &host)) {
            Some(next) => path = next,
            None => return Ok((StatusCode::OK, format!("{text}, to another host"))),
        }
    }
    let text = format!("more than {MAX_REDIRECTS} redirects");
    Ok((StatusCode::SERVICE_UNAVAILABLE, text))
}

/// Where a redirect leads, if not to another host.
fn own_path(location: &HeaderValue, host: &HeaderValue) -> Option<PathAndQuery> {
    let uri: Uri = location.to_str().ok()?.parse().ok()?;
    let here = uri
        .authority()
        .is_none_or(|authority| authority.as_str().as_bytes() == host.as_bytes());
    here.then(|| uri.path_and_query().cloned()).flatten()
}

async fn connect(at: SocketAddr, tls: bool) -> io::Result<BoxIo> {
    let stream = TcpStream::connect(at).await?;
    if !tls {
        return Ok(Box::new(stream));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    let name = ServerName::IpAddress(at.ip().into());
    let connector = TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, stream).await?))
}

/// The kubelet takes any certificate in a probe, and so does whoever asks in its place.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
