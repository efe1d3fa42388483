//! The Outrigger data plane.

pub mod bootstrap;
pub mod config;
pub mod detect;
pub mod fault;
pub mod http;
pub mod net;
pub mod route;
pub mod tcp;
pub mod tls;
