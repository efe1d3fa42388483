//! Renewal against a scripted authority, a wall clock that is stepped, and a paused timer.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use rand::{SeedableRng, rngs::StdRng};
use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose};
use rustls::pki_types::UnixTime;
use tokio::time::Instant;

use super::*;

const ID: &str = "spiffe://outrigger.local/ns/shop/sa/web";
/// 2026-01-01, in seconds since 1970.
const EPOCH: u64 = 1_767_225_600;
const HOUR: Duration = Duration::from_secs(3600);

/// How the authority answers one request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Good,
    Away,
    Expired,
    OtherName,
    OtherKey,
    Garbage,
}

/// A wall clock that goes with the paused timer and can be stepped beside it.
#[derive(Clone)]
struct Steps {
    began: Instant,
    by: Arc<AtomicI64>,
}

impl Steps {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            by: Arc::default(),
        }
    }

    fn step(&self, seconds: i64) {
        self.by.fetch_add(seconds, Relaxed);
    }

    fn seconds(&self) -> u64 {
        (EPOCH + self.began.elapsed().as_secs()).saturating_add_signed(self.by.load(Relaxed))
    }

    fn clock(&self) -> WallClock {
        let this = self.clone();
        WallClock::of(move || UnixTime::since_unix_epoch(Duration::from_secs(this.seconds())))
    }
}

/// Signs what its script says, then well.
struct Script {
    root: Issuer<'static, KeyPair>,
    root_pem: String,
    answers: Mutex<VecDeque<Answer>>,
    /// What each request was backed by, and when it came, in seconds of the timer.
    seen: Arc<Mutex<Vec<(Proof, u64)>>>,
    began: Instant,
    /// Right or wrong as it may be.
    clock: Steps,
    life: Duration,
}

impl Script {
    fn new(clock: &Steps, life: Duration, answers: &[Answer]) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root_pem = params.self_signed(&key).expect("a root").pem();
        Self {
            root: Issuer::new(params, key),
            root_pem,
            answers: Mutex::new(answers.iter().copied().collect()),
            seen: Arc::default(),
            began: Instant::now(),
            clock: clock.clone(),
            life,
        }
    }

    fn leaf(&self, csr_pem: &str, answer: Answer) -> String {
        let now = self.clock.seconds();
        let (from, to) = match answer {
            Answer::Expired => (now - 7200, now - 3600),
            _ => (now - 60, now + self.life.as_secs()),
        };
        let at = |unix| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix);
        let name = match answer {
            Answer::OtherName => "spiffe://outrigger.local/ns/shop/sa/other",
            _ => ID,
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ascii"))];
        (params.not_before, params.not_after) = (at(from), at(to));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if answer == Answer::OtherKey {
            let stranger = KeyPair::generate().expect("a key");
            return params
                .signed_by(&stranger, &self.root)
                .expect("signed")
                .pem();
        }
        let key = RequestKey::of(csr_pem);
        params.signed_by(&key, &self.root).expect("signed").pem()
    }
}

/// The P-256 key in a request.
struct RequestKey(Vec<u8>);

impl RequestKey {
    fn of(csr_pem: &str) -> Self {
        use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes());
        let der = der.expect("a request");
        // A bit string of 66 bytes without unused bits: the point.
        let at = der.windows(3).position(|bytes| bytes == [0x03, 0x42, 0x00]);
        let at = at.expect("a key") + 3;
        Self(der[at..at + 65].to_vec())
    }
}

impl rcgen::PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Authority for Script {
    async fn sign(
        &self,
        csr_pem: String,
        proof: Proof,
    ) -> Result<CreateCertificateResponse, SourceError> {
        let at = self.began.elapsed().as_secs();
        self.seen.lock().expect("whole").push((proof, at));
        let next = self.answers.lock().expect("whole").pop_front();
        let answer = next.unwrap_or(Answer::Good);
        let cert_chain_pem = match answer {
            Answer::Away => {
                let away = tonic::Status::unavailable("nobody is here");
                return Err(SourceError::Refused(Box::new(away)));
            }
            Answer::Garbage => "-----BEGIN CERTIFICATE-----\nMII\n".to_owned(),
            answer => self.leaf(&csr_pem, answer),
        };
        Ok(CreateCertificateResponse {
            cert_chain_pem,
            trust_bundle_pem: self.root_pem.clone(),
        })
    }
}

/// A source at work.
struct Rig {
    clock: Steps,
    store: Arc<IdentityStore>,
    seen: Arc<Mutex<Vec<(Proof, u64)>>>,
    task: tokio::task::JoinHandle<()>,
    _token: tempfile::NamedTempFile,
}

impl Rig {
    fn start(life: Duration, answers: &[Answer]) -> Self {
        let clock = Steps::new();
        let script = Script::new(&clock, life, answers);
        let token = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(token.path(), "join\n").expect("written");
        let (store, seen) = (IdentityStore::new(), Arc::clone(&script.seen));
        let source = CertificateSource {
            authority: script,
            id: SpiffeId::parse(ID).expect("an identity"),
            token_file: Some(token.path().to_owned()),
            clock: clock.clock(),
            state_dir: None,
        };
        let task = tokio::spawn(source.run(Arc::clone(&store), StdRng::seed_from_u64(7)));
        Self {
            clock,
            store,
            seen,
            task,
            _token: token,
        }
    }

    fn serial(&self) -> String {
        self.store.get().expect("an identity").serial.clone()
    }

    fn requests(&self) -> Vec<(Proof, u64)> {
        self.seen.lock().expect("whole").clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn token() -> Proof {
    Proof::Token("join".to_owned())
}

#[tokio::test(start_paused = true)]
async fn tl_03_a_certificate_is_renewed_at_two_thirds_of_its_life_by_itself() {
    let rig = Rig::start(3 * HOUR, &[]);
    rig.store.ready().await;
    tokio::time::sleep(6 * HOUR).await;
    let requests = rig.requests();
    assert_eq!(requests[0], (token(), 0));
    assert_eq!(requests[1].0, Proof::Certificate);
    // Two thirds, less up to a tenth, and the clock is looked at each 30 s.
    for pair in requests.windows(2) {
        let gap = pair[1].1 - pair[0].1;
        assert!((6120 - 1..=7200 + 31).contains(&gap), "{requests:?}");
    }
    assert!((3..=4).contains(&requests.len()), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn tl_03_after_a_sleep_the_expired_certificate_is_replaced_at_once() {
    let rig = Rig::start(HOUR, &[]);
    rig.store.ready().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let old = rig.serial();
    // The machine slept: the wall clock moved, the timers did not.
    rig.clock.step(24 * 3600);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_ne!(rig.serial(), old, "at the next look at the clock");
    let last = rig.requests().pop().expect("requests");
    assert_eq!(last.0, token(), "an expired certificate proves nothing");
    let current = rig.store.get().expect("an identity");
    assert!(current.is_valid(rig.clock.clock().now()));
}

#[tokio::test(start_paused = true)]
async fn tl_03_a_clock_set_back_causes_no_storm_and_no_gap() {
    let rig = Rig::start(HOUR, &[]);
    rig.store.ready().await;
    rig.clock.step(-300);
    tokio::time::sleep(2 * HOUR).await;
    let n = rig.requests().len();
    assert!((3..=5).contains(&n), "{n} requests in two hours");
    let current = rig.store.get().expect("an identity");
    assert!(current.is_valid(rig.clock.clock().now()));
}

#[tokio::test(start_paused = true)]
async fn tl_03_while_the_authority_is_away_it_is_asked_ever_more_seldom() {
    // Their waits add up to some 25 minutes.
    let away = [Answer::Away; 200];
    let rig = Rig::start(HOUR, &[&[Answer::Good][..], &away].concat());
    rig.store.ready().await;
    let old = rig.serial();
    tokio::time::sleep(Duration::from_secs(50 * 60)).await;
    let requests = rig.requests();
    let failed = &requests[1..];
    assert!(failed.len() > 20, "{failed:?}");
    let late: Vec<u64> = failed[6..].windows(2).map(|w| w[1].1 - w[0].1).collect();
    assert!(late.iter().all(|gap| *gap <= 16), "{late:?}");
    let mean = late.iter().sum::<u64>() / late.len() as u64;
    assert!((4..=12).contains(&mean), "{late:?}");
    assert_eq!(rig.serial(), old, "what we have stays in force");
    // Both proofs take turns: the authority may be another one, to which we are strangers.
    assert!(failed.iter().any(|(proof, _)| *proof == Proof::Certificate));
    assert!(failed.iter().any(|(proof, _)| *proof == token()));
    tokio::time::sleep(Duration::from_secs(20 * 60)).await;
    assert_ne!(rig.serial(), old, "and it recovers by itself");
}

#[tokio::test(start_paused = true)]
async fn tl_03_leaves_shorter_than_what_they_are_dated_back_by_are_no_storm() {
    let rig = Rig::start(Duration::from_secs(10), &[]);
    rig.store.ready().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let n = rig.requests().len();
    assert!((8..=14).contains(&n), "{n} requests in a minute");
}

#[tokio::test(start_paused = true)]
async fn tl_04_a_bad_certificate_is_never_taken() {
    use Answer::{Expired, Garbage, Good, OtherKey, OtherName};
    let bad = [Expired, OtherName, OtherKey, Garbage];
    let rig = Rig::start(HOUR, &[&bad[..], &[Good], &bad, &[Good]].concat());
    let first = rig.store.ready().await;
    assert_eq!(rig.requests().len(), 5, "the first four were refused");
    assert_eq!(first.id.as_ref().expect("an identity").as_str(), ID);
    let old = rig.serial();
    let renewed = async {
        while rig.serial() == old {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    renewed.await;
    assert_eq!(rig.requests().len(), 10);
    let current = rig.store.get().expect("an identity");
    assert!(current.is_valid(rig.clock.clock().now()));
    assert_eq!(current.id.as_ref().expect("an identity").as_str(), ID);
}
