//! The configuration stream: xDS v3 over ADS.

mod delta;
mod node;
mod protocol;
mod proxies;
mod published;
mod server;
mod sotw;
#[cfg(test)]
mod testing;

pub use delta::{DeltaStream, Rejected};
pub use node::NodeInfo;
pub use proxies::{Connected, Proxies, ProxyEntry};
pub use published::{Encoded, Published, View, ViewOf};
pub(crate) use server::from_queue;
pub use server::{AdsServer, publish};
pub use sotw::SotwStream;
