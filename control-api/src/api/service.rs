//! The calls.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use outrigger_proto::outrigger::control::v1::{self as pb, control_service_server::ControlService};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
};
use tonic::{Request, Response, Status};

use super::{
    convert,
    edit::{chosen, difference, edit_endpoints, endpoint_json, service_key},
    proxies,
};
use crate::{
    ca::{Authority, DEFAULT_TTL, TokenError, Tokens},
    clock,
    model::{DEFAULT_NAMESPACE, Objects, parse_manifest},
    store::{Applied, Store, StoreError},
    xds::{Proxies, Published},
};

/// How long [`ControlService::wait_revision`] waits when nobody says.
const PATIENCE: Duration = Duration::from_secs(30);
/// States that wait to be sent to a watcher; the store keeps only the newest for a slow one.
const WATCH_QUEUE: usize = 4;

/// Serves the control API.
#[derive(Debug, Clone)]
pub struct ControlServer {
    store: Arc<Store>,
    tokens: Tokens,
    authority: Arc<Authority>,
    proxies: Arc<Proxies>,
    published: watch::Receiver<Arc<Published>>,
}

impl ControlServer {
    /// Over this store, these tokens, this authority and these proxies.
    #[must_use]
    pub const fn new(
        store: Arc<Store>,
        tokens: Tokens,
        authority: Arc<Authority>,
        proxies: Arc<Proxies>,
        published: watch::Receiver<Arc<Published>>,
    ) -> Self {
        Self {
            store,
            tokens,
            authority,
            proxies,
            published,
        }
    }

    /// Changes are made on a thread that may wait for the disk.
    async fn change(
        &self,
        make: impl FnOnce(&Store) -> Result<Applied, StoreError> + Send + 'static,
    ) -> Result<Applied, Status> {
        let store = Arc::clone(&self.store);
        spawn_blocking(move || make(&store))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(convert::store_error)
    }

    /// Work on tokens, which also waits for the disk.
    async fn tokens<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, Status> {
        spawn_blocking(work)
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| convert::token_error(&error))
    }
}

type Changes<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ControlService for ControlServer {
    type WatchStream = Changes<pb::WatchResponse>;

    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        let request = request.into_inner();
        let namespace = match request.default_namespace.as_str() {
            "" => DEFAULT_NAMESPACE,
            given => given,
        };
        let objects = parse_manifest(&request.manifest, namespace)
            .map_err(|faults| convert::invalid(&faults))?;
        let dry_run = request.dry_run;
        let applied = self
            .change(move |store| store.apply(objects, dry_run))
            .await?;
        if !dry_run {
            tracing::info!(
                revision = applied.revision,
                objects = applied.outcomes.len(),
                "applied"
            );
        }
        Ok(Response::new(pb::ApplyResponse {
            revision: applied.revision,
            outcomes: convert::outcomes(&applied),
            warnings: applied.warnings.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let request = request.into_inner();
        let keys = request.keys.into_iter().map(|key| convert::key(Some(key)));
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        let passed = request.ignore_missing;
        let applied = self
            .change(move |store| store.delete(&keys, passed))
            .await?;
        tracing::info!(
            revision = applied.revision,
            objects = applied.outcomes.len(),
            "deleted"
        );
        Ok(Response::new(pb::DeleteResponse {
            revision: applied.revision,
            outcomes: convert::outcomes(&applied),
        }))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        let key = convert::key(request.into_inner().key)?;
        let objects = self.store.objects();
        let found = objects.by_key.get(&key);
        let found = found.ok_or_else(|| Status::not_found(format!("{key} does not exist")))?;
        Ok(Response::new(pb::GetResponse {
            object: Some(convert::object(found)),
        }))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        let request = request.into_inner();
        let kind = convert::kind(&request.kind)?;
        let objects = self.store.objects();
        Ok(Response::new(pb::ListResponse {
            revision: objects.revision,
            objects: chosen(&objects, kind, &request.namespace),
        }))
    }

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let kind = convert::kind(&request.kind)?;
        let mut states = self.store.watch();
        let (answers, queue) = mpsc::channel(WATCH_QUEUE);
        tokio::spawn(async move {
            let mut before: Option<Arc<Objects>> = None;
            loop {
                let now = Arc::clone(&states.borrow_and_update());
                let news = difference(before.as_deref(), &now, kind, &request.namespace);
                let first = before.is_none();
                before = Some(now);
                let empty = news.changed.is_empty() && news.deleted.is_empty();
                if (first || !empty) && answers.send(Ok(news)).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = answers.closed() => return,
                    changed = states.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(crate::xds::from_queue(queue))))
    }

    async fn register_endpoint(
        &self,
        request: Request<pb::RegisterEndpointRequest>,
    ) -> Result<Response<pb::RegisterEndpointResponse>, Status> {
        let request = request.into_inner();
        let endpoint = request.endpoint.unwrap_or_default();
        let address = super::edit::address(&endpoint.address)?;
        let json = endpoint_json(&endpoint);
        let key = service_key(request.namespace, request.service)?;
        let applied = self
            .change(move |store| store.edit(&key, |old| edit_endpoints(old, address, Some(json))))
            .await?;
        Ok(Response::new(pb::RegisterEndpointResponse {
            revision: applied.revision,
        }))
    }

    async fn deregister_endpoint(
        &self,
        request: Request<pb::DeregisterEndpointRequest>,
    ) -> Result<Response<pb::DeregisterEndpointResponse>, Status> {
        let request = request.into_inner();
        let address = super::edit::address(&request.address)?;
        let key = service_key(request.namespace, request.service)?;
        let applied = self
            .change(move |store| store.edit(&key, |old| edit_endpoints(old, address, None)))
            .await?;
        Ok(Response::new(pb::DeregisterEndpointResponse {
            revision: applied.revision,
        }))
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        let request = request.into_inner();
        let ttl = convert::duration("ttl", request.ttl, DEFAULT_TTL)?;
        let tokens = self.tokens.clone();
        let (namespace, account) = (request.namespace, request.service_account);
        let created = self
            .tokens(move || tokens.create(&namespace, &account, ttl))
            .await?;
        Ok(Response::new(pb::CreateTokenResponse {
            token: created.token,
            spiffe_id: created.identity.to_string(),
            expires: Some(clock::timestamp(created.expires)),
            id: created.id,
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let tokens = self.tokens.clone();
        let known = self.tokens(move || tokens.list(&namespace)).await?;
        Ok(Response::new(pb::ListTokensResponse {
            tokens: known.into_iter().map(convert::join_token).collect(),
        }))
    }

    async fn revoke_tokens(
        &self,
        request: Request<pb::RevokeTokensRequest>,
    ) -> Result<Response<pb::RevokeTokensResponse>, Status> {
        let ids = request.into_inner().ids;
        let tokens = self.tokens.clone();
        let revoked = self.tokens(move || tokens.revoke(&ids)).await?;
        for token in &revoked {
            tracing::info!(id = token.id, identity = %token.identity, "join token revoked");
        }
        Ok(Response::new(pb::RevokeTokensResponse {
            revoked: revoked.into_iter().map(convert::join_token).collect(),
        }))
    }

    async fn list_roots(
        &self,
        _: Request<pb::ListRootsRequest>,
    ) -> Result<Response<pb::ListRootsResponse>, Status> {
        let roots = convert::roots(&self.authority.bundle());
        Ok(Response::new(pb::ListRootsResponse { roots }))
    }

    async fn rotate_root(
        &self,
        request: Request<pb::RotateRootRequest>,
    ) -> Result<Response<pb::RotateRootResponse>, Status> {
        let overlap = match request.into_inner().overlap {
            None => None,
            given => Some(convert::duration("overlap", given, Duration::ZERO)?),
        };
        let authority = Arc::clone(&self.authority);
        spawn_blocking(move || authority.rotate(overlap))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| convert::ca_error(&error))?;
        let roots = convert::roots(&self.authority.bundle());
        Ok(Response::new(pb::RotateRootResponse { roots }))
    }

    async fn proxy_status(
        &self,
        _: Request<pb::ProxyStatusRequest>,
    ) -> Result<Response<pb::ProxyStatusResponse>, Status> {
        let revision = self.store.objects().revision;
        let proxies = self.proxies.all().iter().map(convert::proxy).collect();
        Ok(Response::new(pb::ProxyStatusResponse { revision, proxies }))
    }

    async fn wait_revision(
        &self,
        request: Request<pb::WaitRevisionRequest>,
    ) -> Result<Response<pb::WaitRevisionResponse>, Status> {
        let request = request.into_inner();
        let patience = convert::duration("timeout", request.timeout, PATIENCE)?;
        let answer = proxies::wait(&self.proxies, request.revision, patience).await;
        Ok(Response::new(answer))
    }

    async fn config_dump(
        &self,
        request: Request<pb::ConfigDumpRequest>,
    ) -> Result<Response<pb::ConfigDumpResponse>, Status> {
        let wanted = request.into_inner().proxy;
        let all = self.proxies.all();
        let found = all
            .iter()
            .find(|p| p.node.id == wanted || p.node.name() == wanted);
        let found = found.ok_or_else(|| Status::not_found(proxies::unknown(&wanted, &all)))?;
        let published = Arc::clone(&self.published.borrow());
        let json = proxies::dump(found, &published).to_string();
        Ok(Response::new(pb::ConfigDumpResponse { json }))
    }
}
