//! Writes results for people, and for programs.

mod proxies;
mod roots;
mod tokens;

use std::io::Write;

use anyhow::Context as _;
use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Map, Value, json};

use super::args::{Output, Report};

pub(super) use proxies::{proxies, state};
pub(super) use roots::roots;
pub(super) use tokens::{revoked, token, tokens};

/// Columns as wide as their widest cell, and as high as there are rows: without any it says so.
pub(super) fn table(
    out: &mut impl Write,
    header: &[&str],
    rows: &[Vec<String>],
) -> anyhow::Result<()> {
    if rows.is_empty() {
        writeln!(out, "none")?;
        return Ok(());
    }
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i));
        let cells = cells.map(|cell| cell.chars().count());
        cells
            .chain(header.get(i).map(|h| h.chars().count()))
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

pub(super) fn data(out: &mut impl Write, values: &[Value], output: Output) -> anyhow::Result<()> {
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

/// A change, as the control plane took it.
#[derive(Debug)]
pub(super) struct Done<'a> {
    pub(super) revision: u64,
    pub(super) outcomes: &'a [pb::Outcome],
    pub(super) warnings: &'a [String],
    pub(super) dry_run: bool,
}

/// What was done; in data together with what came of waiting for it.
pub(super) fn done(
    out: &mut impl Write,
    done: &Done<'_>,
    waited: Option<&pb::WaitRevisionResponse>,
    output: Report,
) -> anyhow::Result<()> {
    let change = |outcome: &pb::Outcome| outcome.change().as_str_name().to_lowercase();
    if let Some(output) = output.data() {
        let outcomes = done.outcomes.iter().map(|outcome| {
            let key = outcome.key.clone().unwrap_or_default();
            json!({
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "change": change(outcome),
            })
        });
        let mut whole = json!({
            "revision": done.revision,
            "dryRun": done.dry_run,
            "outcomes": outcomes.collect::<Vec<_>>(),
            "warnings": done.warnings,
        });
        if let (Some(waited), Some(map)) = (waited, whole.as_object_mut()) {
            map.insert("live".into(), waited_json(waited));
        }
        return data(out, &[whole], output);
    }
    for outcome in done.outcomes {
        let pb::ObjectKey {
            kind,
            namespace,
            name,
        } = outcome.key.clone().unwrap_or_default();
        let note = if done.dry_run { " (dry run)" } else { "" };
        writeln!(out, "{kind} {namespace}/{name} {}{note}", change(outcome))?;
    }
    for warning in done.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

fn waited_json(waited: &pb::WaitRevisionResponse) -> Value {
    json!({
        "proxies": waited.proxies,
        "taken": waited.acked,
        "rejected": waited.rejected.iter().map(proxies::json_of).collect::<Vec<_>>(),
        "pending": waited.pending.iter().map(proxies::json_of).collect::<Vec<_>>(),
    })
}

/// The revision that a change made.
pub(super) fn revision(out: &mut impl Write, revision: u64, output: Report) -> anyhow::Result<()> {
    match output.data() {
        None => writeln!(out, "revision {revision}")?,
        Some(output) => data(out, &[json!({"revision": revision})], output)?,
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
    if *proxies == 0 {
        writeln!(out, "revision {revision}: no proxy is connected")?;
    } else {
        let those = if *proxies == 1 { "proxy" } else { "proxies" };
        writeln!(
            out,
            "revision {revision}: taken by {acked} of {proxies} {those}"
        )?;
    }
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

/// What a proxy has: of type `kind` alone, and with `name` in the name, if they are given.
pub(super) fn config_dump(
    out: &mut impl Write,
    text: &str,
    kind: Option<&str>,
    name: Option<&str>,
    output: Output,
) -> anyhow::Result<()> {
    let mut dump: Map<String, Value> = serde_json::from_str(text).context("the answer")?;
    dump.retain(|url, _| kind.is_none_or(|kind| kind == url));
    for resources in dump.values_mut().filter_map(Value::as_object_mut) {
        resources.retain(|own, _| name.is_none_or(|name| own.contains(name)));
    }
    if matches!(output, Output::Json | Output::Yaml) {
        return data(out, &[Value::Object(dump)], output);
    }
    let mut rows = Vec::new();
    for (url, resources) in &dump {
        let short = url.rsplit('.').next().unwrap_or(url);
        for (name, held) in resources.as_object().into_iter().flatten() {
            let version = held.get("version").and_then(Value::as_str);
            // Not there: the proxy asked, and was told so.
            let there = held.get("resource").is_some_and(|r| !r.is_null());
            let there = if there { "" } else { "not there" };
            let version = version.unwrap_or_default();
            rows.push([short, name, version, there].map(str::to_owned).to_vec());
        }
    }
    table(out, &["TYPE", "NAME", "VERSION", ""], &rows)
}

/// One line for each object that came, changed or went.
pub(super) fn change(
    out: &mut impl Write,
    state: &pb::WatchResponse,
    output: Report,
) -> anyhow::Result<()> {
    let revision = state.revision;
    if output != Report::Text {
        let changed = state.changed.iter();
        let changed = changed.map(|object| serde_json::from_str(&object.json));
        let changed: Vec<Value> = changed.collect::<Result<_, _>>().context("the answer")?;
        let deleted = state
            .deleted
            .iter()
            .map(|key| json!({"kind": key.kind, "namespace": key.namespace, "name": key.name}));
        let deleted: Vec<_> = deleted.collect();
        let whole = json!({"revision": revision, "changed": changed, "deleted": deleted});
        if output == Report::Json {
            writeln!(out, "{whole}")?;
        } else {
            write!(out, "---\n{}", serde_saphyr::to_string(&whole)?)?;
        }
        return Ok(());
    }
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
                if mesh { "mTLS" } else { "plaintext" }.to_owned(),
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
        "TRANSPORT",
        "ACCOUNT",
    ];
    table(out, &header, &rows)
}

/// Seconds from `now` until `then`, as people say it: the two largest units.
pub(super) fn until(now: u64, then: Option<prost_types::Timestamp>) -> String {
    let Some(then) = then.and_then(|then| u64::try_from(then.seconds).ok()) else {
        return "-".to_owned();
    };
    let Some(left) = then.checked_sub(now).filter(|left| *left > 0) else {
        return "expired".to_owned();
    };
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let parts = units
        .iter()
        .zip([u64::MAX, 24, 60, 60])
        .map(|((size, unit), wrap)| (left / size % wrap, unit));
    let parts: Vec<_> = parts.skip_while(|(n, _)| *n == 0).take(2).collect();
    let parts = parts.iter().filter(|(n, _)| *n > 0);
    parts.map(|(n, unit)| format!("{n}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::timestamp;

    #[test]
    fn times_are_shown_by_their_two_largest_units() {
        for (then, want) in [
            (1_000, "expired"),
            (999, "expired"),
            (1_001, "1s"),
            (1_060, "1m"),
            (1_061, "1m1s"),
            (1_000 + 3_600 * 23 + 60 * 59 + 59, "23h59m"),
            (1_000 + 86_400 * 3_650 + 59, "3650d"),
        ] {
            assert_eq!(until(1_000, Some(timestamp(then))), want, "{then}");
        }
        assert_eq!(until(1_000, None), "-");
    }
}
