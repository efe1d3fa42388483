//! The protobuf that Outrigger speaks: its control API and its subset of xDS v3.
//!
//! * `envoy/`, `xds/`, `udpa/`, `google/`, `istio/`: our own definitions of the part of xDS v3 that
//!   is honoured here, with the packages, names and numbers of the originals, so that the wire is
//!   the same. A message that stands there without fields is there only so that it can be seen and
//!   refused, or passed over knowingly.
//! * `outrigger/`: what is ours: [extensions](outrigger::extensions::v1) that ride inside xDS, and
//!   the [certificate service](outrigger::identity::v1).
//! * `src/gen/`: the Rust made from them, committed, so that building needs no code generator.
//!
//! # Changing a definition
//!
//! Edit or add a `.proto` file anywhere below this crate's directory (a new top-level package
//! directory is found too) and run
//!
//! ```text
//! cargo run -p outrigger-proto --example regenerate
//! ```
//!
//! Commit what changed in `src/gen`. A test fails while the two disagree. Numbers of Envoy's
//! messages are taken from the originals (`github.com/envoyproxy/go-control-plane/envoy`), never
//! made up.
//!
//! # Beyond plain decoding
//!
//! * [`any`]: pack and unpack `google.protobuf.Any`, with the type URLs in [`type_url`].
//! * [`json`]: messages to and from JSON that looks like Envoy's.
//! * [`unknown`]: what a message says that is not in our definitions, by path.
//! * [`descriptor`]: the descriptors of everything here, for reflection.

pub mod any;
pub mod descriptor;
pub mod json;
mod path;
pub mod type_url;
pub mod unknown;

pub use generated::{envoy, google, istio, outrigger, stats, udpa, xds};

/// What prost and tonic generated.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    rustdoc::all,
    reason = "generated code is judged by its source, the .proto files"
)]
mod generated {
    include!("gen/mod.rs");
}
