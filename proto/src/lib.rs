//! The protobuf that Outrigger speaks: its control API and its subset of xDS v3.
