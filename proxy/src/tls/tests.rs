//! Handshakes over an in-memory stream, and tables of certificates.
