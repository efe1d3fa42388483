//! What the mesh adds to a request: who may send it, how long it may take, when it is tried again,
//! how much of it there may be, and faults made on purpose. Everything here is a decision; carrying
//! it out is left to the data path, so that each can be tested without a socket or a clock.

pub mod authz;
pub mod deadline;
pub mod fault_injection;
pub mod ratelimit;
pub mod retry;
