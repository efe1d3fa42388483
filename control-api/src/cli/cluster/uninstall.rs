//! What is to be deleted so that the mesh is gone.

use std::io::Write;

use ::kube::{Api, api::ListParams};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use serde_json::{Value, json};

use super::Cluster;
use crate::{
    cli::kube::{self as manifests, Manifest},
    kube::{MESH_LABEL, MESH_SIDECAR, Name},
};

/// Pods that are named; of more, the number is.
const NAMED: usize = 10;

pub(super) async fn run(
    cluster: &Cluster,
    force: bool,
    purge: bool,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), &cluster.namespace);
    let control = deployments.get_opt(manifests::CONTROL_PLANE_NAME).await;
    let control = control.map_err(|error| cluster.failed(error))?;
    let labels = control.and_then(|control| control.metadata.labels);
    let by = labels.and_then(|labels| labels.get("app.kubernetes.io/managed-by").cloned());
    if by.as_deref() == Some("Helm") {
        anyhow::bail!("it was installed by Helm; use `helm uninstall`");
    }
    if !force {
        no_pods_left(cluster).await?;
    }
    // The webhooks first: while the control plane is away they would keep pods from being made.
    let mut all = manifests::documents(Manifest::ControlPlane)?;
    all.reverse();
    if purge {
        all.extend(manifests::documents(Manifest::Definitions)?);
    }
    let named = all.iter().filter(|one| purge || one["kind"] != "Namespace");
    for (i, one) in named.enumerate() {
        let metadata = &one["metadata"];
        let mut name = json!({"name": metadata["name"]});
        if let (Some(namespace), Some(map)) = (metadata.get("namespace"), name.as_object_mut()) {
            map.insert("namespace".to_owned(), namespace.clone());
        }
        let short = json!({
            "apiVersion": one["apiVersion"], "kind": one["kind"], "metadata": name,
        });
        if i > 0 {
            writeln!(out, "---")?;
        }
        write!(out, "{}", serde_saphyr::to_string::<Value>(&short)?)?;
    }
    Ok(())
}

/// Pods with a proxy would be cut off when their certificates end.
async fn no_pods_left(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = Api::<Pod>::all(cluster.client.clone());
    let label = format!("{MESH_LABEL}={MESH_SIDECAR}");
    let pods = pods
        .list_metadata(&ListParams::default().labels(&label))
        .await;
    let pods = pods.map_err(|error| cluster.failed(error))?.items;
    if pods.is_empty() {
        return Ok(());
    }
    let names = pods.iter().take(NAMED).map(|pod| {
        let Name { namespace, name } = Name::of(pod);
        format!("{namespace}/{name}")
    });
    let names: Vec<_> = names.collect();
    let more = if pods.len() > NAMED { ", ..." } else { "" };
    anyhow::bail!(
        "{} pods still have the proxy and would lose the mesh: {}{more}\nremove the label \
         outrigger.dev/inject from their namespaces and restart them (kubectl rollout restart), \
         or say --force",
        pods.len(),
        names.join(", ")
    );
}
