//! The Outrigger data plane.
