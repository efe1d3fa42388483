//! The Outrigger control plane: what people want of the mesh, turned into what proxies do.
//!
//! # The way of a change
//!
//! 1. [`api`] takes a manifest in (`Apply`), [`model`] reads it and names every fault;
//! 2. [`store`] keeps it on disk, gives it a revision and publishes the new state of all objects;
//! 3. [`translate`] indexes that state as a `World` and makes xDS resources of it, purely: the same
//!    objects give the same bytes;
//! 4. [`xds`] compares, for each connected proxy, what it has with what it should have, sends the
//!    difference, and enters what it takes and refuses;
//! 5. `WaitRevision` tells when every proxy has answered the revision, and who refused it and why.
//!
//! # The way of a proxy
//!
//! [`serve`] accepts its connection, [`tls`] finds out who it is, [`ca`] gives it a certificate for
//! a join token or for the certificate it has, and [`xds`] configures it. Its namespace and service
//! account are those of its certificate, whatever it claims.
//!
//! [`app`] puts the parts together; [`cli`] is the client for people; [`telemetry`] tells how it
//! goes.
//!
//! # What is trusted
//!
//! The port for proxies asks for mutual TLS for everything but a first certificate, which needs a
//! token. The control API has no users: whoever may call it holds the mesh. On the loopback it is in
//! clear; anywhere else it is served over TLS and wants one secret ([`bearer`]), unless it is told
//! to be insecure. The key of the root lies in the state directory, readable by its owner only.

pub mod api;
pub mod app;
pub mod bearer;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod duration;
mod hex;
pub mod identity;
pub mod inject;
pub mod kube;
pub mod model;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod translate;
pub mod xds;
