//! Injects the pods of a manifest: `outrigger inject`.

use serde_json::Value;

use super::{Outcome, Settings, inject};

/// Where a kind keeps its pod.
fn template(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "ReplicationController" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// The manifest with every pod in it injected, as YAML; and what is to be said about it.
///
/// # Errors
/// When it is no YAML, or a pod cannot have the proxy.
pub fn manifest(text: &str, settings: &Settings) -> Result<(String, Vec<String>), String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
    let (mut out, mut said) = (String::new(), Vec::new());
    for mut document in documents.into_iter().filter(|d| !d.is_null()) {
        one(&mut document, settings, &mut said)?;
        if !out.is_empty() {
            out.push_str("---\n");
        }
        out.push_str(&serde_saphyr::to_string(&document).map_err(|e| e.to_string())?);
    }
    Ok((out, said))
}

fn one(document: &mut Value, settings: &Settings, said: &mut Vec<String>) -> Result<(), String> {
    let text = |value: &Value, path: &str| {
        let found = value.pointer(path).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let kind = text(document, "/kind");
    if kind == "List" {
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            one(item, settings, said)?;
        }
        return Ok(());
    }
    let what = format!("{kind} {}", text(document, "/metadata/name"));
    let pod = template(&kind).and_then(|path| document.pointer_mut(path));
    let Some(pod) = pod else {
        return Ok(());
    };
    match inject(pod, settings) {
        Outcome::Injected { pod: new, warnings } => {
            said.extend(warnings.iter().map(|warning| format!("{what}: {warning}")));
            *pod = *new;
            Ok(())
        }
        Outcome::Left(reason) => {
            said.push(format!("{what}: left as it is ({reason:?})"));
            Ok(())
        }
        Outcome::Refused(why) => Err(format!("{what}: {why}")),
    }
}
