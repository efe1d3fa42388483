//! Follows the cluster's objects and keeps the mesh's like them.

use std::{collections::BTreeMap, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use ::kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use futures_util::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Name,
    cluster::{Change, Cluster, Delta},
    convert::PodFacts,
    grants, status,
};
use crate::{clock::Clock, model::Kind, store::Store};

/// Changes that wait to be taken in; a slow mirror slows the watches down.
const QUEUE: usize = 1_024;
/// Changes that come within this are published as one: a roll-out is many small ones.
const GATHER: Duration = Duration::from_millis(20);
/// A kind that the cluster does not know is asked for again after this: its definition may be
/// installed later.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// While what is missing is waited for, it is said this often.
const COMPLAIN: Duration = Duration::from_secs(10);

/// Follows everything, for as long as it runs; changes go into `store`. `synced` becomes true once
/// the store holds what the cluster holds.
pub async fn mirror(
    client: Client,
    store: Arc<Store>,
    synced: watch::Sender<bool>,
    clock: Clock,
    stop: CancellationToken,
) {
    let (deltas, queue) = mpsc::channel(QUEUE);
    let tasks = tokio_util::task::TaskTracker::new();
    let spawn = |task: futures_util::future::BoxFuture<'static, ()>| {
        let task = stop.clone().run_until_cancelled_owned(task);
        tasks.spawn(async move {
            task.await;
        });
    };
    let to = deltas.clone();
    let services = Api::<Service>::all(client.clone());
    let slim = |service: &mut Service| service.metadata.managed_fields = None;
    spawn(Box::pin(follow(services, to, slim, |change| {
        Some(Delta::Services(map(change, |s| Some(Box::new(s)))?))
    })));
    let to = deltas.clone();
    let slices = Api::<EndpointSlice>::all(client.clone());
    let slim = |slice: &mut EndpointSlice| slice.metadata.managed_fields = None;
    spawn(Box::pin(follow(slices, to, slim, |change| {
        Some(Delta::Slices(map(change, |s| Some(Box::new(s)))?))
    })));
    let to = deltas.clone();
    let pods = Api::<Pod>::all(client.clone());
    spawn(Box::pin(follow(
        pods,
        to,
        |_| {},
        |change| Some(Delta::Pods(map(change, |pod| Some(PodFacts::of(&pod)))?)),
    )));
    for kind in Kind::ALL.iter().copied().filter(|k| *k != Kind::Service) {
        let what = Followed {
            kind: kind.as_str(),
            versions: kind.api_versions(),
            delta: move |change| Delta::Policies(kind, change),
        };
        spawn(Box::pin(follow_kind(client.clone(), what, deltas.clone())));
    }
    let what = Followed {
        kind: grants::KIND,
        versions: grants::VERSIONS,
        delta: Delta::Grants,
    };
    spawn(Box::pin(follow_kind(client.clone(), what, deltas.clone())));
    drop(deltas);
    let (wanted, to_write) = watch::channel(Arc::default());
    spawn(Box::pin(status::write(client, to_write)));
    take_in(queue, &store, &synced, &wanted, &clock).await;
    tasks.close();
    tasks.wait().await;
}

/// Until the watches have ended.
async fn take_in(
    mut queue: mpsc::Receiver<Delta>,
    store: &Store,
    synced: &watch::Sender<bool>,
    wanted: &watch::Sender<Arc<status::Wanted>>,
    clock: &Clock,
) {
    let mut cluster = Cluster::default();
    let mut said = Instant::now();
    while let Some(first) = queue.recv().await {
        cluster.apply(first);
        let end = Instant::now() + GATHER;
        while let Ok(Some(next)) = timeout_at(end, queue.recv()).await {
            cluster.apply(next);
        }
        let missing: Vec<_> = cluster.missing().collect();
        if !missing.is_empty() {
            if said.elapsed() > COMPLAIN {
                said = Instant::now();
                tracing::info!(?missing, "waiting for the cluster's objects");
            }
            continue;
        }
        let changes = cluster.changes();
        let concerned = status::concerned(&changes, &store.objects());
        store.mirror(changes);
        synced.send_replace(true);
        if concerned {
            let statuses = status::wanted(&cluster, &store.objects(), clock);
            wanted.send_replace(Arc::new(statuses));
        }
    }
}

/// A change of other things, if all of them can be had.
fn map<A, B>(change: Change<A>, f: impl Fn(A) -> Option<B>) -> Option<Change<B>> {
    Some(match change {
        Change::Set(name, object) => Change::Set(name, f(object)?),
        Change::Gone(name) => Change::Gone(name),
        Change::All(all) => {
            let all = all
                .into_iter()
                .map(|(name, object)| Some((name, f(object)?)));
            Change::All(all.collect::<Option<_>>()?)
        }
    })
}

/// Watches one kind, for as long as it runs.
async fn follow<K>(
    api: Api<K>,
    to: mpsc::Sender<Delta>,
    slim: impl Fn(&mut K) + Send + 'static,
    delta: impl Fn(Change<K>) -> Option<Delta>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = watcher(api, watcher::Config::default()).modify(slim);
    let mut stream = pin!(stream.default_backoff());
    let mut gather = Gather::default();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                let change = gather.change(event);
                if let Some(delta) = change.and_then(&delta)
                    && to.send(delta).await.is_err()
                {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "watch interrupted"),
        }
    }
}

/// Puts the objects of a fresh list together.
struct Gather<K> {
    all: Vec<(Name, K)>,
}

impl<K> Default for Gather<K> {
    fn default() -> Self {
        Self { all: Vec::new() }
    }
}

impl<K: Resource> Gather<K> {
    fn change(&mut self, event: Event<K>) -> Option<Change<K>> {
        match event {
            Event::Apply(object) => Some(Change::Set(Name::of(&object), object)),
            Event::Delete(object) => Some(Change::Gone(Name::of(&object))),
            Event::Init => {
                self.all.clear();
                None
            }
            Event::InitApply(object) => {
                self.all.push((Name::of(&object), object));
                None
            }
            Event::InitDone => Some(Change::All(std::mem::take(&mut self.all))),
        }
    }
}

/// A kind that the cluster may know or not.
struct Followed<F> {
    kind: &'static str,
    versions: &'static [&'static str],
    delta: F,
}

/// Watches a kind for as long as the cluster knows it, and waits for it otherwise.
async fn follow_kind<F>(client: Client, what: Followed<F>, to: mpsc::Sender<Delta>)
where
    F: Fn(Change<serde_json::Value>) -> Delta + Send + Sync,
{
    let kind = what.kind;
    let mut empty = false;
    loop {
        match served_as(&client, kind, what.versions).await {
            Ok(Some(resource)) => {
                empty = false;
                let watched = watch_kind(&client, &what, &resource, &to);
                if Box::pin(watched).await.is_none() {
                    return;
                }
            }
            Ok(None) => {
                // Once is enough; and without it nothing would ever be published.
                let none = (what.delta)(Change::All(vec![]));
                if !empty && to.send(none).await.is_err() {
                    return;
                }
                empty = true;
            }
            Err(error) => tracing::warn!(kind, %error, "cannot ask which kinds are served"),
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Until the kind is no longer served; `None` when nobody listens any more.
async fn watch_kind<F>(
    client: &Client,
    what: &Followed<F>,
    resource: &ApiResource,
    to: &mpsc::Sender<Delta>,
) -> Option<()>
where
    F: Fn(Change<serde_json::Value>) -> Delta + Send + Sync,
{
    let kind = what.kind;
    let api = Api::<DynamicObject>::all_with(client.clone(), resource);
    let stream = watcher(api, watcher::Config::default());
    let mut stream = pin!(stream.default_backoff());
    let mut gather = DynamicGather::default();
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if let Some(change) = gather.change(event, resource) {
                    to.send((what.delta)(change)).await.ok()?;
                }
            }
            Err(error) if is_unknown(&error) => {
                tracing::info!(kind, "no longer served by the cluster");
                return Some(());
            }
            Err(error) => tracing::warn!(kind, %error, "watch interrupted"),
        }
    }
    Some(())
}

fn is_unknown(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::InitialListFailed(::kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(::kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    status.code == 404
}

/// [`Gather`] for objects whose kind is known when it runs only.
#[derive(Default)]
struct DynamicGather {
    all: BTreeMap<Name, serde_json::Value>,
}

impl DynamicGather {
    fn change(
        &mut self,
        event: Event<DynamicObject>,
        resource: &ApiResource,
    ) -> Option<Change<serde_json::Value>> {
        let name = |object: &DynamicObject| {
            let meta = &object.metadata;
            Name::new(
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            )
        };
        match event {
            Event::Apply(object) => Some(Change::Set(name(&object), document(object, resource))),
            Event::Delete(object) => Some(Change::Gone(name(&object))),
            Event::Init => {
                self.all.clear();
                None
            }
            Event::InitApply(object) => {
                self.all.insert(name(&object), document(object, resource));
                None
            }
            Event::InitDone => {
                let all = std::mem::take(&mut self.all);
                Some(Change::All(all.into_iter().collect()))
            }
        }
    }
}

/// The object whole, as JSON; in lists, objects do not say their kind.
fn document(mut object: DynamicObject, resource: &ApiResource) -> serde_json::Value {
    object.metadata.managed_fields = None;
    let mut json = serde_json::to_value(&object).unwrap_or_default();
    if let Some(map) = json.as_object_mut() {
        map.insert("apiVersion".into(), resource.api_version.clone().into());
        map.insert("kind".into(), resource.kind.clone().into());
    }
    json
}

/// How the cluster serves `kind`, in the first of its versions that it does.
pub(crate) async fn served(
    client: &Client,
    kind: Kind,
) -> Result<Option<ApiResource>, ::kube::Error> {
    served_as(client, kind.as_str(), kind.api_versions()).await
}

async fn served_as(
    client: &Client,
    kind: &str,
    versions: &[&str],
) -> Result<Option<ApiResource>, ::kube::Error> {
    for api_version in versions {
        let resources = match client.list_api_group_resources(api_version).await {
            Ok(list) => list.resources,
            Err(::kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        let whole = |name: &str| !name.contains('/');
        let mut kinds = resources.iter().filter(|r| r.kind == kind);
        let Some(found) = kinds.find(|resource| whole(&resource.name)) else {
            continue;
        };
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        return Ok(Some(ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: (*api_version).to_owned(),
            kind: found.kind.clone(),
            plural: found.name.clone(),
        }));
    }
    Ok(None)
}
