//! Hash policies, and XXH64 against values of the reference implementation.

use std::time::Duration;

use http::HeaderMap;
use rand::SeedableRng;

use super::*;

fn rng() -> rand::rngs::StdRng {
    rand::rngs::StdRng::seed_from_u64(7)
}

fn policy(source: HashSource, terminal: bool) -> HashPolicy {
    HashPolicy { source, terminal }
}

fn header(name: &'static str) -> HashSource {
    HashSource::Header(HeaderName::from_static(name))
}

fn run(policies: &[HashPolicy], headers: &[(&'static str, &'static str)]) -> Hash {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_static(value));
    }
    let request = RequestView {
        method: "GET",
        path_and_query: "/p?%75ser=abc&user=x",
        authority: "h",
        scheme: "http",
        headers: &map,
    };
    let input = HashInput {
        request: &request,
        source: "::ffff:10.0.0.1".parse().expect("address"),
    };
    of(policies, &input, &mut rng())
}

#[test]
fn xxh64_gives_the_reference_values() {
    let hundred: Vec<u8> = (0..100).collect();
    let table: [(&[u8], u64, u64); 8] = [
        (b"", 0, 0xef46_db37_51d8_e999),
        (b"", 7, 0x95f0_626f_6f0a_4409),
        (b"a", 0, 0xd24e_c4f1_a98c_6e5b),
        (b"abc", 0, 0x44bc_2cf5_ad77_0999),
        (b"abcdefgh", 1, 0x8305_1257_1021_2a61),
        (b"10.0.0.1", 0, 0xed16_cb68_c786_e3d7),
        (
            b"0123456789abcdefghijklmnopqrstuvwxyz",
            0,
            0x6919_6c1b_3af0_bff9,
        ),
        (&hundred, (1 << 63) + 5, 0x8a80_fbea_ae43_85df),
    ];
    for (bytes, seed, want) in table {
        assert_eq!(xxh64(bytes, seed), want, "{bytes:?} {seed}");
    }
}

#[test]
fn each_source_hashes_its_own_value() {
    let abc = Some(0x44bc_2cf5_ad77_0999);
    let query = HashSource::Query("user".into());
    assert_eq!(run(&[policy(query, false)], &[]).value, abc, "the first");
    let by_header = policy(header("x-user"), false);
    assert_eq!(run(&[by_header], &[("x-user", "abc")]).value, abc);
    let source = run(&[policy(HashSource::SourceIp, false)], &[]).value;
    assert_eq!(source, Some(0xed16_cb68_c786_e3d7), "mapped IPv4 is IPv4");
    assert_eq!(run(&[policy(header("x-none"), false)], &[]).value, None);
}

#[test]
fn lines_of_one_header_hash_alike_in_any_order() {
    let policies = [policy(header("x-a"), false)];
    let one = run(&policies, &[("x-a", "1"), ("x-a", "2")]).value;
    let other = run(&policies, &[("x-a", "2"), ("x-a", "1")]).value;
    assert_eq!(one, other);
    assert_ne!(one, run(&policies, &[("x-a", "1")]).value);
}

#[test]
fn policies_combine_and_a_terminal_one_ends_it() {
    let headers = [("x-a", "1"), ("x-b", "2")];
    let a = run(&[policy(header("x-a"), false)], &headers)
        .value
        .expect("a");
    let b = run(&[policy(header("x-b"), false)], &headers)
        .value
        .expect("b");
    let both = [policy(header("x-a"), false), policy(header("x-b"), false)];
    assert_eq!(run(&both, &headers).value, Some(a.rotate_left(1) ^ b));
    let ended = [policy(header("x-a"), true), policy(header("x-b"), false)];
    assert_eq!(run(&ended, &headers).value, Some(a));
    let went_on = [policy(header("x-none"), true), policy(header("x-b"), false)];
    assert_eq!(run(&went_on, &headers).value, Some(b));
}

#[test]
fn a_missing_cookie_is_made_up_only_when_asked() {
    let cookie = |ttl| {
        let source = HashSource::Cookie {
            name: "lb".into(),
            ttl,
            path: "/x".into(),
        };
        [policy(source, false)]
    };
    let sent = [("cookie", "a=b; lb=\"abc\"; lb=no")];
    let found = run(&cookie(Some(Duration::from_secs(5))), &sent);
    assert_eq!(found.value, Some(0x44bc_2cf5_ad77_0999));
    assert!(found.set_cookies.is_empty());
    assert_eq!(run(&cookie(None), &[]), Hash::default());

    let made = run(&cookie(Some(Duration::from_secs(5))), &[]);
    let line = made.set_cookies[0].to_str().expect("ascii");
    let value = line.split('"').nth(1).expect("quoted");
    assert_eq!(
        line,
        format!("lb=\"{value}\"; Max-Age=5; Path=/x; HttpOnly")
    );
    assert_eq!(
        made.value,
        Some(xxh64(value.as_bytes(), 0)),
        "stays with the endpoint"
    );
    let session = run(&cookie(Some(Duration::ZERO)), &[]);
    assert!(
        !session.set_cookies[0]
            .to_str()
            .expect("ascii")
            .contains("Max-Age")
    );
}
