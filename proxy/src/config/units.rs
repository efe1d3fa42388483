//! Small values with one meaning each: names, identities, fractions, back-off.

use std::{fmt, sync::Arc, time::Duration};

use rand::RngExt;

use super::Invalid;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name_type!(
    /// Name of a cluster, such as `outbound|8080||cart.shop.svc`.
    ClusterName
);
name_type!(
    /// Name of a Listener resource, such as `outbound/10.0.0.7:8080`.
    ListenerName
);
name_type!(
    /// Name of a RouteConfiguration resource.
    RouteConfigName
);
name_type!(
    /// A SPIFFE trust domain, such as `outrigger.local`.
    TrustDomain
);

impl TrustDomain {
    /// Checks `text` against the SPIFFE ID rules: 1 to 255 characters of `a-z 0-9 . - _`.
    ///
    /// # Errors
    /// When a character or the length is outside that.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(ok) {
            return Err(Invalid::at(
                "trust_domain",
                format!("{text:?} is not a trust domain: 1 to 255 of a-z, 0-9, '.', '-', '_'"),
            ));
        }
        Ok(Self::from(text))
    }
}

/// A SPIFFE identity, `spiffe://<trust domain>/<path>` (SPIFFE-ID §2). Compared byte for byte:
/// neither case nor percent-encoding is folded, since the standard allows neither.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    domain_len: usize,
}

/// SPIFFE-ID §2.3: an identifier is at most 2048 bytes.
const MAX_SPIFFE_ID: usize = 2048;
const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Parses a workload identity; one with an empty path names a trust domain and is refused.
    ///
    /// # Errors
    /// When the text is not a SPIFFE ID by SPIFFE-ID §2.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Invalid::at("spiffe_id", format!("{text:?} {why}"));
        if text.len() > MAX_SPIFFE_ID {
            return Err(Invalid::at("spiffe_id", "is longer than 2048 bytes"));
        }
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| bad("does not begin with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| bad("has no path"))?;
        TrustDomain::parse(domain)?;
        let segment = |s: &str| {
            !s.is_empty()
                && s != "."
                && s != ".."
                && s.bytes()
                    .all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c))
        };
        if !path.split('/').all(segment) {
            return Err(bad("has an empty, relative or ill-spelt path segment"));
        }
        Ok(Self {
            uri: text.into(),
            domain_len: domain.len(),
        })
    }

    /// The identity of a service account: `spiffe://<domain>/ns/<namespace>/sa/<account>`.
    ///
    /// # Errors
    /// When a part holds characters that a SPIFFE path may not.
    pub fn of(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, Invalid> {
        Self::parse(&format!("{SCHEME}{domain}/ns/{namespace}/sa/{account}"))
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain alone.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.uri
            .get(SCHEME.len()..SCHEME.len() + self.domain_len)
            .unwrap_or_default()
    }

    /// The path with its leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri
            .get(SCHEME.len() + self.domain_len..)
            .unwrap_or_default()
    }

    /// `(namespace, service account)` when the path has the Kubernetes form.
    #[must_use]
    pub fn workload(&self) -> Option<(&str, &str)> {
        let rest = self.path().strip_prefix("/ns/")?;
        rest.split_once("/sa/")
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A share of requests, `numerator` out of `denominator` (Envoy `FractionalPercent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };
    /// No request.
    pub const NONE: Self = Self {
        numerator: 0,
        denominator: 1,
    };

    /// A share; a numerator above the denominator means all, as in Envoy.
    #[must_use]
    pub const fn new(numerator: u32, denominator: u32) -> Self {
        let denominator = if denominator == 0 { 1 } else { denominator };
        let numerator = if numerator > denominator {
            denominator
        } else {
            numerator
        };
        Self {
            numerator,
            denominator,
        }
    }

    /// A share in percent, to the ten-thousandth; what is outside 0 to 100 means none or all.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped, and not a number becomes 0"
    )]
    pub fn of_percent(percent: f64) -> Self {
        Self::new(
            (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
            1_000_000,
        )
    }

    /// Draws once.
    pub fn hits(self, rng: &mut impl rand::Rng) -> bool {
        self.numerator > 0
            && (self.numerator == self.denominator
                || rng.random_range(0..self.denominator) < self.numerator)
    }

    /// The share as a number from 0 to 1.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

/// Exponential back-off with full jitter: the wait before retry `n` is drawn from
/// `0..min(max, base * 2^n)` (Envoy `retry_back_off`; gRFC A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

impl Backoff {
    /// Envoy's default for requests: 25 ms, at most ten times that.
    pub const REQUEST: Self = Self {
        base: Duration::from_millis(25),
        max: Duration::from_millis(250),
    };

    /// # Errors
    /// When `base` is zero or above `max`.
    pub fn new(base: Duration, max: Duration) -> Result<Self, Invalid> {
        if base.is_zero() {
            return Err(Invalid::at("base_interval", "must be over 0s"));
        }
        if max < base {
            return Err(Invalid::at(
                "max_interval",
                "must not be under base_interval",
            ));
        }
        Ok(Self { base, max })
    }

    /// The wait before retry number `attempt`, counted from 0.
    pub fn wait(&self, attempt: u32, rng: &mut impl rand::Rng) -> Duration {
        let ceiling = self
            .base
            .saturating_mul(2_u32.saturating_pow(attempt.min(16)))
            .min(self.max);
        ceiling.mul_f64(rng.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_09_only_well_formed_spiffe_ids_parse() {
        for good in [
            "spiffe://a.b/ns/x/sa/y",
            "spiffe://outrigger.local/ns/shop/sa/web-admin",
        ] {
            assert_eq!(SpiffeId::parse(good).expect(good).as_str(), good);
        }
        for bad in [
            "",
            "https://a.b/ns/x/sa/y",
            "spiffe://a.b",
            "spiffe://a.b/",
            "spiffe://A.b/x",
            "spiffe:///x",
            "spiffe://a.b/x//y",
            "spiffe://a.b/x/../y",
            "spiffe://a.b/x%2Fy",
            "spiffe://a.b/x?q",
            "spiffe://a.b:80/x",
            "spiffe://u@a.b/x",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_spiffe_id_gives_its_parts() {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("good");
        assert_eq!((id.trust_domain(), id.path()), ("td", "/ns/shop/sa/web"));
        assert_eq!(id.workload(), Some(("shop", "web")));
    }

    #[test]
    fn back_off_never_passes_its_maximum_and_a_zero_base_is_refused() {
        use rand::SeedableRng;
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for attempt in 0..100 {
            assert!(Backoff::REQUEST.wait(attempt, &mut rng) <= Duration::from_millis(250));
        }
        assert!(Backoff::new(Duration::ZERO, Duration::MAX).is_err());
        assert!(Backoff::new(Duration::from_secs(2), Duration::from_secs(1)).is_err());
    }
}
