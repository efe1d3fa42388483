//! The configuration stream: xDS v3 over ADS.

mod delta;
mod node;
mod proxies;
mod published;
mod server;

pub use delta::{DeltaStream, Rejected};
pub use node::NodeInfo;
pub use proxies::{Connected, Proxies, ProxyEntry};
pub use published::{Encoded, Published, View, ViewOf};
pub(crate) use server::from_queue;
pub use server::{AdsServer, publish};
