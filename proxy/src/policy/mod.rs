//! What the mesh adds to a request: who may send it, how long it may take, when it is tried again,
//! how much of it there may be, and faults made on purpose. The decisions
//! are pure, so that each can be tested without a socket or a clock; [`serve`] carries them out in
//! order, `forward` makes the tries, `exchange` moves the bytes.

pub mod authz;
pub mod deadline;
mod exchange;
pub mod fault_injection;
mod forward;
mod mirror;
pub mod ratelimit;
mod replay;
mod respond;
pub mod retry;
pub mod serve;
mod upstream;
pub mod worker;

pub use respond::Tunnel;
