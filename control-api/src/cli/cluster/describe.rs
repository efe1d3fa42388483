//! One object, as the mesh sees it: what the control plane knows of it beside what the cluster
//! does, and what its proxy says of itself.

use std::{collections::BTreeMap, fmt::Display, io::Write, net::IpAddr, sync::Arc};

use ::kube::{Api, api::DynamicObject};
use anyhow::Context as _;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    jiff::Timestamp,
};
use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::Value;

use super::{Cluster, has_proxy, is_ready, runs};
use crate::{
    cli::{
        args::{Describe, Described},
        commands, said, show,
    },
    clock, inject,
    kube::{convert, status::CONTROLLER, watch::served},
    model::{Key, Kind, Object, Objects, parse_object},
    translate::{Viewer, World, aimed_at, is_strict},
};

/// Label of a namespace whose pods get the proxy.
const INJECT: &str = "outrigger.dev/inject";

pub(super) async fn run(
    cluster: &Cluster,
    what: Describe,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    match what {
        Describe::Pod(one) => Box::pin(pod(cluster, &one, out)).await,
        Describe::Service(one) => Box::pin(service(cluster, &one, out)).await,
        Describe::Policy { kind, one } => Box::pin(policy(cluster, &kind, &one, out)).await,
    }
}

impl Cluster {
    /// Everything that the control plane has in force.
    async fn world(&self) -> anyhow::Result<World> {
        let replicas = self.replicas().await?;
        let replica = replicas
            .first()
            .context("no replica of the control plane")?;
        let list = self.api(replica).list(pb::ListRequest::default()).await;
        let list = list.map_err(|s| said(&s))?.into_inner();
        let mut by_key = BTreeMap::new();
        for one in &list.objects {
            let document = serde_json::from_str(&one.json).context("the control plane's answer")?;
            let object = parse_object(document, "", 0).map_err(|faults| {
                let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("the control plane's answer: {}", faults.join("; "))
            })?;
            by_key.insert(object.key.clone(), Arc::new(object));
        }
        let revision = list.revision;
        Ok(World::new(Arc::new(Objects { revision, by_key }), ""))
    }
}

/// Lines of `name  what`, below a heading.
struct Page<'o, W> {
    out: &'o mut W,
}

impl<W: Write> Page<'_, W> {
    fn head(&mut self, text: impl Display) -> anyhow::Result<()> {
        Ok(writeln!(self.out, "{text}")?)
    }

    fn line(&mut self, name: &str, what: impl Display) -> anyhow::Result<()> {
        Ok(writeln!(self.out, "  {name:<14}{what}")?)
    }

    fn list(&mut self, head: &str, lines: &[String]) -> anyhow::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.head(head)?;
        lines
            .iter()
            .try_for_each(|line| Ok(writeln!(self.out, "  {line}")?))
    }
}

async fn pod(
    cluster: &Cluster,
    one: &Described,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let pod = cluster.pod(&one.namespace, &one.name).await?;
    let world = Box::pin(cluster.world()).await?;
    let viewer = viewer(&pod);
    let mut problems = Vec::new();
    let mut page = Page { out };
    page.head(format!("Pod {}/{}", one.namespace, one.name))?;
    let ips: Vec<_> = viewer.addresses.iter().map(ToString::to_string).collect();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    page.line(
        "address",
        format!("{} on {}", ips.join(", "), node.unwrap_or_default()),
    )?;
    page.line(
        "workload",
        format!("{}, account {}", viewer.workload, viewer.service_account),
    )?;
    if has_proxy(&pod) {
        let (image, state) = (
            image(&pod),
            if is_ready(&pod) { "ready" } else { "not ready" },
        );
        page.line("mesh", format!("in it, with {image}; {state}"))?;
        if runs(&pod) {
            match Box::pin(identity(cluster, &pod)).await {
                Ok(identity) => page.line("identity", identity)?,
                Err(why) => problems.push(format!("{why:#}")),
            }
        } else {
            problems.push("the proxy does not run".to_owned());
        }
        page.line(
            "config",
            Box::pin(config(cluster, &viewer, &mut problems)).await?,
        )?;
        page.line("mutual TLS", mutual_tls(&world, &viewer))?;
    } else {
        page.line("mesh", Box::pin(outside(cluster, &pod)).await?)?;
    }
    let mut services = Vec::new();
    for (number, protocol) in world.inbound(&viewer) {
        for (key, port) in world.inbound_services(&viewer, number) {
            let spoken = protocol.map_or("found out", |protocol| protocol.as_str());
            services.push(format!("{}:{port} -> {number} ({spoken})", key.name));
        }
    }
    services.sort();
    services.dedup();
    page.list("Services", &services)?;
    let policies = aimed_at(&world, &viewer).map(|object| object.key.to_string());
    page.list("Policies", &policies.collect::<Vec<_>>())?;
    page.list("Problems", &problems)
}

/// What decides which of the mesh's objects are a pod's.
fn viewer(pod: &Pod) -> Viewer {
    let facts = convert::PodFacts::of(pod);
    let status = pod.status.as_ref();
    let ips = status.and_then(|status| status.pod_ips.as_ref());
    let ips = ips.into_iter().flatten();
    Viewer {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        service_account: facts.account,
        workload: facts.workload,
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses: ips.filter_map(|one| one.ip.parse().ok()).collect(),
    }
}

/// The image of its proxy.
fn image(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let first = spec.and_then(|spec| spec.init_containers.as_ref());
    let others = spec.into_iter().flat_map(|spec| &spec.containers);
    let mut all = first.into_iter().flatten().chain(others);
    let proxy = all.find(|container| container.name == inject::PROXY);
    let image = proxy.and_then(|container| container.image.clone());
    image.unwrap_or_default()
}

/// Who the proxy says it is.
async fn identity(cluster: &Cluster, pod: &Pod) -> anyhow::Result<String> {
    let certs = cluster.ask_json(pod, "/certs").await?;
    let Some(identity) = certs.get("identity").and_then(Value::as_str) else {
        anyhow::bail!("the proxy has no certificate yet");
    };
    let end = certs.pointer("/certificates/0/cert_chain/0/expiration_time");
    let end: Timestamp = end.and_then(Value::as_str).unwrap_or_default().parse()?;
    let end = u64::try_from(end.as_second()).unwrap_or(0);
    let left = show::until(commands::now(), Some(clock::timestamp(end)));
    Ok(format!("{identity}, certificate: {left}"))
}

/// How far its proxy is, as the control plane has it.
async fn config(
    cluster: &Cluster,
    viewer: &Viewer,
    problems: &mut Vec<String>,
) -> anyhow::Result<String> {
    for (replica, status) in Box::pin(cluster.statuses()).await? {
        for proxy in &status.proxies {
            let ip = proxy
                .address
                .parse()
                .ok()
                .map(|at: std::net::SocketAddr| at.ip());
            if !ip.is_some_and(|ip| viewer.addresses.contains(&unmapped(ip))) {
                continue;
            }
            for rejection in &proxy.rejections {
                let (revision, why) = (rejection.revision, &rejection.reason);
                problems.push(format!("the proxy rejected revision {revision}: {why}"));
            }
            let (acked, newest) = (proxy.acked_revision, status.revision);
            let state = show::state(proxy, newest);
            let replica = replica.unwrap_or_default();
            return Ok(format!(
                "{state}, revision {acked} of {newest} of {replica}"
            ));
        }
    }
    problems.push("the proxy is not connected to the control plane".to_owned());
    Ok("not connected".to_owned())
}

/// An IPv4 address, if it is one in IPv6's clothes.
pub(super) fn unmapped(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn mutual_tls(world: &World, viewer: &Viewer) -> String {
    let word = |port| {
        if is_strict(world, viewer, port) {
            "strict"
        } else {
            "permissive"
        }
    };
    let ports = world.inbound(viewer).map(|(port, _)| port);
    let others = ports.filter(|port| word(Some(*port)) != word(None));
    let others = others.map(|port| format!(", port {port} {}", word(Some(port))));
    format!("{}{}", word(None), others.collect::<String>())
}

/// Why a pod has no proxy.
async fn outside(cluster: &Cluster, pod: &Pod) -> anyhow::Result<String> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.clone().unwrap_or_default();
    let all = Api::<Namespace>::all(cluster.client.clone());
    let around = all
        .get(&namespace)
        .await
        .map_err(|error| cluster.failed(error))?;
    let says = |map: Option<&BTreeMap<String, String>>| map.and_then(|m| m.get(INJECT).cloned());
    let own = says(meta.labels.as_ref()).or_else(|| says(meta.annotations.as_ref()));
    let refused = own
        .as_deref()
        .is_some_and(|own| matches!(own, "false" | "disabled"));
    let asked = own
        .as_deref()
        .is_some_and(|own| matches!(own, "true" | "enabled"));
    let labelled = says(around.metadata.labels.as_ref()).as_deref() == Some("enabled");
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    Ok(if refused {
        format!("outside, as its own {INJECT} says")
    } else if host {
        "outside: a pod in the host's network cannot be in it".to_owned()
    } else if labelled || asked {
        "outside: it was made before it was to be in it, or while the webhook was not there; \
         make it anew (kubectl rollout restart)"
            .to_owned()
    } else {
        format!("outside: namespace {namespace} is not labelled {INJECT}=enabled")
    })
}

async fn service(
    cluster: &Cluster,
    one: &Described,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let world = Box::pin(cluster.world()).await?;
    let key = Key {
        kind: Kind::Service,
        namespace: one.namespace.clone(),
        name: one.name.clone(),
    };
    let ports = world.service_ports().filter(|port| *port.key == key);
    let ports: Vec<_> = ports.collect();
    let first = ports.first().with_context(|| {
        format!("{key} is not there, or has no TCP port; the mesh does not know it")
    })?;
    let service = first.service;
    let mut page = Page { out };
    page.head(&key)?;
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    let addresses = match addresses.as_slice() {
        [] => "none; its endpoints are dialled".to_owned(),
        some => some.join(", "),
    };
    page.line("address", addresses)?;
    for port in &ports {
        let spoken = port
            .port
            .app_protocol
            .map_or("found out", |protocol| protocol.as_str());
        let name = &port.port.name;
        page.line("port", format!("{} {name} ({spoken})", port.port.port))?;
    }
    let identities: Vec<_> = service.endpoints.iter().filter(|e| e.in_mesh()).collect();
    let (all, mesh) = (service.endpoints.len(), identities.len());
    page.line("endpoints", format!("{all}, {mesh} of them in the mesh"))?;
    let endpoints = service.endpoints.iter().map(|endpoint| {
        let transport = if endpoint.in_mesh() {
            "mTLS"
        } else {
            "plaintext"
        };
        let workload = endpoint.workload.clone().unwrap_or_default();
        let zone = endpoint
            .zone
            .as_ref()
            .map_or(String::new(), |zone| format!(" in {zone}"));
        let account = service.account(endpoint);
        format!(
            "{} {workload} as {account}, {transport}{zone}",
            endpoint.address
        )
    });
    page.list("Endpoints", &endpoints.collect::<Vec<_>>())?;
    let named = |object: &Arc<Object>| object.key.to_string();
    let (routes, policies): (Vec<_>, Vec<_>) = world
        .attached(&key)
        .iter()
        .partition(|object| is_route(object.key.kind));
    page.list(
        "Routes, the first match in this order",
        &each(&routes, named),
    )?;
    page.list("Policies", &each(&policies, named))?;
    let mut problems = Vec::new();
    if all == 0 {
        problems.push("no endpoint is ready: callers get 503 with flag UHE".to_owned());
    }
    page.list("Problems", &problems)
}

fn each(objects: &[&Arc<Object>], text: impl Fn(&Arc<Object>) -> String) -> Vec<String> {
    objects.iter().map(|object| text(object)).collect()
}

fn is_route(kind: Kind) -> bool {
    let versions = kind.api_versions().first();
    versions.is_some_and(|version| version.starts_with("gateway."))
}

async fn policy(
    cluster: &Cluster,
    kind: &str,
    one: &Described,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let kind = Kind::parse(kind).with_context(|| Kind::unknown(kind))?;
    let resource = served(&cluster.client, kind)
        .await
        .map_err(|error| cluster.failed(error))?;
    let resource = resource.with_context(|| format!("the cluster knows no {kind}"))?;
    let client = cluster.client.clone();
    let api = Api::<DynamicObject>::namespaced_with(client, &one.namespace, &resource);
    let found = api
        .get_opt(&one.name)
        .await
        .map_err(|error| cluster.failed(error))?;
    let key = Key {
        kind,
        namespace: one.namespace.clone(),
        name: one.name.clone(),
    };
    let found = found.with_context(|| format!("{key} is not there"))?;
    let generation = found.metadata.generation;
    let mut page = Page { out };
    page.head(&key)?;
    let known = Box::pin(cluster.world()).await?;
    let in_force = known.objects().by_key.contains_key(&key);
    let mut all_good = true;
    for (target, conditions) in verdicts(&found.data) {
        page.head(format!("For {target}"))?;
        for condition in conditions {
            let text = |key: &str| {
                condition
                    .get(key)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let seen = condition.get("observedGeneration").and_then(Value::as_i64);
            let stale = if seen < generation {
                " (of an older version)"
            } else {
                ""
            };
            all_good &= text("type") != "Accepted" || text("status") == "True";
            let what = format!(
                "{:<6}{}: {}{stale}",
                text("status"),
                text("reason"),
                text("message")
            );
            page.line(text("type"), what)?;
        }
    }
    let force = match (in_force, all_good) {
        (true, true) => "this version",
        (true, false) => "the last version that was valid",
        (false, _) => "nothing",
    };
    page.line("in force", force)
}

/// The conditions that the mesh wrote, and whom they are about.
pub(super) fn verdicts(data: &Value) -> Vec<(String, Vec<&Value>)> {
    let parents = data.pointer("/status/parents").and_then(Value::as_array);
    let own = parents.into_iter().flatten();
    let own = own.filter(|entry| entry.get("controllerName") == Some(&CONTROLLER.into()));
    let mut found: Vec<_> = own
        .map(|entry| {
            let text = |key: &str| {
                let value = entry.pointer(&format!("/parentRef/{key}"));
                value.map_or(String::new(), |v| {
                    v.to_string().trim_matches('"').to_owned()
                })
            };
            let port = text("port");
            let port = if port.is_empty() {
                port
            } else {
                format!(":{port}")
            };
            let target = format!("{} {}{port}", text("kind"), text("name"));
            let conditions = entry.get("conditions").and_then(Value::as_array);
            (target, conditions.into_iter().flatten().collect())
        })
        .collect();
    let whole = data.pointer("/status/conditions").and_then(Value::as_array);
    if let Some(conditions) = whole {
        found.push(("the mesh".to_owned(), conditions.iter().collect()));
    }
    found
}
