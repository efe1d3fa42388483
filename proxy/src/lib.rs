//! The Outrigger data plane.

pub mod accept;
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
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod xds;
