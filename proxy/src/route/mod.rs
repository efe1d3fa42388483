//! From a request to the route that serves it, and what that route does to it on the way.
//!
//! A [`RouteTable`] is compiled once per route configuration. Choosing a route allocates nothing:
//! the virtual host is found by hash, the route by an index over paths, and a [`RouteHit`] is three
//! reference counts. Rules are Envoy's (`config.route.v3`) where not stated otherwise.

mod answer;
mod hash;
mod headers;
mod host;
mod matcher;
pub mod path;
mod rewrite;
mod table;

pub use answer::Answer;
pub use hash::{Hash, HashInput, xxh64};
pub use headers::Vars;
pub use host::Host;
pub use rewrite::HostHeader;
pub use table::{NoRoute, RouteHit, RouteTable};

#[cfg(test)]
mod tests;
