//! A mesh in a Kubernetes cluster: the way to its control plane and to its proxies by the user's
//! kubeconfig, and the commands that only make sense there.

mod check;
mod describe;
mod proxy;
mod top;
mod tunnel;
mod uninstall;

use std::{io::Write, process::ExitCode};

use ::kube::{
    Api, Client as KubeClient, Config, Error,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use anyhow::Context as _;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use outrigger_proto::outrigger::control::v1 as pb;
use serde_json::Value;
use tonic::transport::Endpoint;

use super::{
    Client,
    args::{Args, ClusterArgs, Command},
    commands, connect, said, show,
};
use crate::{inject, kube::Name};

/// Label by which the pods of the control plane are found.
const CONTROL_PLANE: &str = "app=outrigger-control";
/// Where a replica of it serves the control API, on its loopback.
const API_PORT: u16 = 15010;

/// Whether the arguments mean the mesh of a cluster, see [`super::help`].
pub(super) fn is_meant(args: &Args) -> bool {
    let cluster = &args.cluster;
    if cluster.kubeconfig.is_some() || cluster.context.is_some() {
        return true;
    }
    args.server.is_none() && kubeconfig_is_there()
}

/// Whether kubectl would find one.
fn kubeconfig_is_there() -> bool {
    let named = std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty());
    let home = std::env::home_dir();
    named || home.is_some_and(|home| home.join(".kube/config").exists())
}

/// The commands of this module.
pub(super) async fn run(
    args: &ClusterArgs,
    command: Command,
    out: &mut (impl Write + Send),
) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(args).await?;
    match command {
        Command::Describe(what) => Box::pin(describe::run(&cluster, what, out)).await?,
        Command::Proxy(what) => Box::pin(proxy::run(&cluster, what, out)).await?,
        Command::Top(args) => Box::pin(top::run(&cluster, args, out)).await?,
        Command::Check { pre, output } => {
            return Box::pin(check::run(&cluster, pre, output, out)).await;
        }
        Command::Uninstall { force, purge } => {
            Box::pin(uninstall::run(&cluster, force, purge, out)).await?;
        }
        // The others are done elsewhere.
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// A cluster.
pub(super) struct Cluster {
    client: KubeClient,
    /// Namespace of the control plane.
    namespace: String,
    /// As people know it.
    name: String,
}

impl Cluster {
    /// By the kubeconfig; nothing is asked yet.
    pub(super) async fn open(args: &ClusterArgs) -> anyhow::Result<Self> {
        let kubeconfig = match &args.kubeconfig {
            Some(file) => Kubeconfig::read_from(file)
                .with_context(|| format!("--kubeconfig {}", file.display()))?,
            None => Kubeconfig::read().context("there is no kubeconfig to find a cluster by")?,
        };
        let context = args.context.clone();
        let context = context.or_else(|| kubeconfig.current_context.clone());
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let config = config.context("the kubeconfig names no cluster")?;
        let at = config.cluster_url.to_string();
        let name = match context {
            Some(context) => format!("{context} ({at})"),
            None => at,
        };
        Ok(Self {
            client: KubeClient::try_from(config)?,
            namespace: args.control_namespace.clone(),
            name,
        })
    }

    /// What the API server, or the way to it, says.
    fn failed(&self, error: Error) -> anyhow::Error {
        match error {
            Error::Api(status) => anyhow::anyhow!("{}", status.message),
            other => {
                let mut reason: &dyn std::error::Error = &other;
                while let Some(source) = reason.source() {
                    reason = source;
                }
                anyhow::anyhow!("cannot reach the API server of {}: {reason}", self.name)
            }
        }
    }

    /// The replicas of the control plane that serve.
    async fn replicas(&self) -> anyhow::Result<Vec<Name>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let all = pods
            .list(&ListParams::default().labels(CONTROL_PLANE))
            .await;
        let all = all.map_err(|error| self.failed(error))?.items;
        let (namespace, cluster) = (&self.namespace, &self.name);
        if all.is_empty() {
            anyhow::bail!(
                "there is no control plane in namespace {namespace} of {cluster}; `outrigger \
                 install` prints one, and --server leads to one outside a cluster"
            );
        }
        let mut ready: Vec<_> = all
            .iter()
            .filter(|pod| is_ready(pod))
            .map(Name::of)
            .collect();
        if ready.is_empty() {
            anyhow::bail!(
                "none of the {} pods of the control plane in namespace {namespace} of {cluster} \
                 is ready; see `outrigger check`",
                all.len()
            );
        }
        ready.sort();
        Ok(ready)
    }

    /// The control API of one replica.
    fn api(&self, replica: &Name) -> Client {
        let connector = tunnel::Connector {
            client: self.client.clone(),
            pod: replica.clone(),
            port: API_PORT,
        };
        let endpoint = Endpoint::from_static("http://outrigger-control");
        connect::over(endpoint.connect_with_connector_lazy(connector), None)
    }

    /// What each replica knows of its proxies.
    async fn statuses(&self) -> anyhow::Result<Vec<(Option<String>, pb::ProxyStatusResponse)>> {
        let mut all = Vec::new();
        for replica in self.replicas().await? {
            let status = self
                .api(&replica)
                .proxy_status(pb::ProxyStatusRequest {})
                .await;
            let status = status.map_err(|s| said(&s).context(replica.name.clone()))?;
            all.push((Some(replica.name), status.into_inner()));
        }
        Ok(all)
    }

    /// A command of the control API. Every replica knows every object; each proxy is connected to
    /// one of them.
    pub(super) async fn control(
        &self,
        command: Command,
        out: &mut (impl Write + Send),
    ) -> anyhow::Result<ExitCode> {
        let proxy = match command {
            Command::Status { output } => {
                show::proxies(out, &self.statuses().await?, commands::now(), output)?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::ConfigDump { ref proxy, .. } => Some(proxy.clone()),
            _ => None,
        };
        let replicas = self.replicas().await?;
        let mut chosen = replicas.first();
        if let Some(wanted) = proxy {
            for replica in &replicas {
                let status = self
                    .api(replica)
                    .proxy_status(pb::ProxyStatusRequest {})
                    .await;
                let status = status.map_err(|s| said(&s))?.into_inner();
                let mut all = status.proxies.iter();
                if all.any(|proxy| proxy.name == wanted || proxy.id == wanted) {
                    chosen = Some(replica);
                }
            }
        }
        let replica = chosen.context("no replica of the control plane")?;
        Box::pin(commands::run(self.api(replica), command, out)).await
    }

    /// A pod, if it is there.
    async fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Pod> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let found = pods
            .get_opt(name)
            .await
            .map_err(|error| self.failed(error))?;
        found.with_context(|| format!("there is no pod {namespace}/{name} in {}", self.name))
    }

    /// Asks the proxy of a pod for a page, if it has one that runs.
    async fn ask(&self, pod: &Pod, method: Method, page: &str) -> anyhow::Result<String> {
        let own = Name::of(pod);
        let Name { namespace, name } = &own;
        if !has_proxy(pod) {
            anyhow::bail!(
                "pod {namespace}/{name} has no {}: it is outside the mesh",
                inject::PROXY
            );
        }
        if !runs(pod) {
            anyhow::bail!("the proxy of pod {namespace}/{name} does not run");
        }
        tunnel::ask(&self.client, &own, method, page).await
    }

    /// The same, for pages in JSON.
    async fn ask_json(&self, pod: &Pod, page: &str) -> anyhow::Result<Value> {
        let text = self.ask(pod, Method::GET, page).await?;
        serde_json::from_str(&text).with_context(|| format!("what the proxy says at {page}"))
    }
}

/// Whether everything in it is ready.
fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten();
    let ending = pod.metadata.deletion_timestamp.is_some();
    !ending && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

fn has_proxy(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let first = spec
        .and_then(|s| s.init_containers.as_ref())
        .into_iter()
        .flatten();
    let all = first.chain(spec.into_iter().flat_map(|s| &s.containers));
    all.into_iter()
        .any(|container| container.name == inject::PROXY)
}

/// Whether its proxy runs.
fn runs(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let first = status.and_then(|s| s.init_container_statuses.as_ref());
    let others = status.and_then(|s| s.container_statuses.as_ref());
    let mut all = first
        .into_iter()
        .flatten()
        .chain(others.into_iter().flatten());
    all.any(|container| {
        let running = container
            .state
            .as_ref()
            .and_then(|state| state.running.as_ref());
        container.name == inject::PROXY && running.is_some()
    })
}
