//! Handshakes over an in-memory stream, and tables of certificates.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    SignatureAlgorithm,
};
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::{
    matcher::StringMatch,
    tls::{ClientTls, PeerMatch, SecretRef, ServerTls},
};

const WEB: &str = "spiffe://outrigger.local/ns/shop/sa/web";
const DB: &str = "spiffe://outrigger.local/ns/shop/sa/db";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn now() -> Duration {
    Duration::from_secs(UnixTime::now().as_secs())
}

/// From and to, in seconds relative to now.
fn valid(params: &mut CertificateParams, from: i64, to: i64) {
    let at = |by: i64| {
        let unix = now().as_secs().saturating_add_signed(by);
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix)
    };
    (params.not_before, params.not_after) = (at(from), at(to));
}

impl Ca {
    fn new(name: &str) -> Self {
        Self::lasting(name, 3600)
    }

    fn lasting(name: &str, seconds: i64) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        valid(&mut params, -7200, seconds);
        let pem = params.self_signed(&key).expect("a root").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn sign(&self, mut params: CertificateParams, key: &KeyPair) -> String {
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.signed_by(key, &self.issuer).expect("signed").pem()
    }

    /// Chain and key of a leaf.
    fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        (self.sign(named(&[uri(name)]), &key), key.serialize_pem())
    }

    fn identity(&self, name: &str, roots: &[&Self]) -> Identity {
        let (chain, key) = self.leaf(name);
        load(&chain, &key, &bundle(roots)).expect("usable")
    }
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ascii"))
}

fn named(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = names.to_vec();
    valid(&mut params, -60, 3600);
    params
}

fn bundle(roots: &[&Ca]) -> String {
    roots.iter().map(|root| root.pem.as_str()).collect()
}

fn load(chain: &str, key: &str, roots: &str) -> Result<Identity, IdentityError> {
    Identity::from_pem(chain, key, roots, None, UnixTime::now())
}

/// One of two workloads.
struct Side {
    store: Arc<IdentityStore>,
    client: ClientTlsCache,
    server: ServerTlsCache,
    dials: Arc<ClientTls>,
    accepts: Arc<ServerTls>,
}

impl Side {
    /// A workload that speaks to `peer` only.
    fn new(own: Identity, peer: &str) -> Self {
        let store = IdentityStore::new();
        store.set(own);
        let peers = PeerMatch {
            identities: vec![StringMatch::exact(peer)],
            dns_names: Vec::new(),
        };
        let alpn: Vec<Arc<[u8]>> = vec![b"outrigger".as_slice().into()];
        Self {
            client: ClientTlsCache::new(Arc::clone(&store)),
            server: ServerTlsCache::new(Arc::clone(&store)),
            store,
            dials: Arc::new(ClientTls {
                certificate: Some(SecretRef::Workload),
                roots: SecretRef::MeshRoots,
                peers: peers.clone(),
                sni: "outrigger".into(),
                alpn: alpn.clone(),
                allow_tls12: false,
            }),
            accepts: Arc::new(ServerTls {
                certificate: SecretRef::Workload,
                roots: Some(SecretRef::MeshRoots),
                require_client_certificate: true,
                peers,
                alpn,
                allow_tls12: false,
            }),
        }
    }
}

/// What both sides of a connection say of it: the peer, or what went wrong.
async fn meet(client: &Side, server: &Side) -> (Result<String, String>, Result<String, String>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let config = server.server.config(&server.accepts).expect("settings");
    let accepted = async {
        let mut stream = TlsAcceptor::from(config)
            .accept(far)
            .await
            .map_err(|error| explain(&error))?;
        stream
            .write_all(b"hello")
            .await
            .map_err(|e| e.to_string())?;
        stream.shutdown().await.map_err(|e| e.to_string())?;
        let (_, session) = stream.get_ref();
        peer_identity(session.peer_certificates())
            .map(|id| id.to_string())
            .ok_or_else(|| "nobody".to_owned())
    };
    let dialled = async {
        let session = client
            .client
            .connect(&client.dials, b"outrigger", near)
            .await;
        let mut session = session.map_err(|error| error.to_string())?;
        // In TLS 1.3 the client is done first; a refusal shows at the first read.
        let mut said = Vec::new();
        let read = session.io.read_to_end(&mut said).await;
        read.map_err(|error| error.to_string())?;
        assert_eq!(said, b"hello");
        Ok(session.peer.expect("a peer").to_string())
    };
    tokio::join!(dialled, accepted)
}

#[tokio::test]
async fn tl_01_a_new_leaf_is_shown_in_both_roles_from_the_next_handshake_on() {
    let ca = Ca::new("mesh");
    let web = Side::new(ca.identity(WEB, &[&ca]), DB);
    let db = Side::new(ca.identity(DB, &[&ca]), WEB);
    assert_eq!(meet(&web, &db).await, (Ok(DB.into()), Ok(WEB.into())));
    // Other names make visible which leaf is shown.
    web.store.set(ca.identity(DB, &[&ca]));
    let (_, seen) = meet(&web, &db).await;
    assert!(seen.expect_err("another client").contains(DB));
    db.store.set(ca.identity(WEB, &[&ca]));
    let (seen, _) = meet(&web, &db).await;
    assert!(seen.expect_err("another server").contains(WEB));
    web.store.set(ca.identity(WEB, &[&ca]));
    db.store.set(ca.identity(DB, &[&ca]));
    assert_eq!(meet(&web, &db).await, (Ok(DB.into()), Ok(WEB.into())));
}

#[tokio::test]
async fn tl_02_bundles_that_overlap_work_and_others_say_both_names() {
    let (a, b) = (Ca::new("mesh root"), Ca::new("mesh root"));
    let steps: [(&Ca, &[&Ca]); 4] = [(&a, &[&a]), (&a, &[&a, &b]), (&b, &[&a, &b]), (&b, &[&b])];
    for (n, mine) in steps.iter().enumerate() {
        // Neighbours in the order of the roll-out are at most one step apart.
        for theirs in steps.get(n..).unwrap_or_default().iter().take(2) {
            let web = Side::new(mine.0.identity(WEB, mine.1), DB);
            let db = Side::new(theirs.0.identity(DB, theirs.1), WEB);
            assert_eq!(
                meet(&web, &db).await,
                (Ok(DB.into()), Ok(WEB.into())),
                "step {n}"
            );
            assert_eq!(
                meet(&db, &web).await,
                (Ok(WEB.into()), Ok(DB.into())),
                "step {n}"
            );
        }
    }
    let web = Side::new(a.identity(WEB, &[&a, &b]), DB);
    let db = Side::new(a.identity(DB, &[&b]), WEB);
    let key = |ca: &Ca| {
        let der = rustls::pki_types::pem::PemObject::from_pem_slice(ca.pem.as_bytes());
        let der: rustls::pki_types::CertificateDer<'_> = der.expect("a certificate");
        let view = CertificateView::of(&der).expect("readable");
        view.subject
    };
    let (_, refused) = meet(&web, &db).await;
    let refused = refused.expect_err("the root of the client is not in the bundle of the server");
    for said in [WEB.to_owned(), key(&a), key(&b)] {
        assert!(refused.contains(&said), "{said} is not in: {refused}");
    }
    assert_ne!(key(&a), key(&b), "roots of one name are told apart");
    assert!(key(&a).starts_with("CN=mesh root [key "), "{}", key(&a));
}

#[tokio::test]
async fn tl_08_a_peer_out_of_time_is_refused_with_the_times() {
    let ca = Ca::new("mesh");
    let key = KeyPair::generate().expect("a key");
    let mut early = named(&[uri(WEB)]);
    valid(&mut early, 600, 3600);
    let chain = ca.sign(early, &key);
    let early = load(&chain, &key.serialize_pem(), &ca.pem).expect("loads: our clock may be late");
    let (web, db) = (
        Side::new(early, DB),
        Side::new(ca.identity(DB, &[&ca]), WEB),
    );
    let (_, refused) = meet(&web, &db).await;
    assert!(
        refused
            .expect_err("too early")
            .contains("not valid yet, for another")
    );
    let nobody = Side {
        dials: Arc::new(ClientTls {
            certificate: None,
            ..(*web.dials).clone()
        }),
        ..web
    };
    let (_, refused) = meet(&nobody, &db).await;
    assert!(refused.expect_err("nobody").contains("no certificates"));
}

#[tokio::test]
async fn tl_09_a_certificate_is_one_identity_or_none() {
    let ca = Ca::new("mesh");
    let db = Side::new(ca.identity(DB, &[&ca]), WEB);
    let dns = || SanType::DnsName("web".try_into().expect("ascii"));
    let ca_leaf = || {
        let mut params = named(&[uri(WEB)]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    for (what, params, good) in [
        ("the one", named(&[uri(WEB)]), true),
        ("one with a host name too", named(&[uri(WEB), dns()]), true),
        ("no name", named(&[]), false),
        ("a host name", named(&[dns()]), false),
        ("two identities", named(&[uri(WEB), uri(DB)]), false),
        ("twice the one", named(&[uri(WEB), uri(WEB)]), false),
        (
            "a longer path",
            named(&[uri(&format!("{WEB}-admin"))]),
            false,
        ),
        (
            "a shorter path",
            named(&[uri(WEB.trim_end_matches('b'))]),
            false,
        ),
        (
            "other case",
            named(&[uri(&WEB.replace("web", "Web"))]),
            false,
        ),
        (
            "an escape",
            named(&[uri(&WEB.replace("web", "w%65b"))]),
            false,
        ),
        (
            "another domain",
            named(&[uri(&WEB.replace("outrigger.local", "outrigger.locaI"))]),
            false,
        ),
        ("no path", named(&[uri("spiffe://outrigger.local")]), false),
        (
            "another scheme",
            named(&[uri(&WEB.replace("spiffe", "https"))]),
            false,
        ),
        ("an authority", ca_leaf(), false),
    ] {
        let key = KeyPair::generate().expect("a key");
        let chain = ca.sign(params, &key);
        let Ok(own) = load(&chain, &key.serialize_pem(), &ca.pem) else {
            assert!(!good, "{what} does not load");
            continue;
        };
        let web = Side::new(own, DB);
        let (_, accepted) = meet(&web, &db).await;
        assert_eq!(accepted.is_ok(), good, "{what}: {accepted:?}");
    }
}

#[test]
fn tl_05_pem_in_odd_but_honest_forms_loads() {
    let ca = Ca::new("mesh");
    let (chain, key) = ca.leaf(WEB);
    let lines = |text: &str, end: &str| text.replace('\n', end);
    for (what, chain, key, roots) in [
        ("plain", chain.clone(), key.clone(), ca.pem.clone()),
        (
            "CRLF",
            lines(&chain, "\r\n"),
            lines(&key, "\r\n"),
            lines(&ca.pem, "\r\n"),
        ),
        (
            "blank lines",
            format!("\n\n{chain}\n\n\n"),
            format!("\n{key}\n\n"),
            format!("{}\n\n  \n", ca.pem),
        ),
        (
            "comments",
            format!("# leaf\nsubject=/O=x\n{chain}"),
            format!("Bag Attributes: none\n{key}"),
            format!("root of the mesh\n{}# end", ca.pem),
        ),
        (
            "a root twice",
            chain.clone(),
            key.clone(),
            format!("{0}{0}", ca.pem),
        ),
        (
            "no last line end",
            chain.trim_end().into(),
            key.trim_end().into(),
            ca.pem.clone(),
        ),
    ] {
        let loaded = load(&chain, &key, &roots).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(loaded.id.expect("an identity").as_str(), WEB, "{what}");
    }
}

#[test]
fn tl_05_keys_of_every_common_kind_load() {
    let ca = Ca::new("mesh");
    let algorithms: [(&str, &'static SignatureAlgorithm); 3] = [
        ("P-256", &PKCS_ECDSA_P256_SHA256),
        ("P-384", &PKCS_ECDSA_P384_SHA384),
        ("Ed25519", &PKCS_ED25519),
    ];
    for (what, algorithm) in algorithms {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let chain = ca.sign(named(&[uri(WEB)]), &key);
        load(&chain, &key.serialize_pem(), &ca.pem).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

#[test]
fn tl_05_what_is_wrong_is_named() {
    let (ca, other) = (Ca::new("mesh"), Ca::new("other"));
    let expired = Ca::lasting("gone", -3600);
    let (chain, key) = ca.leaf(WEB);
    let (_, stranger) = other.leaf(WEB);
    let error = |chain: &str, key: &str, roots: &str| {
        load(chain, key, roots).expect_err("refused").to_string()
    };
    let reversed = format!("{}{chain}", ca.pem);
    for (said, want) in [
        (error(&chain, &stranger, &ca.pem), "do not belong together"),
        (
            error(&reversed, &key, &ca.pem),
            "the leaf has to come first",
        ),
        (error("", &key, &ca.pem), "no certificate in it"),
        (error(&chain, "", &ca.pem), "private key"),
        (error(&chain, &key, ""), "trust bundle"),
        (error(&chain, &key, &expired.pem), "CN=gone"),
        (
            error(&chain, &key, &chain.replace("MII", "MIX")),
            "trust bundle",
        ),
        (error(&key, &key, &ca.pem), "no certificate in it"),
    ] {
        assert!(said.contains(want), "{want:?} is not in {said:?}");
    }
    // An expired root among good ones is left out, the good ones hold.
    let mixed = load(&chain, &key, &bundle(&[&expired, &ca, &other])).expect("usable");
    let names = mixed.roots.names();
    assert!(
        names.contains("CN=mesh") && names.contains("CN=other"),
        "{names}"
    );
    assert!(!names.contains("CN=gone"), "{names}");
}

#[test]
fn tl_03_the_next_certificate_is_due_by_the_life_that_is_left() {
    let ca = Ca::new("mesh");
    let own = ca.identity(WEB, &[&ca]);
    let from = own.since;
    assert!(from >= own.not_before + 60);
    assert_eq!(own.renew_at(0.0), from + (own.not_after - from) * 2 / 3);
    assert!(own.renew_at(1.0) < own.renew_at(0.0));
    assert!(own.is_valid(UnixTime::now()));
    let late = UnixTime::since_unix_epoch(now() + DAY);
    assert!(!own.is_valid(late));
}
