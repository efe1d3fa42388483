//! Between the API's messages and our types.

use std::time::Duration;

use outrigger_proto::outrigger::control::v1::{self as pb, outcome};
use tonic::Status;

use crate::{
    ca::{Bundle, CaError, KnownToken, RootState, TokenError},
    clock,
    model::{Invalid, Key, Kind, Object},
    store::{Applied, Change, StoreError},
    xds::ProxyEntry,
};

pub(super) fn key(message: Option<pb::ObjectKey>) -> Result<Key, Status> {
    let message = message.unwrap_or_default();
    let kind = kind(&message.kind)?
        .ok_or_else(|| Status::invalid_argument("key.kind: must not be empty"))?;
    if message.name.is_empty() {
        return Err(Status::invalid_argument("key.name: must not be empty"));
    }
    let namespace = match message.namespace {
        empty if empty.is_empty() => crate::model::DEFAULT_NAMESPACE.to_owned(),
        given => given,
    };
    Ok(Key {
        kind,
        namespace,
        name: message.name,
    })
}

/// `None` for the empty name.
pub(super) fn kind(name: &str) -> Result<Option<Kind>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let unknown = || Status::invalid_argument(format!("kind {}", Kind::unknown(name)));
    Kind::parse(name).map(Some).ok_or_else(unknown)
}

pub(super) fn key_message(key: &Key) -> pb::ObjectKey {
    pb::ObjectKey {
        kind: key.kind.as_str().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

pub(super) fn object(object: &Object) -> pb::Object {
    pb::Object {
        key: Some(key_message(&object.key)),
        revision: object.revision,
        json: object.json.to_string(),
    }
}

pub(super) fn outcomes(applied: &Applied) -> Vec<pb::Outcome> {
    let change = |change| match change {
        Change::Created => outcome::Change::Created,
        Change::Configured => outcome::Change::Configured,
        Change::Unchanged => outcome::Change::Unchanged,
        Change::Deleted => outcome::Change::Deleted,
    };
    let each = applied.outcomes.iter();
    each.map(|(key, what)| pb::Outcome {
        key: Some(key_message(key)),
        change: change(*what).into(),
    })
    .collect()
}

pub(super) fn invalid(faults: &[Invalid]) -> Status {
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    Status::invalid_argument(lines.join("\n"))
}

pub(super) fn store_error(error: StoreError) -> Status {
    match error {
        StoreError::Conflict(faults) => invalid(&faults),
        StoreError::Missing(key) => Status::not_found(format!("{key} does not exist")),
        StoreError::Mirror => Status::failed_precondition(error.to_string()),
        StoreError::Database(_) | StoreError::Corrupt { .. } => {
            tracing::error!(%error, "store failed");
            Status::internal(error.to_string())
        }
    }
}

pub(super) fn duration(
    what: &str,
    message: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, Status> {
    match message {
        None => Ok(default),
        Some(message) => match Duration::try_from(message) {
            Ok(value) if !value.is_zero() => Ok(value),
            _ => Err(Status::invalid_argument(format!("{what}: must be over 0"))),
        },
    }
}

pub(super) fn proxy(entry: &ProxyEntry) -> pb::Proxy {
    let rejections = entry.rejected.iter().map(|(kind, rejected)| pb::Rejection {
        type_url: kind.url().to_owned(),
        reason: rejected.reason.clone(),
        revision: rejected.revision,
        resources: rejected.names.clone(),
    });
    pb::Proxy {
        id: entry.node.id.clone(),
        name: entry.node.name(),
        spiffe_id: entry.identity.to_string(),
        address: entry.address.to_string(),
        version: entry.node.version.clone(),
        connected_since: Some(clock::timestamp(entry.since)),
        sent_revision: entry.sent,
        acked_revision: entry.settled,
        rejections: rejections.collect(),
        subscriptions: u32::try_from(entry.held.len()).unwrap_or(u32::MAX),
        certificate_expires: entry.certificate_until.map(clock::timestamp),
    }
}

pub(super) fn join_token(known: KnownToken) -> pb::JoinToken {
    pb::JoinToken {
        id: known.id,
        namespace: known.grant.namespace,
        service_account: known.grant.service_account,
        spiffe_id: known.identity.to_string(),
        expires: Some(clock::timestamp(known.grant.expires)),
    }
}

pub(super) fn token_error(error: &TokenError) -> Status {
    match error {
        TokenError::Identity(_) | TokenError::ShortId(_) | TokenError::ManyIds(_) => {
            Status::invalid_argument(error.to_string())
        }
        TokenError::NoSuchId(_) => Status::not_found(error.to_string()),
        TokenError::Random
        | TokenError::Store(_)
        | TokenError::Unknown
        | TokenError::Expired(_) => Status::internal(error.to_string()),
    }
}

pub(super) fn roots(bundle: &Bundle) -> Vec<pb::Root> {
    let state = |state| match state {
        RootState::Active => pb::root::State::Active,
        RootState::Next => pb::root::State::Next,
        RootState::Retiring => pb::root::State::Retiring,
    };
    let roots = bundle.roots.iter();
    roots
        .map(|root| pb::Root {
            fingerprint: root.fingerprint(),
            state: state(root.state).into(),
            subject: root.subject(),
            not_before: Some(clock::timestamp(root.validity.0)),
            not_after: Some(clock::timestamp(root.validity.1)),
            until: root.until.map(clock::timestamp),
            pem: root.pem.clone(),
        })
        .collect()
}

pub(super) fn ca_error(error: &CaError) -> Status {
    match error {
        CaError::Rotating { .. } | CaError::NotOurs => {
            Status::failed_precondition(error.to_string())
        }
        _ => {
            tracing::error!(%error, "certificate authority failed");
            Status::internal(error.to_string())
        }
    }
}
