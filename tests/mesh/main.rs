//! Whole meshes in network namespaces, with real programs.

mod spine;
mod support;
