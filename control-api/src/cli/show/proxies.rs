//! Connected proxies.

use std::io::Write;

use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::{Value, json};

use super::{Output, data, table, until};

/// The proxies of each control plane, whose replica has a name in a cluster. Every replica counts
/// revisions for itself.
pub(in crate::cli) fn proxies(
    out: &mut impl Write,
    all: &[(Option<String>, pb::ProxyStatusResponse)],
    now: u64,
    output: Output,
) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        return data(out, &[whole(all)], output);
    }
    if all.iter().all(|(_, status)| status.proxies.is_empty()) {
        let revisions = all.iter().map(|(_, status)| status.revision.to_string());
        let revisions: Vec<_> = revisions.collect();
        writeln!(
            out,
            "no proxy is connected (revision {})",
            revisions.join(", ")
        )?;
        return Ok(());
    }
    let wide = output == Output::Wide;
    let replicas = all.iter().any(|(replica, _)| replica.is_some());
    let mut header = vec!["PROXY", "REVISION", "STATE", "RESOURCES", "CERTIFICATE"];
    if wide {
        header.extend(["ADDRESS", "VERSION", "IDENTITY", "ID"]);
        header.extend(replicas.then_some("CONTROL PLANE"));
    }
    let each = all.iter().flat_map(|(replica, status)| {
        let revision = status.revision;
        let proxies = status.proxies.iter();
        proxies.map(move |proxy| (replica, revision, proxy))
    });
    let mut each: Vec<_> = each.collect();
    if replicas {
        each.sort_by(|a, b| a.2.name.cmp(&b.2.name));
    }
    let row = |(replica, revision, proxy): &(&Option<String>, u64, &pb::Proxy)| {
        let mut row = vec![
            proxy.name.clone(),
            format!("{}/{revision}", proxy.acked_revision),
            state(proxy, *revision).to_owned(),
            proxy.subscriptions.to_string(),
            until(now, proxy.certificate_expires),
        ];
        if wide {
            let more = [&proxy.address, &proxy.version, &proxy.spiffe_id, &proxy.id];
            row.extend(more.map(Clone::clone));
            row.extend((*replica).clone());
        }
        row
    };
    let rows: Vec<_> = each.iter().map(row).collect();
    table(out, &header, &rows)?;
    for (_, _, proxy) in &each {
        for rejection in &proxy.rejections {
            let (name, reason) = (&proxy.name, &rejection.reason);
            let revision = rejection.revision;
            writeln!(out, "{name} rejected revision {revision}: {reason}")?;
        }
    }
    Ok(())
}

/// Everything, for programs.
fn whole(all: &[(Option<String>, pb::ProxyStatusResponse)]) -> Value {
    if let [(None, status)] = all {
        let proxies: Vec<_> = status.proxies.iter().map(json_of).collect();
        return json!({"revision": status.revision, "proxies": proxies});
    }
    let mut proxies = Vec::new();
    for (replica, status) in all {
        for proxy in &status.proxies {
            let mut one = json_of(proxy);
            if let Some(map) = one.as_object_mut() {
                map.insert("controlPlane".into(), json!(replica));
                map.insert("revision".into(), json!(status.revision));
            }
            proxies.push(one);
        }
    }
    json!({"proxies": proxies})
}

/// What became of the newest revision.
pub(in crate::cli) fn state(proxy: &pb::Proxy, revision: u64) -> &'static str {
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
