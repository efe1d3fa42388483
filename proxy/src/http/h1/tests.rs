//! Raw bytes in and out, split at every place. The names of cases are those of the project's list
//! of faults that other proxies had.

mod bodies;
mod closing;
mod encoding;
mod hop;
mod mock;
mod random;
mod requests;
mod responses;
