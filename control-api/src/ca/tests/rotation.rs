//! Roots that follow one another, and those of an operator.

use rustls_pki_types::TrustAnchor;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

/// Whether a peer with this bundle takes a chain.
fn verifies(chain: &[CertificateDer<'static>], bundle: &Bundle, now: u64) -> bool {
    let anchors: Vec<TrustAnchor<'_>> = bundle
        .roots
        .iter()
        .map(|root| webpki::anchor_from_trusted_cert(&root.der).unwrap())
        .collect();
    let (leaf, between) = chain.split_first().unwrap();
    let leaf = webpki::EndEntityCert::try_from(leaf).unwrap();
    leaf.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        between,
        UnixTime::since_unix_epoch(Duration::from_secs(now)),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )
    .is_ok()
}

fn states(authority: &Authority) -> Vec<RootState> {
    let bundle = authority.bundle();
    bundle.roots.iter().map(|root| root.state).collect()
}

fn leaf(authority: &Authority) -> Vec<CertificateDer<'static>> {
    let csr = request(&PKCS_ECDSA_P256_SHA256, &[]);
    authority.sign_request(&csr, &cart(), None).unwrap().chain
}

#[test]
fn at_no_stage_of_a_rotation_is_a_good_certificate_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (now, clock) = clock();
    let mut authority = authority(dir.path(), &clock);
    // Every certificate and every bundle that somebody may hold, with when they got it.
    let mut leaves = vec![(NOW, leaf(&authority))];
    let mut bundles = vec![(NOW, authority.bundle())];
    let mut seen = vec![states(&authority)];
    for hour in 0..80 {
        let time = NOW + hour * HOUR.as_secs();
        now.store(time, Ordering::SeqCst);
        if hour == 2 {
            authority.rotate(None).unwrap();
            assert!(matches!(
                authority.rotate(None),
                Err(CaError::Rotating { .. })
            ));
        }
        authority.step().unwrap();
        if hour % 7 == 0 {
            // A restart changes nothing.
            authority = super::authority(dir.path(), &clock);
        }
        if seen.last() != Some(&states(&authority)) {
            seen.push(states(&authority));
        }
        leaves.push((time, leaf(&authority)));
        bundles.push((time, authority.bundle()));
        // A peer renews its bundle at least as often as its certificate.
        let live = |from: &u64| from + DAY.as_secs() > time;
        for (_, chain) in leaves.iter().filter(|(from, _)| live(from)) {
            for (_, bundle) in bundles.iter().filter(|(from, _)| live(from)) {
                assert!(verifies(chain, bundle, time), "hour {hour}");
            }
        }
    }
    use RootState::{Active, Next, Retiring};
    let expected = [
        vec![Active],
        vec![Active, Next],
        vec![Active, Retiring],
        vec![Active],
    ];
    assert_eq!(seen, expected);
    let (first, last) = (&bundles[0].1.roots[0], &authority.bundle().roots[0]);
    assert_ne!(first.fingerprint(), last.fingerprint());
    // In the end the old root proves nothing.
    let file = fs::read_to_string(dir.path().join("root.pem")).unwrap();
    assert_eq!(file, last.pem);
    assert!(!dir.path().join("next.key").exists());
    assert!(!dir.path().join("rotation.json").exists());
}

#[test]
fn a_short_overlap_is_counted_from_when_the_new_root_really_signs() {
    let dir = tempfile::tempdir().unwrap();
    let (now, clock) = clock();
    let authority = authority(dir.path(), &clock);
    authority.rotate(Some(HOUR)).unwrap();
    // The control plane was away for two days.
    now.store(NOW + 2 * DAY.as_secs(), Ordering::SeqCst);
    authority.step().unwrap();
    assert_eq!(states(&authority), [RootState::Active, RootState::Retiring]);
    let until = authority.bundle().roots[1].until;
    assert_eq!(until, Some(NOW + 2 * DAY.as_secs() + HOUR.as_secs()));
    now.fetch_add(HOUR.as_secs() - 1, Ordering::SeqCst);
    authority.step().unwrap();
    assert_eq!(authority.bundle().roots.len(), 2);
    now.fetch_add(1, Ordering::SeqCst);
    authority.step().unwrap();
    assert_eq!(states(&authority), [RootState::Active]);
}

#[test]
fn a_root_near_its_end_is_replaced_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (now, clock) = clock();
    let authority = authority(dir.path(), &clock);
    let (_, end) = authority.bundle().roots[0].validity;
    now.store(end - 366 * DAY.as_secs(), Ordering::SeqCst);
    authority.step().unwrap();
    assert_eq!(
        states(&authority),
        [RootState::Active],
        "a tenth of its life is left"
    );
    now.store(end - 364 * DAY.as_secs(), Ordering::SeqCst);
    authority.step().unwrap();
    assert_eq!(states(&authority), [RootState::Active, RootState::Next]);
}

#[test]
fn a_crash_at_any_file_of_a_rotation_is_survived() {
    let files = ["next.key", "rotation.json", "root.pem"];
    for lost in 1..=files.len() {
        let dir = tempfile::tempdir().unwrap();
        let (now, clock) = clock();
        let before = authority(dir.path(), &clock);
        let old = fs::read(dir.path().join("root.pem")).unwrap();
        before.rotate(Some(HOUR)).unwrap();
        // The last writes did not reach the disk; they are in the order of `files`.
        for file in &files[lost..] {
            if *file == "root.pem" {
                fs::write(dir.path().join(file), &old).unwrap();
            } else {
                fs::remove_file(dir.path().join(file)).unwrap();
            }
        }
        let after = authority(dir.path(), &clock);
        let begun = lost == files.len();
        assert_eq!(
            after.bundle().roots.len(),
            if begun { 2 } else { 1 },
            "{lost}"
        );
        now.fetch_add(HOUR.as_secs(), Ordering::SeqCst);
        after.step().unwrap();
        assert!(verifies(
            &leaf(&after),
            &after.bundle(),
            NOW + HOUR.as_secs()
        ));
        if !begun {
            after.rotate(Some(HOUR)).unwrap();
            assert_eq!(after.bundle().roots.len(), 2, "another attempt, {lost}");
        }
    }
}

/// An authority of an operator's: root, intermediate, and the files of them.
struct Operator {
    dir: tempfile::TempDir,
    root: rcgen::CertifiedIssuer<'static, KeyPair>,
}

impl Operator {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root = rcgen::CertifiedIssuer::self_signed(Self::params("root"), key).unwrap();
        let this = Self {
            dir: tempfile::tempdir().unwrap(),
            root,
        };
        let root = this.root.pem();
        this.write("roots.pem", &root);
        this.intermediate("one");
        this
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        set_validity(&mut params, NOW - 1_000, NOW + 30 * DAY.as_secs());
        params
    }

    /// Makes a new intermediate the one in the files.
    fn intermediate(&self, name: &str) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let cert = Self::params(name).signed_by(&key, &self.root).unwrap();
        self.write("ca.pem", &cert.pem());
        self.write("ca.key", &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn open(&self, roots: bool, clock: &Clock) -> Result<Authority, CaError> {
        let path = |name: &str| self.dir.path().join(name);
        let origin = Origin::Files {
            cert: path("ca.pem"),
            key: path("ca.key"),
            roots: roots.then(|| path("roots.pem")),
        };
        Authority::open(origin, "outrigger.local", DAY, clock.clone())
    }
}

#[test]
fn an_operators_intermediate_signs_and_is_shown() {
    let (_, clock) = clock();
    let operator = Operator::new();
    let authority = operator.open(true, &clock).unwrap();
    let chain = leaf(&authority);
    assert_eq!(chain.len(), 2, "the leaf and the intermediate");
    assert!(verifies(&chain, &authority.bundle(), NOW));
    assert!(
        !verifies(&chain[..1], &authority.bundle(), NOW),
        "it is needed"
    );
    assert!(matches!(authority.rotate(None), Err(CaError::NotOurs)));

    // Files that change are taken without a restart, and broken ones are not.
    let other = Operator::new();
    let both = format!("{}{}", operator.root.pem(), other.root.pem());
    operator.write("roots.pem", &both);
    operator.intermediate("two");
    let mut bundles = authority.watch();
    authority.step().unwrap();
    assert!(bundles.has_changed().unwrap());
    bundles.mark_unchanged();
    assert_eq!(authority.bundle().roots.len(), 2);
    assert!(verifies(&leaf(&authority), &authority.bundle(), NOW));
    assert!(verifies(
        &leaf(&other.open(true, &clock).unwrap()),
        &authority.bundle(),
        NOW
    ));
    authority.step().unwrap();
    assert!(
        !bundles.has_changed().unwrap(),
        "the same files are no change"
    );
    operator.write("ca.pem", "half a certif");
    assert!(matches!(authority.step(), Err(CaError::Unusable { .. })));
    assert!(verifies(&leaf(&authority), &authority.bundle(), NOW));
}

#[test]
fn files_that_could_sign_nothing_good_are_refused() {
    let (_, clock) = clock();
    let said = |operator: &Operator, roots| operator.open(roots, &clock).unwrap_err().to_string();
    let operator = Operator::new();
    let why = said(&operator, false);
    assert!(why.contains("--ca-roots"), "{why}");
    // A root alone, without --ca-roots, is its own bundle.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let alone = Operator::params("alone").self_signed(&key).unwrap();
    operator.write("ca.pem", &alone.pem());
    operator.write("ca.key", &key.serialize_pem());
    let authority = operator.open(false, &clock).unwrap();
    assert_eq!(leaf(&authority).len(), 1);
    assert!(verifies(&leaf(&authority), &authority.bundle(), NOW));
    // Signed by it, but not below what peers trust.
    let why = said(&operator, true);
    assert!(why.contains("does not lead to"), "{why}");
    operator.write("ca.key", &KeyPair::generate().unwrap().serialize_pem());
    let why = said(&operator, true);
    assert!(why.contains("does not belong to the key"), "{why}");
    let mut params = Operator::params("leaf");
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.self_signed(&key).unwrap();
    operator.write("ca.pem", &leaf.pem());
    operator.write("ca.key", &key.serialize_pem());
    let why = said(&operator, true);
    assert!(why.contains("may not sign"), "{why}");
}
