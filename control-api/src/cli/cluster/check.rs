//! What is wrong with a mesh, or with a cluster that is to have one.

use std::{collections::BTreeSet, io::Write, process::ExitCode};

use ::kube::{
    Api,
    api::{ListParams, PostParams},
};
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    apps::v1::Deployment,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{Namespace, Pod},
};
use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::json;

use super::{Cluster, describe::unmapped, has_proxy, runs};
use crate::{
    cli::{args::Report, commands, kube::CONTROL_PLANE_NAME, said, show},
    kube::{MESH_LABEL, MESH_SIDECAR, Name, watch::served, webhook::Hooks},
    model::Kind,
};

/// Native sidecars are on by default from this minor version of Kubernetes on (KEP-753).
const NEEDED: u32 = 29;
/// The webhooks' configurations, as they are installed.
const INJECTOR: &str = "outrigger-injector";
const VALIDATOR: &str = "outrigger-policies";
/// A root that ends sooner is warned of.
const ROOT_DAYS: u64 = 30;
/// Names in a line.
const NAMED: usize = 5;

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Good,
    Warning(String),
    Wrong(String),
}

use Outcome::{Good, Warning, Wrong};

/// All checks, in order.
#[derive(Debug, Default)]
struct Checks(Vec<(String, Outcome)>);

impl Checks {
    fn add(&mut self, what: impl Into<String>, outcome: Outcome) {
        self.0.push((what.into(), outcome));
    }

    /// An outcome, unless it cannot be found out.
    fn tried(&mut self, what: &str, outcome: anyhow::Result<Outcome>) {
        self.add(
            what,
            outcome.unwrap_or_else(|why| Wrong(format!("{why:#}"))),
        );
    }

    fn wrong(&self) -> bool {
        self.0
            .iter()
            .any(|(_, outcome)| matches!(outcome, Wrong(_)))
    }

    fn write(&self, report: Report, out: &mut impl Write) -> anyhow::Result<()> {
        if let Some(output) = report.data() {
            let all = self.0.iter().map(|(what, outcome)| match outcome {
                Good => json!({"check": what, "outcome": "good"}),
                Warning(why) => json!({"check": what, "outcome": "warning", "why": why}),
                Wrong(why) => json!({"check": what, "outcome": "wrong", "why": why}),
            });
            return show::data(out, &[all.collect()], output);
        }
        for (what, outcome) in &self.0 {
            match outcome {
                Good => writeln!(out, "ok       {what}")?,
                Warning(why) => writeln!(out, "warning  {what}: {why}")?,
                Wrong(why) => writeln!(out, "WRONG    {what}: {why}")?,
            }
        }
        Ok(())
    }
}

pub(super) async fn run(
    cluster: &Cluster,
    pre: bool,
    report: Report,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    let mut checks = Checks::default();
    let version = version(cluster).await;
    let reached = version.is_ok();
    checks.tried("Kubernetes", version);
    if reached {
        if pre {
            Box::pin(before(cluster, &mut checks)).await;
        } else {
            Box::pin(after(cluster, &mut checks)).await;
        }
    }
    checks.write(report, out)?;
    Ok(if checks.wrong() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn version(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let info = cluster.client.apiserver_version().await;
    let info = info.map_err(|error| cluster.failed(error))?;
    // Some clouds write "29+".
    let digits = info.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    let minor: u32 = digits.parse().unwrap_or(0);
    Ok(if info.major != "1" || minor >= NEEDED {
        Good
    } else {
        Wrong(format!(
            "version {} has no native sidecars; 1.{NEEDED} or later is needed",
            info.git_version
        ))
    })
}

/// What has to be made; all of it, or nothing works.
const TO_MAKE: [(&str, &str, bool); 11] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        false,
    ),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("apps", "deployments", true),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
];

async fn before(cluster: &Cluster, checks: &mut Checks) {
    checks.tried("your rights to install it", rights(cluster).await);
    checks.tried("Gateway API", gateway_api(cluster).await);
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), &cluster.namespace);
    let there = deployments.get_opt(CONTROL_PLANE_NAME).await;
    let there = there
        .map_err(|error| cluster.failed(error))
        .map(|there| match there {
            None => Good,
            Some(_) => Warning("there is a control plane already; it would be changed".into()),
        });
    checks.tried("room for a control plane", there);
}

async fn rights(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let mut missing = Vec::new();
    for (group, resource, namespaced) in TO_MAKE {
        let asked = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("create".to_owned()),
                    namespace: namespaced.then(|| cluster.namespace.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &asked).await;
        let answer = answer.map_err(|error| cluster.failed(error))?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(resource);
        }
    }
    Ok(match missing.as_slice() {
        [] => Good,
        some => Wrong(format!("you may not create {}", some.join(", "))),
    })
}

async fn gateway_api(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let mut missing = Vec::new();
    for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
        let known = served(&cluster.client, kind).await;
        if known.map_err(|error| cluster.failed(error))?.is_none() {
            missing.push(kind.as_str());
        }
    }
    Ok(match missing.as_slice() {
        [] => Good,
        some => Warning(format!(
            "the cluster knows no {}; without the Gateway API's definitions there are no routes",
            some.join(", ")
        )),
    })
}

async fn after(cluster: &Cluster, checks: &mut Checks) {
    checks.tried("definitions of the policies", definitions(cluster).await);
    checks.tried("Gateway API", gateway_api(cluster).await);
    checks.tried("control plane", control_plane(cluster).await);
    let replicas = cluster.replicas().await.unwrap_or_default();
    let mut roots = Vec::new();
    for replica in &replicas {
        let what = format!("control API of {}", replica.name);
        let answer = cluster
            .api(replica)
            .list_roots(pb::ListRootsRequest {})
            .await;
        match answer {
            Ok(answer) => {
                checks.add(what, Good);
                roots.push(answer.into_inner().roots);
            }
            Err(status) => checks.add(what, Wrong(format!("{:#}", said(&status)))),
        }
    }
    if let Some(first) = roots.first() {
        checks.add("root certificates", root_of(first, &roots));
        checks.tried("webhook for pods", injector(cluster, first).await);
        checks.tried("webhook for policies", validator(cluster, first).await);
    }
    if !roots.is_empty() {
        Box::pin(proxies(cluster, checks)).await;
    }
    checks.tried("pods outside the mesh", Box::pin(outsiders(cluster)).await);
    checks.tried("policies", Box::pin(policies(cluster)).await);
}

async fn definitions(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let mut missing = Vec::new();
    let ours = Kind::ALL.iter().filter(|kind| {
        let first = kind.api_versions().first();
        **kind != Kind::Service && first.is_some_and(|v| v.starts_with("outrigger.dev/"))
    });
    for kind in ours {
        let known = served(&cluster.client, *kind).await;
        if known.map_err(|error| cluster.failed(error))?.is_none() {
            missing.push(kind.as_str());
        }
    }
    Ok(match missing.as_slice() {
        [] => Good,
        some => Wrong(format!(
            "the cluster knows no {}; see `outrigger install`",
            some.join(", ")
        )),
    })
}

async fn control_plane(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let namespace = &cluster.namespace;
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), namespace);
    let found = deployments.get_opt(CONTROL_PLANE_NAME).await;
    let Some(found) = found.map_err(|error| cluster.failed(error))? else {
        return Ok(Wrong(format!(
            "there is no Deployment {CONTROL_PLANE_NAME} in namespace {namespace}; see `outrigger \
             install`, and --control-namespace"
        )));
    };
    let wanted = found.spec.replicas.unwrap_or(1);
    let ready = found
        .status
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    Ok(match ready {
        0 => Wrong(format!(
            "none of {wanted} replicas is ready; see kubectl -n {namespace} describe pod -l \
             app={CONTROL_PLANE_NAME}"
        )),
        ready if ready < wanted => Warning(format!("{ready} of {wanted} replicas are ready")),
        _ => Good,
    })
}

/// The roots of one replica, beside those of all.
fn root_of(roots: &[pb::Root], all: &[Vec<pb::Root>]) -> Outcome {
    let names = |roots: &[pb::Root]| -> BTreeSet<String> {
        roots.iter().map(|root| root.fingerprint.clone()).collect()
    };
    if all.iter().any(|other| names(other) != names(roots)) {
        return Wrong("the replicas do not trust the same; restart them".into());
    }
    let now = commands::now();
    let end = roots
        .iter()
        .filter(|root| root.state() == pb::root::State::Active);
    let end = end
        .filter_map(|root| u64::try_from(root.not_after?.seconds).ok())
        .min();
    match end.map(|end| end.saturating_sub(now) / 86_400) {
        Some(0) => Wrong("the root that signs has expired, or will within a day".into()),
        Some(days) if days < ROOT_DAYS => Warning(format!("the root ends in {days} days")),
        _ => Good,
    }
}

/// Whether a webhook's configuration trusts one of the roots in all that it calls.
fn trusts(configuration: &impl Hooks, roots: &[pb::Root]) -> bool {
    configuration.hooks().iter().all(|(_, config)| {
        let bundle = config.ca_bundle.as_ref();
        let bundle = bundle.map(|bundle| String::from_utf8_lossy(&bundle.0).into_owned());
        bundle.is_some_and(|bundle| roots.iter().any(|root| bundle.contains(root.pem.trim())))
    })
}

async fn injector(cluster: &Cluster, roots: &[pb::Root]) -> anyhow::Result<Outcome> {
    let all = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone());
    let found = all.get_opt(INJECTOR).await;
    Ok(match found.map_err(|error| cluster.failed(error))? {
        None => Wrong(format!("there is no {INJECTOR}: no pod is given a proxy")),
        Some(found) if !trusts(&found, roots) => Wrong(format!(
            "{INJECTOR} does not trust the control plane: pods of namespaces in the mesh cannot be \
             made"
        )),
        Some(_) => Good,
    })
}

async fn validator(cluster: &Cluster, roots: &[pb::Root]) -> anyhow::Result<Outcome> {
    let all = Api::<ValidatingWebhookConfiguration>::all(cluster.client.clone());
    let found = all.get_opt(VALIDATOR).await;
    let why = match found.map_err(|error| cluster.failed(error))? {
        None => format!("there is no {VALIDATOR}"),
        Some(found) if !trusts(&found, roots) => {
            format!("{VALIDATOR} does not trust the control plane")
        }
        Some(_) => return Ok(Good),
    };
    Ok(Warning(format!(
        "{why}: what is wrong with a policy is said in its status only"
    )))
}

/// What the control plane and the cluster know of proxies.
async fn proxies(cluster: &Cluster, checks: &mut Checks) {
    let statuses = match Box::pin(cluster.statuses()).await {
        Ok(statuses) => statuses,
        Err(why) => return checks.add("proxies", Wrong(format!("{why:#}"))),
    };
    let (mut addresses, mut rejecting, mut behind) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (_, status) in &statuses {
        for proxy in &status.proxies {
            if let Ok(address) = proxy.address.parse::<std::net::SocketAddr>() {
                addresses.insert(unmapped(address.ip()).to_string());
            }
            match show::state(proxy, status.revision) {
                "rejected" => rejecting.extend(
                    proxy
                        .rejections
                        .iter()
                        .map(|one| format!("{}: {}", proxy.name, one.reason)),
                ),
                "behind" => behind.push(proxy.name.clone()),
                _ => {}
            }
        }
    }
    let told = match (rejecting.as_slice(), behind.as_slice()) {
        ([], []) => Good,
        ([], some) => Warning(format!("not up to date: {}", some_of(some))),
        (some, _) => Wrong(format!("configuration rejected: {}", some_of(some))),
    };
    checks.add("configuration of the proxies", told);
    let pods = Api::<Pod>::all(cluster.client.clone());
    let label = format!("{MESH_LABEL}={MESH_SIDECAR}");
    let pods = pods.list(&ListParams::default().labels(&label)).await;
    let outcome = pods.map_err(|error| cluster.failed(error)).map(|pods| {
        let lost = pods.items.iter().filter(|pod| runs(pod)).filter(|pod| {
            let status = pod.status.as_ref();
            let ips = status.and_then(|status| status.pod_ips.as_ref());
            !ips.into_iter()
                .flatten()
                .any(|one| addresses.contains(&one.ip))
        });
        match lost.map(full).collect::<Vec<_>>().as_slice() {
            [] => Good,
            some => Warning(format!(
                "not connected to the control plane: {}",
                some_of(some)
            )),
        }
    });
    checks.tried("connections of the proxies", outcome);
}

fn full(pod: &Pod) -> String {
    let Name { namespace, name } = Name::of(pod);
    format!("{namespace}/{name}")
}

fn some_of(names: &[String]) -> String {
    let first: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{more}", first.join(", "))
}

/// Pods that should have a proxy by their namespace, and have none.
async fn outsiders(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let spaces = Api::<Namespace>::all(cluster.client.clone());
    let label = ListParams::default().labels("outrigger.dev/inject=enabled");
    let spaces = spaces
        .list_metadata(&label)
        .await
        .map_err(|error| cluster.failed(error))?;
    let mut found = Vec::new();
    for space in spaces.items {
        let name = space.metadata.name.unwrap_or_default();
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), &name);
        let pods = pods.list(&ListParams::default()).await;
        let pods = pods.map_err(|error| cluster.failed(error))?;
        found.extend(pods.items.iter().filter(|pod| is_forgotten(pod)).map(full));
    }
    Ok(match found.as_slice() {
        [] => Good,
        some => Warning(format!(
            "made before their namespace was in it; restart {}",
            some_of(some)
        )),
    })
}

fn is_forgotten(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    let says = [meta.labels.as_ref(), meta.annotations.as_ref()];
    let mut says = says
        .into_iter()
        .flatten()
        .filter_map(|map| map.get("outrigger.dev/inject"));
    let opted_out = says.any(|says| matches!(says.as_str(), "false" | "disabled"));
    let spec = pod.spec.as_ref();
    let host = spec.and_then(|spec| spec.host_network) == Some(true);
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let over = matches!(phase, Some("Succeeded" | "Failed"));
    !opted_out && !host && !over && !has_proxy(pod)
}

/// Routes and policies that were not taken.
async fn policies(cluster: &Cluster) -> anyhow::Result<Outcome> {
    let mut found = Vec::new();
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Service) {
        let known = served(&cluster.client, *kind).await;
        let Some(resource) = known.map_err(|error| cluster.failed(error))? else {
            continue;
        };
        let all = Api::<::kube::api::DynamicObject>::all_with(cluster.client.clone(), &resource);
        let all = all.list(&ListParams::default()).await;
        for object in all.map_err(|error| cluster.failed(error))?.items {
            let meta = &object.metadata;
            let name = format!(
                "{kind} {}/{}",
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default()
            );
            let verdicts = super::describe::verdicts(&object.data);
            let conditions = verdicts.iter().flat_map(|(_, conditions)| conditions);
            let bad = conditions.into_iter().find(|one| one["status"] == "False");
            if let Some(bad) = bad {
                let why = bad["message"].as_str().unwrap_or_default();
                found.push(format!("{name}: {why}"));
            }
        }
    }
    Ok(match found.as_slice() {
        [] => Good,
        some => Warning(some_of(some)),
    })
}
