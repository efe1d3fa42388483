//! Whole meshes in network namespaces, with real programs.

mod identity;
mod live;
mod oracle;
mod outages;
mod policies;
mod programs;
mod redirect;
mod roots;
mod spine;
mod storms;
mod support;
mod traces;
mod transparency;
