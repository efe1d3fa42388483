//! The control plane as its clients see it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod cli;
mod cluster;
mod common;
mod durable;
mod mesh;
mod roots;
mod security;
mod sotw;
mod storm;
