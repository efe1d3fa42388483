//! Roots of the certificate authority.

use std::io::Write;

use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Value, json};

use super::{Output, data, table, until};

/// Characters of a fingerprint that tell roots apart.
const SHORT: usize = 16;

pub(in crate::cli) fn roots(
    out: &mut impl Write,
    roots: &[pb::Root],
    now: u64,
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        return data(out, &[roots.iter().map(json_of).collect()], output);
    }
    let wide = output == Output::Wide;
    let mut header = vec!["FINGERPRINT", "STATE", "EXPIRES IN", "NEXT"];
    if wide {
        header.push("SUBJECT");
    }
    let row = |root: &pb::Root| {
        let fingerprint = if wide {
            root.fingerprint.clone()
        } else {
            root.fingerprint.chars().take(SHORT).collect()
        };
        let mut row = vec![
            fingerprint,
            state(root),
            until(now, root.not_after),
            what_is_next(root, now),
        ];
        if wide {
            row.push(root.subject.clone());
        }
        row
    };
    let rows: Vec<_> = roots.iter().map(row).collect();
    table(out, &header, &rows)
}

fn state(root: &pb::Root) -> String {
    root.state().as_str_name().to_lowercase()
}

fn what_is_next(root: &pb::Root, now: u64) -> String {
    let when = || match until(now, root.until) {
        due if due == "expired" => "any moment".to_owned(),
        left => format!("in {left}"),
    };
    match root.state() {
        pb::root::State::Next => format!("signs {}", when()),
        pb::root::State::Retiring => format!("is not trusted any more {}", when()),
        pb::root::State::Active | pb::root::State::Unspecified => String::new(),
    }
}

fn json_of(root: &pb::Root) -> Value {
    json!({
        "fingerprint": root.fingerprint,
        "state": state(root),
        "subject": root.subject,
        "notBefore": root.not_before.map(|t| t.to_string()),
        "notAfter": root.not_after.map(|t| t.to_string()),
        "until": root.until.map(|t| t.to_string()),
        "pem": root.pem,
    })
}
