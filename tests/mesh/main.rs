//! Whole meshes in network namespaces, with real programs.

mod outages;
mod spine;
mod support;
mod transparency;
