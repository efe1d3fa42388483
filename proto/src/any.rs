//! `google.protobuf.Any`: a message together with the URL of its type.

use prost::{Message, Name};

pub use prost_types::Any;

/// Wraps a message with its type URL, `type.googleapis.com/<full name>`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Takes the message out of an `Any`.
///
/// # Errors
///
/// [`UnpackError`] if it holds another type, or bytes that are no such message.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    if !is::<M>(any) {
        let found = any.type_url.clone();
        return Err(UnpackError::OtherType {
            expected: M::full_name(),
            found,
        });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Malformed {
        type_name: M::full_name(),
        source,
    })
}

/// Whether the `Any` says that it holds an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    type_name(&any.type_url) == M::full_name()
}

/// The full name of the type that a type URL names: what follows the last slash.
pub fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Why an `Any` did not yield the message asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// The type URL names another type.
    #[error("expected {expected}, found {}", if found.is_empty() { "no type" } else { found })]
    OtherType {
        /// Full name of the type asked for.
        expected: String,
        /// The type URL that was there.
        found: String,
    },
    /// The bytes are not a message of the type.
    #[error("malformed {type_name}: {source}")]
    Malformed {
        /// Full name of the type.
        type_name: String,
        /// What the decoder says.
        source: prost::DecodeError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::{Cluster, cluster::LbSubsetConfig};
    use crate::envoy::config::listener::v3::Listener;

    #[test]
    fn what_was_packed_comes_out_again() {
        let cluster = Cluster {
            name: "cart".to_owned(),
            ..Cluster::default()
        };
        let any = pack(&cluster);
        assert_eq!(
            any.type_url,
            "type.googleapis.com/envoy.config.cluster.v3.Cluster"
        );
        assert_eq!(unpack::<Cluster>(&any), Ok(cluster));
    }

    #[test]
    fn another_type_is_named_in_the_error() {
        let error = unpack::<Listener>(&pack(&Cluster::default())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected envoy.config.listener.v3.Listener, \
             found type.googleapis.com/envoy.config.cluster.v3.Cluster"
        );
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        let any = Any {
            value: vec![0x0a, 0x05, b'x'],
            ..pack(&Cluster::default())
        };
        let error = unpack::<Cluster>(&any).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("malformed envoy.config.cluster.v3.Cluster: ")
        );
    }

    #[test]
    fn a_nested_type_and_any_domain_are_recognised() {
        let mut any = pack(&LbSubsetConfig::default());
        assert!(is::<LbSubsetConfig>(&any));
        any.type_url =
            "example.com/types/envoy.config.cluster.v3.Cluster.LbSubsetConfig".to_owned();
        assert!(is::<LbSubsetConfig>(&any) && !is::<Cluster>(&any));
        any.type_url = "envoy.config.cluster.v30Cluster".to_owned();
        assert!(!is::<Cluster>(&any));
    }
}
