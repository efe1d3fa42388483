//! The hash of a request, for balancers that keep like requests on one endpoint.
//!
//! It is XXH64 with seed 0, combined over the policies as Envoy does it, so that a ring built the
//! same way sends a key to the same place.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, header::COOKIE};
use rand::RngExt;

use super::{matcher::query_value, table::RouteHit};
use crate::config::{
    matcher::RequestView,
    route::{HashPolicy, HashSource},
};

/// What hash policies look at.
#[derive(Clone, Copy, Debug)]
pub struct HashInput<'a> {
    pub request: &'a RequestView<'a>,
    /// The client's address.
    pub source: IpAddr,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hash {
    /// `None` when no policy found its value: the balancer then picks at random.
    pub value: Option<u64>,
    /// To be added to the response: the cookies that were made up for this request.
    pub set_cookies: Vec<HeaderValue>,
}

impl RouteHit {
    /// Hashes a request by the route's policies.
    pub fn hash(&self, input: &HashInput<'_>, rng: &mut impl rand::Rng) -> Hash {
        self.forward()
            .map_or_else(Hash::default, |forward| of(&forward.hash, input, rng))
    }
}

fn of(policies: &[HashPolicy], input: &HashInput<'_>, rng: &mut impl rand::Rng) -> Hash {
    let mut out = Hash::default();
    for policy in policies {
        if let Some(new) = one(&policy.source, input, &mut out.set_cookies, rng) {
            // Turning the old value keeps equal policies from cancelling each other out.
            let old = out.value.map_or(0, |old| old.rotate_left(1));
            out.value = Some(old ^ new);
        }
        if policy.terminal && out.value.is_some() {
            break;
        }
    }
    out
}

fn one(
    source: &HashSource,
    input: &HashInput<'_>,
    set_cookies: &mut Vec<HeaderValue>,
    rng: &mut impl rand::Rng,
) -> Option<u64> {
    match source {
        HashSource::Header(name) => header_hash(name, input.request),
        HashSource::SourceIp => {
            let text = input.source.to_canonical().to_string();
            Some(xxh64(text.as_bytes(), 0))
        }
        HashSource::Query(name) => {
            query_value(input.request, name).map(|value| xxh64(value.as_bytes(), 0))
        }
        HashSource::Cookie { name, ttl, path } => {
            if let Some(value) = cookie(name, input.request) {
                return Some(xxh64(value.as_bytes(), 0));
            }
            let ttl = (*ttl)?;
            let value = format!("{:016x}", rng.random::<u64>());
            let mut line = format!("{name}=\"{value}\"");
            if !ttl.is_zero() {
                line.push_str(&format!("; Max-Age={}", ttl.as_secs()));
            }
            if !path.is_empty() {
                line.push_str("; Path=");
                line.push_str(path);
            }
            line.push_str("; HttpOnly");
            set_cookies.extend(HeaderValue::try_from(line));
            Some(xxh64(value.as_bytes(), 0))
        }
    }
}

/// Several lines of one header are hashed one after the other, in order of their bytes, so that
/// their order on the wire does not matter (Envoy).
fn header_hash(name: &HeaderName, request: &RequestView<'_>) -> Option<u64> {
    let mut values = request.headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else {
        return Some(xxh64(first.as_bytes(), 0));
    };
    let mut all: Vec<&[u8]> = [first, second]
        .into_iter()
        .chain(values)
        .map(HeaderValue::as_bytes)
        .collect();
    all.sort_unstable();
    Some(all.iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// The value of the first cookie of that name, without the quotes it may stand in (RFC 6265 §4.2).
fn cookie<'r>(name: &str, request: &RequestView<'r>) -> Option<&'r str> {
    let lines = request.headers.get_all(COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .find_map(|line| {
            line.split(';').find_map(|pair| {
                let (key, value) = pair.split_once('=')?;
                let value = value.trim();
                let bare = value
                    .strip_prefix('"')
                    .and_then(|value| value.strip_suffix('"'));
                (key.trim() == name).then(|| bare.unwrap_or(value))
            })
        })
}

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// XXH64 of `bytes` (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>).
#[must_use]
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let (stripes, mut rest) = bytes.as_chunks::<32>();
    let mut hash = if stripes.is_empty() {
        seed.wrapping_add(P5)
    } else {
        let mut lanes = [
            seed.wrapping_add(P1).wrapping_add(P2),
            seed.wrapping_add(P2),
            seed,
            seed.wrapping_sub(P1),
        ];
        for stripe in stripes {
            let (words, _) = stripe.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let [a, b, c, d] = lanes;
        let mixed = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes.iter().fold(mixed, |hash, lane| {
            (hash ^ round(0, *lane)).wrapping_mul(P1).wrapping_add(P4)
        })
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        rest = tail;
    }
    if let Some((word, tail)) = rest.split_first_chunk::<4>() {
        hash ^= u64::from(u32::from_le_bytes(*word)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = tail;
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(P5);
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

const fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2))
        .rotate_left(31)
        .wrapping_mul(P1)
}

#[cfg(test)]
mod tests;
