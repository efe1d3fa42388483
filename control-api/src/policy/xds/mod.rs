//! From policy to pieces of xDS resources. Everything here is a pure function.
