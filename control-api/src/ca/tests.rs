//! What is signed, for whom, and what is not.

mod rotation;

use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};
use rustls_pki_types::UnixTime;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::*;
use crate::store::Store;

const NOW: u64 = 1_800_000_000;
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A clock that tests turn.
fn clock() -> (Arc<AtomicU64>, Clock) {
    let now = Arc::new(AtomicU64::new(NOW));
    let read = Arc::clone(&now);
    let clock = Clock::of(move || {
        UnixTime::since_unix_epoch(Duration::from_secs(read.load(Ordering::SeqCst)))
    });
    (now, clock)
}

fn authority(dir: &Path, clock: &Clock) -> Authority {
    let origin = Origin::Own(dir.to_owned());
    Authority::open(origin, "outrigger.local", DAY, clock.clone()).unwrap()
}

fn cart() -> Identity {
    Identity::new("outrigger.local", "shop", "cart").unwrap()
}

fn request(algorithm: &'static SignatureAlgorithm, names: &[&str]) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let params = CertificateParams::new(names).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn parsed(der: &CertificateDer<'_>, check: impl FnOnce(&X509Certificate<'_>)) {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    check(&certificate);
}

#[test]
fn a_leaf_names_the_proven_identity_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (_, clock) = clock();
    let authority = authority(dir.path(), &clock);
    // Whatever names the request asks for.
    let csr = request(&PKCS_ECDSA_P256_SHA256, &["evil.example", "10.0.0.1"]);
    let issued = authority.sign_request(&csr, &cart(), None).unwrap();
    parsed(&issued.chain[0], |leaf| {
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        let expected = [GeneralName::URI("spiffe://outrigger.local/ns/shop/sa/cart")];
        assert_eq!(names.value.general_names, expected);
        assert!(leaf.subject().iter().next().is_none(), "an empty subject");
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
    });
    // RFC 5280 §4.2.1.6: with an empty subject the names are critical.
    parsed(&issued.chain[0], |leaf| {
        assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    });
}

#[test]
fn tl_03_a_leaf_is_valid_for_peers_two_minutes_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (_, clock) = clock();
    let authority = authority(dir.path(), &clock);
    let csr = request(&PKCS_ECDSA_P256_SHA256, &[]);
    for (wish, life) in [
        (None, DAY.as_secs()),
        (Some(60), 60),
        (Some(1), MIN_TTL.as_secs()),
        (Some(30 * DAY.as_secs()), DAY.as_secs()),
    ] {
        let wish = wish.map(Duration::from_secs);
        let issued = authority.sign_request(&csr, &cart(), wish).unwrap();
        let validity = validity_of(&issued.chain[0]).unwrap();
        assert_eq!(validity, (NOW - 120, NOW + life), "{wish:?}");
        assert_eq!(issued.not_after, NOW + life);
    }
}

#[test]
fn tl_04_an_expired_root_signs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (now, clock) = clock();
    let authority = authority(dir.path(), &clock);
    let (from, to) = authority.bundle().roots[0].validity;
    let csr = request(&PKCS_ECDSA_P256_SHA256, &[]);
    for (time, good) in [(from - 1, false), (from, true), (to - 1, true), (to, false)] {
        now.store(time, Ordering::SeqCst);
        let issued = authority.sign_request(&csr, &cart(), None);
        match issued {
            Ok(issued) => {
                assert!(good, "{time}");
                let (leaf_from, leaf_to) = validity_of(&issued.chain[0]).unwrap();
                assert!(from <= leaf_from && leaf_from <= time && time < leaf_to);
                assert!(leaf_to <= to, "a leaf does not outlive its root");
            }
            Err(error) => assert!(!good && matches!(error, CaError::RootNotValid { .. })),
        }
    }
}

#[test]
fn only_p256_requests_that_are_whole_are_signed() {
    let dir = tempfile::tempdir().unwrap();
    let (_, clock) = clock();
    let authority = authority(dir.path(), &clock);
    let good = request(&PKCS_ECDSA_P256_SHA256, &[]);
    let (head, _) = good.split_at(good.len() / 2);
    // Another letter in the middle: the signature no longer fits.
    let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
    let middle = lines[2].remove(0);
    lines[2].insert(0, if middle == 'A' { 'B' } else { 'A' });
    let forged = lines.join("\n");
    let bad = [
        String::new(),
        "garbage".to_owned(),
        head.to_owned(),
        forged,
        request(&PKCS_ED25519, &[]),
        request(&PKCS_ECDSA_P384_SHA384, &[]),
    ];
    for csr in bad {
        let signed = authority.sign_request(&csr, &cart(), None);
        assert!(matches!(signed, Err(CaError::Request(_))), "{csr}");
    }
    // TL-05: as files come from other systems.
    for odd in [
        good.replace('\n', "\r\n"),
        format!("\n\n# mine\n{good}\n\n"),
    ] {
        authority.sign_request(&odd, &cart(), None).unwrap();
    }
}

#[test]
fn the_root_stays_and_its_key_is_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let (_, clock) = clock();
    let first = authority(dir.path(), &clock).bundle().pem();
    assert_eq!(authority(dir.path(), &clock).bundle().pem(), first);
    let mode = fs::metadata(dir.path().join("root.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // A root that belongs to another key would sign what nobody can verify.
    let other = tempfile::tempdir().unwrap();
    drop(authority(other.path(), &clock));
    fs::copy(other.path().join("root.pem"), dir.path().join("root.pem")).unwrap();
    let origin = Origin::Own(dir.path().to_owned());
    let error = Authority::open(origin, "outrigger.local", DAY, clock).unwrap_err();
    assert!(
        error.to_string().contains("does not belong to the key"),
        "{error}"
    );
}

#[test]
fn a_token_proves_one_identity_until_it_expires() {
    let dir = tempfile::tempdir().unwrap();
    let (now, clock) = clock();
    let path = dir.path().join("store.redb");
    let store = Arc::new(Store::open(&path).unwrap());
    let tokens = Tokens::new(store, "outrigger.local", clock);
    let hour = Duration::from_secs(3_600);
    let created = tokens.create("shop", "cart", hour).unwrap();
    let (token, identity, expires) = (created.token, created.identity, created.expires);
    assert_eq!((identity, expires), (cart(), NOW + 3_600));
    // All replicas of a workload may start with it.
    for _ in 0..3 {
        assert_eq!(tokens.check(&token).unwrap(), cart());
    }
    let mut near = token.clone();
    let last = near.pop();
    near.push(if last == Some('0') { '1' } else { '0' });
    for wrong in ["", "ort_", &near, &token.to_uppercase()] {
        assert!(
            matches!(tokens.check(wrong), Err(TokenError::Unknown)),
            "{wrong}"
        );
    }
    let other = tokens.create("shop", "cart", hour).unwrap().token;
    assert_ne!(other, token);
    now.store(NOW + 3_599, Ordering::SeqCst);
    assert_eq!(tokens.check(&token).unwrap(), cart());
    now.store(NOW + 3_600, Ordering::SeqCst);
    assert!(matches!(tokens.check(&token), Err(TokenError::Expired(_))));
    for (namespace, account) in [("", "a"), ("a/b", "c"), ("a", ".."), ("a", "b c")] {
        let refused = tokens.create(namespace, account, hour);
        assert!(
            matches!(refused, Err(TokenError::Identity(_))),
            "{namespace}/{account}"
        );
    }
}

#[test]
fn a_token_is_not_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (_, clock) = clock();
    let path = dir.path().join("store.redb");
    let store = Arc::new(Store::open(&path).unwrap());
    let tokens = Tokens::new(store, "outrigger.local", clock);
    let token = tokens.create("shop", "cart", DEFAULT_TTL).unwrap().token;
    drop(tokens);
    let secret = token.strip_prefix("ort_").unwrap().as_bytes();
    let bytes = fs::read(path).unwrap();
    assert!(!bytes.windows(secret.len()).any(|window| window == secret));
}

#[test]
fn tokens_are_listed_by_id_and_revoked_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let (now, clock) = clock();
    let store = Arc::new(Store::open(&dir.path().join("store")).unwrap());
    let tokens = Tokens::new(store, "outrigger.local", clock);
    let hour = Duration::from_secs(3_600);
    let cart = tokens.create("shop", "cart", hour).unwrap();
    let web = tokens.create("shop", "web", 2 * hour).unwrap();
    let other = tokens.create("other", "web", hour).unwrap();
    let ids = |namespace: &str| -> Vec<String> {
        let list = tokens.list(namespace).unwrap();
        list.into_iter().map(|known| known.id).collect()
    };
    assert_eq!(ids(""), [other.id, cart.id.clone(), web.id.clone()]);
    assert_eq!(ids("shop"), [cart.id.clone(), web.id.clone()]);
    assert!(!cart.token.contains(&cart.id), "an id tells nothing");

    let refused = tokens.revoke(&[cart.id.clone(), "ffffffffffff".to_owned()]);
    assert!(matches!(refused, Err(TokenError::NoSuchId(id)) if id == "ffffffffffff"));
    assert!(tokens.check(&cart.token).is_ok(), "none was revoked");
    let short = tokens.revoke(&[cart.id.chars().take(5).collect()]);
    assert!(matches!(short, Err(TokenError::ShortId(_))));

    let beginning: String = cart.id.chars().take(6).collect();
    let revoked = tokens
        .revoke(&[beginning.clone(), cart.id.clone()])
        .unwrap();
    assert_eq!(revoked.len(), 1);
    assert!(matches!(
        tokens.check(&cart.token),
        Err(TokenError::Unknown)
    ));
    assert!(tokens.check(&web.token).is_ok());
    assert!(matches!(
        tokens.revoke(&[beginning]),
        Err(TokenError::NoSuchId(_))
    ));
    // One that has expired is not listed any more.
    now.fetch_add(3_600, Ordering::SeqCst);
    assert_eq!(ids(""), [web.id]);
}
