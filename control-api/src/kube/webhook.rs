//! The injector, and the judge of policies, as the API server calls them: AdmissionReview over
//! HTTPS.
//!
//! The certificate is signed by our authority and renewed in place; the root that the API server
//! is to trust is written into the webhook's configuration, and again whenever it is something
//! else. While this does not answer, pods of namespaces in the mesh are not made: they would run
//! unprotected.

use std::{convert::Infallible, fmt::Debug, sync::Arc, time::Duration};

use ::kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use rustls::{ServerConfig, server::ResolvesServerCert, version::TLS13};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{convert, status::is_route};
use crate::{
    ca::Bundle,
    inject::{self, Outcome, Settings},
    model::Kind,
    serve::accept_each,
    tls::{OwnCertificate, TlsError},
};

/// The API servers', which keep their connections.
const MAX_CONNECTIONS: usize = 256;
/// An object has 1.5 MiB at most (etcd), a review two of them.
const MAX_BODY: usize = 4 << 20;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that is quiet for this long is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);

/// What the answers depend on.
#[derive(Debug)]
pub struct Webhooks {
    /// For pods; but the roots are those of `bundle`.
    pub settings: Settings,
    /// What is trusted.
    pub bundle: watch::Receiver<Arc<Bundle>>,
}

/// TLS for the API server, which shows no certificate that we could check: what it asks for is no
/// secret.
///
/// # Errors
/// When rustls refuses.
pub fn acceptor(own: Arc<OwnCertificate>) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(own as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    webhooks: Arc<Webhooks>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    accept_each(&listener, MAX_CONNECTIONS, &stop, &tasks, |stream, _| {
        let served = connection(stream, tls.clone(), Arc::clone(&webhooks));
        let stop = stop.clone();
        async move {
            stop.run_until_cancelled(Box::pin(served)).await;
        }
    })
    .await;
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, webhooks: Arc<Webhooks>) {
    let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS with a caller of the webhook");
            return;
        }
        Err(_) => return,
    };
    let service = service_fn(move |request| {
        let webhooks = Arc::clone(&webhooks);
        async move { Ok::<_, Infallible>(answer(request, &webhooks).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "webhook connection ended");
    }
}

async fn answer(request: Request<Incoming>, webhooks: &Webhooks) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    let injects = match (request.method(), request.uri().path()) {
        (&Method::POST, "/inject") => true,
        (&Method::POST, "/validate") => false,
        (_, "/inject" | "/validate") => {
            return plain(StatusCode::METHOD_NOT_ALLOWED, String::new());
        }
        _ => return plain(StatusCode::NOT_FOUND, "not found\n".into()),
    };
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return plain(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let answered = serde_json::from_slice(&body).map_err(|error| error.to_string());
    let answered = answered.and_then(|asked| {
        if injects {
            let trust_bundle = webhooks.bundle.borrow().pem();
            let settings = Settings {
                trust_bundle,
                ..webhooks.settings.clone()
            };
            review(&asked, &settings)
        } else {
            judge(&asked)
        }
    });
    match answered {
        Ok(answer) => {
            let mut response = plain(StatusCode::OK, answer.to_string());
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(why) => plain(StatusCode::BAD_REQUEST, why),
    }
}

/// Answers an AdmissionReview of a route or policy. A policy of ours that the mesh would not take is
/// refused. A route is not, since it may be others' as well: its author is warned, and finds the
/// same in its status (Gateway API, "Conditions").
fn judge(asked: &Value) -> Result<Value, String> {
    let at = |path: &str| asked.pointer(path);
    let text = |path: &str| at(path).and_then(Value::as_str).unwrap_or_default();
    let uid = text("/request/uid");
    if uid.is_empty() {
        return Err("request.uid is missing".into());
    }
    let object = at("/request/object").ok_or("request.object is missing")?;
    let known = Kind::ALL.iter().copied();
    let kind = known.filter(|kind| *kind != Kind::Service);
    let kind = kind
        .into_iter()
        .find(|kind| kind.as_str() == text("/request/kind/kind"));
    let kind = kind.ok_or("only routes and policies are judged")?;
    let mut response = json!({"uid": uid, "allowed": true});
    // What is on its way out, and what was there before we were asked, must not be held up: nobody
    // could take away a finalizer or change a label.
    let ends = object.pointer("/metadata/deletionTimestamp").is_some();
    let same = at("/request/oldObject/spec").is_some_and(|old| object.get("spec") == Some(old));
    let faults = convert::policy(object.clone()).err().unwrap_or_default();
    if !faults.is_empty() && !ends && !same {
        let lines = faults
            .iter()
            .map(|fault| format!("{}: {}", fault.path, fault.why));
        let lines: Vec<_> = lines.collect();
        if is_route(kind) {
            let warned = lines
                .iter()
                .map(|line| format!("outrigger: not taken: {line}"));
            set(&mut response, "warnings", warned.collect());
        } else {
            set(&mut response, "allowed", false.into());
            let message = format!("outrigger: {}", lines.join("; "));
            let status = json!({"code": 422, "reason": "Invalid", "message": message});
            set(&mut response, "status", status);
        }
    }
    Ok(reviewed(&response))
}

fn reviewed(response: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": response,
    })
}

/// Answers an AdmissionReview (admission.k8s.io/v1) of a pod.
fn review(asked: &Value, settings: &Settings) -> Result<Value, String> {
    let text = |path: &str| asked.pointer(path).and_then(Value::as_str);
    let uid = text("/request/uid").ok_or("request.uid is missing")?;
    let pod = asked
        .pointer("/request/object")
        .ok_or("request.object is missing")?;
    if text("/request/kind/kind") != Some("Pod") {
        return Err("only pods are injected".into());
    }
    let mut response = json!({"uid": uid, "allowed": true});
    let namespace = text("/request/namespace").unwrap_or_default();
    let name = text("/request/name")
        .or_else(|| text("/request/object/metadata/name"))
        .or_else(|| text("/request/object/metadata/generateName"))
        .unwrap_or_default();
    match inject::inject(pod, settings) {
        Outcome::Injected { pod: new, warnings } => {
            tracing::info!(namespace, name, "proxy injected");
            let patch = Value::from(inject::patch(pod, &new)).to_string();
            set(&mut response, "patchType", "JSONPatch".into());
            set(&mut response, "patch", BASE64_STANDARD.encode(patch).into());
            let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
            if !texts.is_empty() {
                set(&mut response, "warnings", texts.into());
            }
        }
        Outcome::Left(reason) => tracing::debug!(namespace, name, ?reason, "left as it is"),
        Outcome::Refused(why) => {
            tracing::warn!(namespace, name, why, "pod refused");
            set(&mut response, "allowed", false.into());
            let message = format!("outrigger: {why}");
            set(
                &mut response,
                "status",
                json!({"code": 403, "message": message}),
            );
        }
    }
    Ok(reviewed(&response))
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// A configuration of webhooks.
pub trait Hooks {
    /// The name of each webhook, and how it is called.
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Hooks for MutatingWebhookConfiguration {
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|hook| (hook.name.as_str(), &hook.client_config))
            .collect()
    }
}

impl Hooks for ValidatingWebhookConfiguration {
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let all = self.webhooks.iter().flatten();
        all.map(|hook| (hook.name.as_str(), &hook.client_config))
            .collect()
    }
}

/// Keeps the roots of `bundle` in the webhook configuration called `name`, for as long as it runs.
pub async fn keep_trusted<K>(client: Client, name: String, mut bundle: watch::Receiver<Arc<Bundle>>)
where
    K: Hooks + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api = Api::<K>::all(client);
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut seen = std::pin::pin!(
        watcher(api.clone(), only)
            .default_backoff()
            .applied_objects()
    );
    let mut known: Option<K> = None;
    loop {
        tokio::select! {
            next = seen.next() => match next {
                Some(Ok(configuration)) => known = Some(configuration),
                Some(Err(error)) => {
                    tracing::warn!(name, %error, "webhook configuration not followed");
                    continue;
                }
                None => return,
            },
            Ok(()) = bundle.changed() => {}
        }
        let roots = bundle.borrow_and_update().pem();
        let Some(patch) = known.as_ref().and_then(|known| trust(known, &roots)) else {
            continue;
        };
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        match api.patch(&name, &params, &patch).await {
            Ok(_) => tracing::info!(name, "the API server trusts the webhook"),
            Err(error) => tracing::warn!(name, %error, "webhook configuration not patched"),
        }
    }
}

/// The patch that makes the API server trust `bundle`; `None` if it does.
fn trust(configuration: &impl Hooks, bundle: &str) -> Option<Value> {
    let stale = configuration.hooks().into_iter().filter(|(_, config)| {
        let known = config.ca_bundle.as_ref();
        known.is_none_or(|known| known.0 != bundle.as_bytes())
    });
    let bundle = BASE64_STANDARD.encode(bundle);
    let fresh: Vec<_> = stale
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    (!fresh.is_empty()).then(|| json!({"webhooks": fresh}))
}

#[cfg(test)]
mod tests;
