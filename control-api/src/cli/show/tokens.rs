//! Join tokens.

use std::io::Write;

use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Value, json};

use super::{Output, Report, data, table, until};

/// A new one: alone on its line, so that it can be put into a file.
pub(in crate::cli) fn token(
    out: &mut impl Write,
    created: &pb::CreateTokenResponse,
    output: Report,
) -> anyhow::Result<()> {
    let Some(output) = output.data() else {
        writeln!(out, "{}", created.token)?;
        return Ok(());
    };
    let whole = json!({
        "token": created.token,
        "id": created.id,
        "spiffeId": created.spiffe_id,
        "expires": created.expires.map(|t| t.to_string()),
    });
    data(out, &[whole], output)
}

fn json_of(token: &pb::JoinToken) -> Value {
    json!({
        "id": token.id,
        "namespace": token.namespace,
        "serviceAccount": token.service_account,
        "spiffeId": token.spiffe_id,
        "expires": token.expires.map(|t| t.to_string()),
    })
}

fn array(tokens: &[pb::JoinToken]) -> Value {
    tokens.iter().map(json_of).collect()
}

pub(in crate::cli) fn tokens(
    out: &mut impl Write,
    tokens: &[pb::JoinToken],
    now: u64,
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        return data(out, &[array(tokens)], output);
    }
    let wide = output == Output::Wide;
    let mut header = vec!["ID", "NAMESPACE", "ACCOUNT", "EXPIRES IN"];
    if wide {
        header.push("IDENTITY");
    }
    let row = |token: &pb::JoinToken| {
        let mut row = vec![
            token.id.clone(),
            token.namespace.clone(),
            token.service_account.clone(),
            until(now, token.expires),
        ];
        if wide {
            row.push(token.spiffe_id.clone());
        }
        row
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    table(out, &header, &rows)
}

pub(in crate::cli) fn revoked(
    out: &mut impl Write,
    tokens: &[pb::JoinToken],
    output: Report,
) -> anyhow::Result<()> {
    if let Some(output) = output.data() {
        return data(out, &[array(tokens)], output);
    }
    for token in tokens {
        writeln!(out, "token {} of {} revoked", token.id, token.spiffe_id)?;
    }
    Ok(())
}
