//! Certificates: an authority, the files that a proxy reads its identity from, scripted peers that
//! speak TLS, and the settings that make a proxy do so.

use std::{fs, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Setup;

/// The workloads of these tests.
pub const WEB: &str = "spiffe://outrigger.local/ns/shop/sa/web";
pub const DB: &str = "spiffe://outrigger.local/ns/shop/sa/db";
pub const STRANGER: &str = "spiffe://outrigger.local/ns/shop/sa/stranger";

/// What sidecars agree on.
pub const MESH_HTTP: [&str; 2] = ["outrigger-h2", "outrigger-http/1.1"];
pub const MESH_TCP: [&str; 1] = ["outrigger"];

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub chain: String,
    pub key: String,
}

impl Leaf {
    fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        (
            chain.collect::<Result<_, _>>().expect("certificates"),
            key.expect("a key"),
        )
    }

    /// Its first certificate, as it is sent.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn first(&self) -> CertificateDer<'static> {
        self.der().0.into_iter().next().expect("a certificate")
    }
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    /// A new root of this name.
    ///
    /// # Panics
    /// When none can be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("a root").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A leaf for an identity, good for an hour.
    #[must_use]
    pub fn leaf(&self, identity: &str) -> Leaf {
        self.lasting(identity, 3600)
    }

    /// A leaf that ends so many seconds from now, and began an hour before.
    ///
    /// # Panics
    /// When none can be made.
    #[must_use]
    pub fn lasting(&self, identity: &str, seconds: i64) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().expect("ascii"))];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let at = |by: i64| {
            let unix = UnixTime::now().as_secs().saturating_add_signed(by);
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix)
        };
        (params.not_before, params.not_after) = (at(seconds.min(0) - 3600), at(seconds));
        let chain = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Leaf {
            chain,
            key: key.serialize_pem(),
        }
    }
}

fn roots(of: &[&Authority]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    for one in of {
        let der = CertificateDer::from_pem_slice(one.pem.as_bytes()).expect("a root");
        store.add(der).expect("a root");
    }
    store
}

/// The files that a proxy reads its identity from.
#[derive(Debug)]
pub struct Files {
    dir: TempDir,
}

impl Files {
    /// Writes them for the first time.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn new(leaf: &Leaf, roots: &[&Authority]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("outrigger-identity-")
            .tempdir()
            .expect("a folder");
        let this = Self { dir };
        this.put(leaf, roots);
        this
    }

    /// Replaces them one after the other, as `mv` would.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn put(&self, leaf: &Leaf, roots: &[&Authority]) {
        let bundle: String = roots.iter().map(|root| root.pem.as_str()).collect();
        for (name, text) in [("key", &leaf.key), ("cert", &leaf.chain), ("ca", &bundle)] {
            let (new, old) = (self.dir.path().join("new"), self.dir.path().join(name));
            fs::write(&new, text).expect("written");
            fs::rename(&new, old).expect("moved");
        }
    }

    /// The flags that name them.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        ["cert", "key", "ca"]
            .iter()
            .flat_map(|name| {
                let path = self.dir.path().join(name);
                [format!("--{name}-file"), path.display().to_string()]
            })
            .collect()
    }
}

impl Setup {
    /// Gives the proxy an identity.
    #[must_use]
    pub fn identity(mut self, files: &Files) -> Self {
        self.flags.extend(files.flags());
        self
    }
}

fn common(alpn: &[&str], peers: &Value) -> Value {
    json!({
        "tls_certificate_sds_secret_configs": [{"name": "default"}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": peers}],
            },
            "validation_context_sds_secret_config": {"name": "ROOTCA"},
        },
        "alpn_protocols": alpn,
    })
}

/// A filter chain that terminates mutual TLS, for peers of the mesh's trust domain.
#[must_use]
pub fn accepts(alpn: &[&str]) -> Value {
    let peers = json!({"prefix": "spiffe://outrigger.local/"});
    json!({"transport_socket": {"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": common(alpn, &peers),
    }}})
}

/// A cluster whose endpoints have to prove to be `identity`.
#[must_use]
pub fn dials(identity: &str) -> Value {
    let alpn = ["outrigger-h2", "outrigger-http/1.1", "outrigger"];
    json!({"transport_socket": {"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "outrigger",
        "common_tls_context": common(&alpn, &json!({"exact": identity})),
    }}})
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A scripted client: shows `leaf`, accepts any server.
///
/// # Panics
/// When the settings do not fit.
#[must_use]
pub fn client(leaf: Option<&Leaf>, alpn: &[&str]) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider())));
    let mut config = match leaf {
        Some(leaf) => {
            let (chain, key) = leaf.der();
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// A scripted server: shows `leaf`; asks for certificates of `clients`, or for none.
///
/// # Panics
/// When the settings do not fit.
#[must_use]
pub fn server(leaf: &Leaf, clients: &[&Authority], alpn: &[&str]) -> TlsAcceptor {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("TLS 1.3");
    let builder = if clients.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(clients)), provider());
        builder.with_client_cert_verifier(verifier.build().expect("roots"))
    };
    let (chain, key) = leaf.der();
    let mut config = builder.with_single_cert(chain, key).expect("a pair");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// The name that scripted clients ask for.
///
/// # Panics
/// Never.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("outrigger").expect("a name")
}

/// Believes every server that holds the key of its certificate; the test looks for itself.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
