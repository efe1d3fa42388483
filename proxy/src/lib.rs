//! The Outrigger data plane.

pub mod balance;
pub mod bootstrap;
pub mod config;
pub mod control;
pub mod detect;
pub mod drain;
pub mod fault;
pub mod http;
pub mod net;
pub mod policy;
pub mod pool;
pub mod route;
pub mod tcp;
pub mod tls;
pub mod xds;
