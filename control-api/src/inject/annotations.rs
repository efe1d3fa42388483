//! What a pod's annotations say about its proxy.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::kube::DOMAIN;

/// Something that is not as its author thinks, but does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `outrigger.dev/...` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `inject: "false"`.
    pub opted_out: bool,
    /// `proxy-image`.
    pub image: Option<String>,
    /// `log-level`.
    pub log_level: Option<String>,
    /// `access-log`: `off`, `text`, `json`.
    pub access_log: Option<String>,
    /// `exclude-inbound-ports`.
    pub exclude_inbound_ports: Option<String>,
    /// `exclude-outbound-ports`.
    pub exclude_outbound_ports: Option<String>,
    /// `exclude-outbound-cidrs`.
    pub exclude_outbound_cidrs: Option<String>,
    /// `drain-seconds`: how long the application is kept from ending; 0: not at all.
    pub drain_seconds: u32,
    /// Requests by resource.
    pub requests: BTreeMap<&'static str, String>,
    /// Limits by resource.
    pub limits: BTreeMap<&'static str, String>,
    /// What is to be said about them.
    pub warnings: Vec<Warning>,
}

/// Endpoints are withdrawn within a second or two, and within five where the cluster is busy (KU-01).
const DRAIN_SECONDS: u32 = 5;
/// More than any grace period is meant to be.
const MAX_DRAIN_SECONDS: u32 = 300;
/// What the proxy asks for when nobody says.
const REQUESTS: [(&str, &str); 2] = [("cpu", "20m"), ("memory", "32Mi")];

impl Annotations {
    /// Of this pod.
    ///
    /// # Errors
    /// The first that cannot be obeyed: a pod that its author wanted otherwise must not run.
    pub fn of(pod: &Value) -> Result<Self, String> {
        let mut this = Self {
            drain_seconds: DRAIN_SECONDS,
            requests: REQUESTS.map(|(k, v)| (k, v.to_owned())).into(),
            ..Self::default()
        };
        this.opted_out = pod
            .pointer("/metadata/labels")
            .and_then(|labels| labels.get(format!("{DOMAIN}/inject")))
            .is_some_and(|value| matches!(value.as_str(), Some("false" | "disabled")));
        let all = pod
            .pointer("/metadata/annotations")
            .and_then(Value::as_object);
        for (key, value) in all.into_iter().flatten() {
            let Some(name) = key.strip_prefix(DOMAIN).and_then(|k| k.strip_prefix('/')) else {
                continue;
            };
            let value = value.as_str().unwrap_or_default();
            this.take(name, value)
                .map_err(|why| format!("annotation {key}: {value:?} {why}"))?;
        }
        Ok(this)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned());
        match name {
            "inject" => match value {
                "false" | "disabled" => self.opted_out = true,
                "true" | "enabled" => {}
                _ => return Err("is not \"true\" or \"false\"".into()),
            },
            "proxy-image" => self.image = text(),
            "log-level" => self.log_level = text(),
            "access-log" => match value {
                "off" | "text" | "json" => self.access_log = text(),
                _ => return Err("is not one of off, text, json".into()),
            },
            "exclude-inbound-ports" => self.exclude_inbound_ports = Some(ports(value)?),
            "exclude-outbound-ports" => self.exclude_outbound_ports = Some(ports(value)?),
            "exclude-outbound-cidrs" => self.exclude_outbound_cidrs = Some(cidrs(value)?),
            "drain-seconds" => {
                let seconds = value.parse().ok().filter(|s| *s <= MAX_DRAIN_SECONDS);
                self.drain_seconds = seconds.ok_or("is not a number of seconds up to 300")?;
            }
            "proxy-cpu" => drop(self.requests.insert("cpu", quantity(value)?)),
            "proxy-memory" => drop(self.requests.insert("memory", quantity(value)?)),
            "proxy-cpu-limit" => drop(self.limits.insert("cpu", quantity(value)?)),
            "proxy-memory-limit" => drop(self.limits.insert("memory", quantity(value)?)),
            // What the injector itself wrote into a pod that is copied.
            "trust-bundle" => {}
            _ => self.warnings.push(Warning(format!(
                "annotation {DOMAIN}/{name} is not known to Outrigger"
            ))),
        }
        Ok(())
    }
}

/// `80,8000-8010`, as `outrigger-proxy init` takes it.
fn ports(text: &str) -> Result<String, String> {
    for item in text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let (from, to) = item.split_once('-').unwrap_or((item, item));
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|n| *n > 0);
        match (number(from), number(to)) {
            (Some(from), Some(to)) if from <= to => {}
            _ => {
                return Err(format!(
                    "has {item:?}, which is no port and no range of ports"
                ));
            }
        }
    }
    Ok(text.to_owned())
}

fn cidrs(text: &str) -> Result<String, String> {
    for item in text.split(',') {
        if item.trim().parse::<ipnet::IpNet>().is_err() {
            return Err(format!("has {item:?}, which is no range of addresses"));
        }
    }
    Ok(text.split(',').map(str::trim).collect::<Vec<_>>().join(","))
}

/// As the API server takes it; it says more exactly what is wrong with others.
fn quantity(text: &str) -> Result<String, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(number.len()..).unwrap_or_default();
    let known = ["", "m", "k", "Ki", "M", "Mi", "G", "Gi"].contains(&suffix);
    let positive = number
        .parse::<f64>()
        .is_ok_and(|n| n > 0.0 && n.is_finite());
    if known && positive {
        Ok(text.to_owned())
    } else {
        Err("is no quantity like 100m, 64Mi".into())
    }
}
