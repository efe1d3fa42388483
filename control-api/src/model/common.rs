//! Parts that several kinds have.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::duration;

/// What is wrong: path below `spec`, and why.
pub(super) type Faults = Vec<(String, String)>;

/// Entries of any list in a policy; more would be a program's mistake.
pub(super) const MAX_LIST: usize = 1_000;

/// A duration as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&duration::format(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

/// A share in percent, `0` to `100`, with at most four decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Parts of a million, as Envoy has it.
    pub millionths: u32,
}

impl Share {
    /// In percent.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.millionths) / 10_000.0
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.percent())
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(de::Error::custom(format!(
                "{percent} is not within 0 to 100 percent"
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within 0 to 1,000,000"
        )]
        let millionths = (percent * 10_000.0).round() as u32;
        Ok(Self { millionths })
    }
}

/// Names a Service, or one of its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The core group, so empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Only `Service`.
    #[serde(default = "service_kind")]
    pub kind: String,
    /// The Service's name, in the namespace of the policy.
    pub name: String,
    /// One port; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

fn service_kind() -> String {
    "Service".to_owned()
}

/// Faults of a list of targets.
pub(super) fn target_faults(targets: &[TargetRef], faults: &mut Faults) {
    if targets.len() > MAX_LIST {
        faults.push(("targetRefs".into(), "must have at most 1000 entries".into()));
    }
    for (i, target) in targets.iter().enumerate() {
        let mut fault = |field: &str, why: &str| {
            faults.push((format!("targetRefs[{i}].{field}"), why.to_owned()));
        };
        if target.kind != "Service" {
            fault("kind", "must be Service");
        }
        if !matches!(target.group.as_str(), "" | "core" | "outrigger.dev") {
            fault("group", "must be empty");
        }
        if target.port == Some(0) {
            fault("port", "must be 1 to 65535");
        }
        if target.name.is_empty() {
            fault("name", "must not be empty");
        }
    }
}

/// Chooses workloads of the policy's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that the workload has. None: every workload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether a workload with these labels is chosen.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum TextMatch {
    /// It is this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// It ends so.
    Suffix(String),
    /// It matches as a whole.
    Regex(String),
    /// It is there, whatever it is.
    Present(bool),
}

impl TextMatch {
    pub(super) fn fault(&self) -> Option<String> {
        match self {
            Self::Regex(pattern) => regex_fault(pattern),
            Self::Present(false) => Some("present: must be true".into()),
            _ => None,
        }
    }
}

/// Patterns longer than this are programs.
const MAX_PATTERN: usize = 1_024;

/// What is wrong with a pattern.
pub(super) fn regex_fault(pattern: &str) -> Option<String> {
    if pattern.len() > MAX_PATTERN {
        return Some("must have at most 1024 bytes".into());
    }
    regex::Regex::new(pattern).err().map(|error| {
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim().to_owned();
        format!("is no regular expression: {last}")
    })
}

/// Whether it can be the name of a header (RFC 9110 §5.1).
pub(super) fn is_token(name: &str) -> bool {
    let mark = |c: u8| b"!#$%&'*+-.^_`|~".contains(&c);
    !name.is_empty()
        && name.len() <= 256
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || mark(c))
}

/// Whether it can be the value of a header (RFC 9110 §5.5).
pub(super) fn is_field_value(value: &str) -> bool {
    value.len() <= 4_096
        && value
            .bytes()
            .all(|c| c == b'\t' || (c >= 0x20 && c != 0x7f))
}

impl fmt::Display for TargetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{} {} port {port}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}
