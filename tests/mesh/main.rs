//! Whole meshes in network namespaces, with real programs.

mod outages;
mod policies;
mod spine;
mod support;
mod transparency;
