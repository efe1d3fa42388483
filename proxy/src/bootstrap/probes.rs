//! Probes that the injector took from the application's containers (KU-10).

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};
use serde::Deserialize;

/// A pod has a few containers with three probes and two hooks each.
const MAX_PROBES: usize = 256;

/// Probes by their path behind `/probe/`, like `app/readiness`.
#[derive(Clone, Debug, Default)]
pub struct Probes(pub BTreeMap<String, Probe>);

/// One probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// How the application is asked.
    pub ask: Ask,
    /// How long it has to answer.
    pub timeout: Duration,
}

/// How an application is asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Whether it answers a GET, and how.
    Http {
        port: u16,
        tls: bool,
        path: PathAndQuery,
        headers: HeaderMap,
    },
    /// Whether it takes a connection.
    Tcp { port: u16 },
    /// Whether it says that it serves (`grpc.health.v1`).
    Grpc { port: u16, service: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    http: Option<RawHttp>,
    tcp: Option<RawTcp>,
    grpc: Option<RawGrpc>,
    #[serde(default = "one_second")]
    timeout: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    port: u16,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrpc {
    port: u16,
    #[serde(default)]
    service: String,
}

/// The kubelet's default.
const fn one_second() -> u32 {
    1
}

impl FromStr for Probes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let raw: BTreeMap<String, Raw> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if raw.len() > MAX_PROBES {
            return Err(format!("has more than {MAX_PROBES} probes"));
        }
        let read = raw.into_iter().map(|(name, raw)| {
            let probe = Probe::read(raw).map_err(|why| format!("{name}: {why}"))?;
            Ok((name, probe))
        });
        Ok(Self(read.collect::<Result<_, String>>()?))
    }
}

impl Probe {
    fn read(raw: Raw) -> Result<Self, String> {
        let ask = match (raw.http, raw.tcp, raw.grpc) {
            (Some(http), None, None) => Ask::Http {
                port: http.port,
                tls: http.tls,
                path: path(&http.path)?,
                headers: headers(http.headers)?,
            },
            (None, Some(tcp), None) => Ask::Tcp { port: tcp.port },
            (None, None, Some(grpc)) => Ask::Grpc {
                port: grpc.port,
                service: grpc.service,
            },
            _ => return Err("must have one of http, tcp, grpc".into()),
        };
        Ok(Self {
            ask,
            timeout: Duration::from_secs(raw.timeout.max(1).into()),
        })
    }
}

/// Kubernetes takes a path with and without its first slash.
fn path(text: &str) -> Result<PathAndQuery, String> {
    let slash = if text.starts_with('/') { "" } else { "/" };
    let whole = format!("{slash}{text}");
    whole.parse().map_err(|_| format!("{whole:?} is no path"))
}

fn headers(pairs: Vec<(String, String)>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let parsed = (name.parse::<HeaderName>(), value.parse::<HeaderValue>());
        let (Ok(name), Ok(value)) = parsed else {
            return Err(format!("{name}: {value:?} is no header"));
        };
        map.append(name, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ku_10_probes_as_the_injector_writes_them() {
        let text = r#"{
            "app/readiness": {"http": {"port": 8080, "path": "healthz?x=1",
                "headers": [["X-Probe", "yes"]]}, "timeout": 3},
            "app/liveness": {"tcp": {"port": 5432}},
            "grpc/startup": {"grpc": {"port": 9000, "service": "cart"}, "timeout": 0}
        }"#;
        let probes: Probes = text.parse().expect("good");
        assert_eq!(probes.0.len(), 3);
        let ready = probes.0.get("app/readiness").expect("there");
        assert_eq!(ready.timeout, Duration::from_secs(3));
        let Ask::Http {
            path, headers, tls, ..
        } = &ready.ask
        else {
            panic!("{ready:?}");
        };
        assert_eq!(path.as_str(), "/healthz?x=1");
        assert_eq!(
            headers.get("x-probe").map(HeaderValue::as_bytes),
            Some(&b"yes"[..])
        );
        assert!(!tls);
        let started = probes.0.get("grpc/startup").expect("there");
        assert_eq!(
            started.timeout,
            Duration::from_secs(1),
            "0 is the kubelet's 1"
        );
        assert!("".parse::<Probes>().expect("none").0.is_empty());
    }

    #[test]
    fn what_is_no_probe_is_refused_by_name() {
        let table = [
            (r#"{"a/b": {}}"#, "a/b: must have one of"),
            (
                r#"{"a/b": {"tcp": {"port": 1}, "grpc": {"port": 1}}}"#,
                "a/b: must have one of",
            ),
            (r#"{"a/b": {"tcp": {"port": 65536}}}"#, "65536"),
            (
                r#"{"a/b": {"http": {"port": 1, "headers": [["a b", "c"]]}}}"#,
                "is no header",
            ),
            (
                r#"{"a/b": {"http": {"port": 1, "path": "/a b"}}}"#,
                "is no path",
            ),
            (r#"{"a/b": {"exec": {}}}"#, "exec"),
            ("[]", "expected a map"),
        ];
        for (text, why) in table {
            let error = text.parse::<Probes>().expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
