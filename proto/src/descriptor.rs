//! The descriptors of every message here, for what has to look at messages by name.

use std::sync::OnceLock;

use prost::Name;
use prost_reflect::{DescriptorPool, MessageDescriptor};

/// An encoded `google.protobuf.FileDescriptorSet` of all `.proto` files and the well-known types
/// that they use; gRPC reflection serves it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");

/// [`FILE_DESCRIPTOR_SET`], decoded once.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        // The bytes are part of the program, and a test decodes them; were they ever damaged, an
        // empty pool makes every lookup fail with "no descriptor" instead of ending the process.
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default()
    })
}

/// The descriptor of a message of this crate; `None` for a type that is not of this crate.
pub fn of<M: Name>() -> Option<MessageDescriptor> {
    pool().get_message_by_name(&M::full_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_decode_and_know_our_types() {
        let decoded = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("committed descriptors");
        assert!(
            decoded
                .get_message_by_name("envoy.config.cluster.v3.Cluster")
                .is_some()
        );
        assert!(of::<crate::outrigger::extensions::v1::Breaker>().is_some());
        assert!(
            decoded
                .get_message_by_name("google.protobuf.Struct")
                .is_some()
        );
    }
}
