//! The Outrigger data plane.

pub mod config;
pub mod fault;
