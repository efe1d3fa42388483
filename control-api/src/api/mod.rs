//! `outrigger.control.v1.ControlService`.

mod convert;
mod edit;
mod proxies;
mod service;

pub use service::ControlServer;
