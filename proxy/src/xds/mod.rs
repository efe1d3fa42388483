//! Configuration by xDS v3: the stream in, [`Snapshot`](crate::config::Snapshot)s out.
//!
//! * [`decode`]: protobuf to domain types; what cannot be honoured is refused or remarked.
//! * `protocol`: ADS without sockets, incremental and state of the world.
//! * `store`, `refs`, `assemble`: the last good resources, what they need, and the closed
//!   configuration made of them.
//! * `demand`: destinations that the data path asks for.
//! * `client`: all of that together, still without sockets; `stream` puts it on a connection.
//! * `persist`: the last good resources on disk. [`local`]: static resources from a file.
//!
//! Not done: clusters named by a request header are not subscribed on demand; scoped routes,
//! virtual hosts on demand, extension discovery and several authorities are not spoken.

mod assemble;
mod client;
pub mod decode;
mod demand;
mod kind;
pub mod local;
mod node;
mod persist;
mod protocol;
mod refs;
mod stats;
mod store;
mod stream;
#[cfg(test)]
mod testing;
mod view;
mod wire;

pub use client::{GRACE, Publish, Subscription, WallClock};
pub use demand::{Demand, Demanded, InUse, MAX_DESTINATIONS};
pub use kind::Kind;
pub use local::Local;
pub use node::NodeInfo;
pub use persist::PersistError;
pub use protocol::{NOT_THERE_AFTER, Variant};
pub use stats::{Stats, UpdateResult};
pub use stream::{CONNECT_TIMEOUT, FIRST_ANSWER, Handles, IDLE, PING, Settings, Xds};
pub use view::{ResourceView, Status, View};
pub use wire::MAX_ANSWER;
