//! Short ways to build the xDS messages that occur everywhere.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use outrigger_proto::{
    any::{Any, pack},
    envoy::{
        config::{
            core::v3::{
                Address, AggregatedConfigSource, ApiVersion, ConfigSource, Metadata, SocketAddress,
                TransportSocket, TypedExtensionConfig, address,
                config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
                transport_socket,
            },
            listener::v3::{Filter, ListenerFilter, filter, listener_filter},
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{HttpFilter, http_filter},
        },
        r#type::v3::Percent,
    },
};
use prost::{Message, Name};
use prost_types::{Struct, Value, value::Kind};

pub(crate) fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or_default(),
    }
}

pub(crate) const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub(crate) fn address(ip: IpAddr, port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip.to_string(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..SocketAddress::default()
        })),
    }
}

/// "Ask on this very stream."
pub(crate) fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        ..ConfigSource::default()
    }
}

pub(crate) fn filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(config))),
    }
}

pub(crate) fn listener_filter<M: Message + Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack(config))),
        filter_disabled: None,
    }
}

pub(crate) fn http_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(config))),
        ..HttpFilter::default()
    }
}

/// The filter that ends every HTTP chain.
pub(crate) fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", &Router::default())
}

pub(crate) fn transport_socket<M: Message + Name>(name: &str, config: &M) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack(config))),
    }
}

pub(crate) fn extension<M: Message + Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(pack(config)),
    }
}

pub(crate) const fn percent(value: f64) -> Percent {
    Percent { value }
}

pub(crate) fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}

/// `{key: value, …}` of strings.
pub(crate) fn strings(pairs: &[(&str, &str)]) -> Struct {
    let fields = pairs.iter().map(|(k, v)| ((*k).to_owned(), text(v)));
    Struct {
        fields: fields.collect(),
    }
}

pub(crate) fn metadata(filters: impl IntoIterator<Item = (String, Struct)>) -> Metadata {
    Metadata {
        filter_metadata: filters.into_iter().collect(),
        typed_filter_metadata: BTreeMap::new(),
    }
}

/// A message that is only its type URL and bytes.
pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    pack(message)
}
