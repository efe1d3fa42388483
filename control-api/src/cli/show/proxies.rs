//! Connected proxies.

use std::io::Write;

use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Value, json};

use super::{Output, data, table, until};

pub(in crate::cli) fn proxies(
    out: &mut impl Write,
    status: &pb::ProxyStatusResponse,
    now: u64,
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        let proxies: Vec<_> = status.proxies.iter().map(json_of).collect();
        let whole = json!({"revision": status.revision, "proxies": proxies});
        return data(out, &[whole], output);
    }
    if status.proxies.is_empty() {
        writeln!(out, "no proxy is connected (revision {})", status.revision)?;
        return Ok(());
    }
    let wide = output == Output::Wide;
    let mut header = vec!["PROXY", "REVISION", "STATE", "RESOURCES", "CERTIFICATE"];
    if wide {
        header.extend(["ADDRESS", "VERSION", "IDENTITY", "ID"]);
    }
    let row = |proxy: &pb::Proxy| {
        let mut row = vec![
            proxy.name.clone(),
            format!("{}/{}", proxy.acked_revision, status.revision),
            state(proxy, status.revision).to_owned(),
            proxy.subscriptions.to_string(),
            until(now, proxy.certificate_expires),
        ];
        if wide {
            let more = [&proxy.address, &proxy.version, &proxy.spiffe_id, &proxy.id];
            row.extend(more.map(Clone::clone));
        }
        row
    };
    let rows: Vec<_> = status.proxies.iter().map(row).collect();
    table(out, &header, &rows)?;
    for proxy in &status.proxies {
        for rejection in &proxy.rejections {
            let (name, reason) = (&proxy.name, &rejection.reason);
            let revision = rejection.revision;
            writeln!(out, "{name} rejected revision {revision}: {reason}")?;
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

pub(super) fn json_of(proxy: &pb::Proxy) -> Value {
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
        "certificateExpires": proxy.certificate_expires.map(|t| t.to_string()),
        "sentRevision": proxy.sent_revision,
        "ackedRevision": proxy.acked_revision,
        "rejections": rejections.collect::<Vec<_>>(),
        "resources": proxy.subscriptions,
    })
}
