//! Writes results for people, and for programs.

use std::io::Write;

use anyhow::Context as _;
use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Value, json};

use super::args::Output;

/// Columns as wide as their widest cell.
fn table(out: &mut impl Write, header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(String::len);
        cells
            .chain(header.get(i).map(|h| h.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| -> std::io::Result<()> {
        let padded: Vec<_> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&mut header.iter().copied())?;
    for row in rows {
        line(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

fn data(out: &mut impl Write, values: &[Value], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        let whole = match values {
            [one] => one.clone(),
            many => json!({"apiVersion": "v1", "kind": "List", "items": many}),
        };
        serde_json::to_writer_pretty(&mut *out, &whole)?;
        writeln!(out)?;
        return Ok(());
    }
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            writeln!(out, "---")?;
        }
        write!(out, "{}", serde_saphyr::to_string(value)?)?;
    }
    Ok(())
}

pub(super) fn objects(
    out: &mut impl Write,
    objects: &[pb::Object],
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        let values = objects
            .iter()
            .map(|object| serde_json::from_str(&object.json));
        let values: Vec<Value> = values.collect::<Result<_, _>>().context("the answer")?;
        return data(out, &values, output);
    }
    let rows: Vec<_> = objects
        .iter()
        .map(|object| {
            let key = object.key.clone().unwrap_or_default();
            vec![
                key.kind,
                key.namespace,
                key.name,
                object.revision.to_string(),
            ]
        })
        .collect();
    table(out, &["KIND", "NAMESPACE", "NAME", "REVISION"], &rows)
}

pub(super) fn outcomes(
    out: &mut impl Write,
    outcomes: &[pb::Outcome],
    dry_run: bool,
) -> anyhow::Result<()> {
    for outcome in outcomes {
        let key = outcome.key.clone().unwrap_or_default();
        let change = outcome.change().as_str_name().to_lowercase();
        let note = if dry_run { " (dry run)" } else { "" };
        let pb::ObjectKey {
            kind,
            namespace,
            name,
        } = key;
        writeln!(out, "{kind} {namespace}/{name} {change}{note}")?;
    }
    Ok(())
}

pub(super) fn waited(
    out: &mut impl Write,
    revision: u64,
    waited: &pb::WaitRevisionResponse,
) -> anyhow::Result<()> {
    let pb::WaitRevisionResponse {
        proxies,
        acked,
        rejected,
        pending,
    } = waited;
    writeln!(
        out,
        "revision {revision}: taken by {acked} of {proxies} proxies"
    )?;
    for proxy in rejected {
        for rejection in &proxy.rejections {
            writeln!(out, "rejected by {}: {}", proxy.name, rejection.reason)?;
        }
    }
    for proxy in pending {
        writeln!(out, "no answer yet from {}", proxy.name)?;
    }
    Ok(())
}

pub(super) fn proxies(
    out: &mut impl Write,
    status: &pb::ProxyStatusResponse,
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        let proxies: Vec<_> = status.proxies.iter().map(proxy_json).collect();
        let whole = json!({"revision": status.revision, "proxies": proxies});
        return data(out, &[whole], output);
    }
    let wide = output == Output::Wide;
    let mut header = vec!["PROXY", "REVISION", "STATE", "RESOURCES"];
    if wide {
        header.extend(["ADDRESS", "VERSION", "IDENTITY", "ID"]);
    }
    let rows: Vec<_> = status
        .proxies
        .iter()
        .map(|proxy| {
            let mut row = vec![
                proxy.name.clone(),
                proxy.acked_revision.to_string(),
                state(proxy, status.revision).to_owned(),
                proxy.subscriptions.to_string(),
            ];
            if wide {
                let more = [&proxy.address, &proxy.version, &proxy.spiffe_id, &proxy.id];
                row.extend(more.map(Clone::clone));
            }
            row
        })
        .collect();
    table(out, &header, &rows)?;
    for proxy in &status.proxies {
        for rejection in &proxy.rejections {
            let (name, reason) = (&proxy.name, &rejection.reason);
            writeln!(
                out,
                "{name} rejected revision {}: {reason}",
                rejection.revision
            )?;
        }
    }
    Ok(())
}

fn state(proxy: &pb::Proxy, revision: u64) -> &'static str {
    if !proxy.rejections.is_empty() {
        "rejected"
    } else if proxy.acked_revision >= revision {
        "current"
    } else {
        "behind"
    }
}

fn proxy_json(proxy: &pb::Proxy) -> Value {
    let rejections = proxy.rejections.iter().map(|rejection| {
        json!({
            "typeUrl": rejection.type_url,
            "reason": rejection.reason,
            "revision": rejection.revision,
            "resources": rejection.resources,
        })
    });
    json!({
        "name": proxy.name,
        "id": proxy.id,
        "spiffeId": proxy.spiffe_id,
        "address": proxy.address,
        "version": proxy.version,
        "connectedSince": proxy.connected_since.map(|t| t.to_string()),
        "sentRevision": proxy.sent_revision,
        "ackedRevision": proxy.acked_revision,
        "rejections": rejections.collect::<Vec<_>>(),
        "resources": proxy.subscriptions,
    })
}

/// JSON, laid out.
pub(super) fn json_text(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    let value: Value = serde_json::from_str(text).context("the answer")?;
    data(out, &[value], Output::Json)
}

/// One line for each object that came, changed or went.
pub(super) fn change(out: &mut impl Write, state: &pb::WatchResponse) -> anyhow::Result<()> {
    let revision = state.revision;
    for object in &state.changed {
        let pb::ObjectKey {
            kind,
            namespace,
            name,
        } = object.key.clone().unwrap_or_default();
        let written = object.revision;
        writeln!(
            out,
            "{revision}\t{kind} {namespace}/{name}\twritten by revision {written}"
        )?;
    }
    for key in &state.deleted {
        let pb::ObjectKey {
            kind,
            namespace,
            name,
        } = key;
        writeln!(out, "{revision}\t{kind} {namespace}/{name}\tdeleted")?;
    }
    Ok(())
}

/// The endpoints of the services in `objects`.
pub(super) fn endpoints(
    out: &mut impl Write,
    objects: &[pb::Object],
    service: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for object in objects {
        let key = object.key.clone().unwrap_or_default();
        if service.is_some_and(|wanted| wanted != key.name) {
            continue;
        }
        let json: Value = serde_json::from_str(&object.json).context("the answer")?;
        let none = Vec::new();
        let all = json.pointer("/spec/endpoints").and_then(Value::as_array);
        for endpoint in all.unwrap_or(&none) {
            let text = |field: &str| match endpoint.get(field) {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            let account = match text("serviceAccount") {
                own if own.is_empty() => json
                    .pointer("/spec/serviceAccount")
                    .and_then(Value::as_str)
                    .unwrap_or("default")
                    .to_owned(),
                own => own,
            };
            let mesh = endpoint.get("mesh") != Some(&Value::Bool(false));
            rows.push(vec![
                key.namespace.clone(),
                key.name.clone(),
                text("address"),
                text("workload"),
                text("zone"),
                if mesh { "mesh" } else { "plaintext" }.to_owned(),
                account,
            ]);
            let mut value = endpoint.clone();
            if let Some(map) = value.as_object_mut() {
                map.insert(
                    "service".into(),
                    json!(format!("{}/{}", key.namespace, key.name)),
                );
            }
            values.push(value);
        }
    }
    if matches!(output, Output::Json | Output::Yaml) {
        return data(out, &[Value::Array(values)], output);
    }
    let header = [
        "NAMESPACE",
        "SERVICE",
        "ADDRESS",
        "WORKLOAD",
        "ZONE",
        "SPOKEN TO BY",
        "ACCOUNT",
    ];
    table(out, &header, &rows)
}
