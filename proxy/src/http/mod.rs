//! HTTP as a proxy needs it: what the messages mean, and the answers that the proxy makes itself.

pub mod grpc;
pub mod reply;
