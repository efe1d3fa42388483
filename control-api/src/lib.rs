//! The Outrigger control plane.
