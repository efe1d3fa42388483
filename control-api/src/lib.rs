//! The Outrigger control plane.

pub mod api;
pub mod app;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod duration;
pub mod identity;
pub mod model;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod translate;
pub mod xds;
