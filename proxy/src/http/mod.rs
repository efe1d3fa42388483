//! HTTP as a proxy needs it: codecs, what the messages mean, and the answers that the proxy makes
//! itself. HTTP/1.1 is our own ([`h1`]), HTTP/2 the `h2` crate's, and [`Downstream`] is one face
//! for both towards the client.
//!
//! Inside the proxy a request head has one form, whatever it came in: the target is in origin form
//! in the URI, the authority stands in the `host` field, hop-by-hop fields are gone. The encoders
//! give each leg what its version wants.

pub mod downstream;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod reply;
mod stream_io;

pub use downstream::Downstream;
pub use h1::{BodyLen, Frame};
pub use stream_io::StreamIo;

/// The largest head, request or response, on every leg and in both versions (HT-25, GR-02): what
/// passes one hop of the mesh passes all. Envoy's request limit is 60 KiB; gRPC status details in
/// trailers reach 64.
pub const MAX_HEAD_BYTES: u32 = 80 * 1024;
