//! A worker with a static configuration, real sockets, and endpoints that follow a script.

mod traces;
