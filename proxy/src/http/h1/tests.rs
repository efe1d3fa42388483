//! Raw bytes in and out, split at every place.
