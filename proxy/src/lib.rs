//! The Outrigger data plane. This page is the architecture: the life of a request, in the order in
//! which its bytes meet the files.
//!
//! 1. The kernel redirects a connection to us by rules that [`init`] put in. A worker thread
//!    (`app/threads.rs`) accepts it; [`accept`] asks the kernel where it was going and finds the
//!    listener for that address, asking the control plane when nobody has dialled it before
//!    ([`xds`], `demand.rs`).
//! 2. When the listener wants to know the protocol, `accept/inspect.rs` looks at the first bytes
//!    with [`detect`]; they are replayed later. A silent client may be waiting for the server, so
//!    the upstream is dialled and whoever speaks first decides.
//! 3. A filter chain is chosen ([`config::listener`]); if it terminates TLS, [`tls`] does, with the
//!    certificate in force at that moment, and the peer's identity is known.
//! 4. Opaque content goes through `accept/opaque.rs` to [`tcp`]. HTTP goes through
//!    `accept/http.rs`, whose codecs are in [`http`].
//! 5. Each request is one call of [`policy::serve`]: normal form, [`route`], filters in their order
//!    (authorization, rate limit, faults), then `policy/forward.rs` makes the tries: [`balance`]
//!    admits it and picks an endpoint, [`pool`] gives a connection, `policy/exchange.rs` moves the
//!    bytes both ways in one task, `policy/retry.rs` decides about another try.
//! 6. However it ends, [`telemetry`] gets one record of it: numbers, a line of the log and, if it
//!    is sampled, spans for the collector. Every way to end without the peer's own answer is a row
//!    of [`fault`].
//!
//! What steers all this is one immutable [`config::Snapshot`] behind an atomic pointer, made by
//! [`xds`] from resources, and put in force by `app/publish.rs`. Modules may use only those before
//! them in the list of layers in `tests/tidy`.

pub mod accept;
pub mod admin;
pub mod app;
pub mod balance;
pub mod bootstrap;
pub mod config;
pub mod control;
pub mod detect;
pub mod drain;
pub mod fault;
pub mod http;
pub mod init;
pub mod net;
pub mod policy;
pub mod pool;
pub mod route;
#[cfg(test)]
mod sizes;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod xds;
