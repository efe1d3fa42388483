//! What is found, where it is said to be, and that nothing harms the walk.

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::any::{Any, pack};
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use crate::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use crate::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

/// Appends a varint field of this number.
fn plant(message: &mut Vec<u8>, number: u32) {
    prost::encoding::uint32::encode(number, &1, message);
}

fn field(path: &str, message: &str, number: u32) -> Finding {
    let what = Unknown::Field {
        message: message.to_owned(),
        number,
        wire_type: WireType::Varint,
    };
    Finding {
        path: path.to_owned(),
        what,
    }
}

fn filter(name: &str, config: Any) -> Filter {
    Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }
}

/// A length-delimited field holding `content`.
fn wrap(number: u32, content: &[u8]) -> Vec<u8> {
    let mut wrapped = Vec::new();
    prost::encoding::bytes::encode(number, &content.to_vec(), &mut wrapped);
    wrapped
}

/// A listener with an HTTP connection manager whose third virtual host says something unknown.
fn listener_with_a_strange_virtual_host() -> Vec<u8> {
    let mut routes = RouteConfiguration {
        virtual_hosts: vec![VirtualHost::default(), VirtualHost::default()],
        ..RouteConfiguration::default()
    }
    .encode_to_vec();
    let mut host = VirtualHost {
        name: "c".to_owned(),
        ..VirtualHost::default()
    }
    .encode_to_vec();
    plant(&mut host, 1234);
    routes.extend(wrap(2, &host));
    let mut manager = pack(&hcm::HttpConnectionManager::default());
    manager.value.extend(wrap(4, &routes));
    let chain = FilterChain {
        filters: vec![
            filter("first", pack(&Cluster::default())),
            filter("http", manager),
        ],
        ..FilterChain::default()
    };
    Listener {
        filter_chains: vec![chain],
        ..Listener::default()
    }
    .encode_to_vec()
}

#[test]
fn a_field_deep_inside_an_any_is_found_with_its_path() {
    let report = scan::<Listener>(&listener_with_a_strange_virtual_host());
    let expected = field(
        "filter_chains[0].filters[1].typed_config<HttpConnectionManager>\
         .route_config.virtual_hosts[2].#1234",
        "envoy.config.route.v3.VirtualHost",
        1234,
    );
    assert_eq!(
        report,
        Report {
            findings: vec![expected],
            truncated: false
        }
    );
}

#[test]
fn what_we_write_ourselves_is_known() {
    let cluster = Cluster {
        name: "cart".to_owned(),
        ..Cluster::default()
    };
    assert_eq!(scan::<Cluster>(&cluster.encode_to_vec()), Report::default());
    assert_eq!(scan_any(&pack(&cluster)), Report::default());
}

#[test]
fn map_values_carry_their_key() {
    let mut options = pack(&hcm::Rds::default());
    plant(&mut options.value, 9);
    let mut cluster = Cluster::default();
    cluster
        .typed_extension_protocol_options
        .insert("a.\"b".to_owned(), options);
    let report = scan::<Cluster>(&cluster.encode_to_vec());
    let path = "typed_extension_protocol_options[\"a.\\\"b\"]<Rds>.#9";
    let message = "envoy.extensions.filters.network.http_connection_manager.v3.Rds";
    assert_eq!(report.findings, [field(path, message, 9)]);
}

#[test]
fn an_any_of_unknown_type_is_reported_as_such() {
    let wasm = Any {
        type_url: "type.googleapis.com/x.Wasm".to_owned(),
        value: vec![1],
    };
    let chain = FilterChain {
        filters: vec![filter("wasm", wasm.clone())],
        ..Default::default()
    };
    let listener = Listener {
        default_filter_chain: Some(chain),
        ..Listener::default()
    };
    let what = Unknown::Type {
        type_url: wasm.type_url.clone(),
    };
    let path = "default_filter_chain.filters[0].typed_config".to_owned();
    let report = scan::<Listener>(&listener.encode_to_vec());
    assert_eq!(report.findings, [Finding { path, what }]);
    assert_eq!(
        scan_any(&wasm).findings,
        [Finding {
            path: String::new(),
            what: Unknown::Type {
                type_url: "x.Wasm".to_owned()
            }
        }]
    );
}

#[test]
fn the_value_of_an_any_may_come_before_its_type() {
    let mut inner = Vec::new();
    plant(&mut inner, 500);
    let mut any = wrap(2, &inner);
    any.extend(wrap(
        1,
        b"type.googleapis.com/envoy.config.cluster.v3.Cluster",
    ));
    let filter = wrap(4, &any);
    let listener = wrap(3, &wrap(3, &filter));
    let path = "filter_chains[0].filters[0].typed_config<Cluster>.#500";
    let expected = field(path, "envoy.config.cluster.v3.Cluster", 500);
    assert_eq!(scan::<Listener>(&listener).findings, [expected]);
}

#[test]
fn findings_depth_and_bytes_are_limited() {
    let mut many = Vec::new();
    (0..1_000).for_each(|_| plant(&mut many, 777));
    let report = scan::<Listener>(&many);
    assert_eq!(
        (report.findings.len(), report.truncated),
        (MAX_FINDINGS, true)
    );

    let mut any = pack(&Cluster::default());
    for _ in 0..5_000 {
        any = Any {
            type_url: "x/google.protobuf.Any".to_owned(),
            value: any.encode_to_vec(),
        };
    }
    let report = scan_any(&any);
    assert_eq!((report.findings.len(), report.truncated), (0, true));

    assert!(scan::<Listener>(&vec![0; MAX_BYTES + 1]).truncated);
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let report = scan::<Listener>(&bytes);
        prop_assert!(report.findings.len() <= MAX_FINDINGS);
        let _json = crate::json::any_to_json_redacted(&Any {
            type_url: crate::type_url::LISTENER.to_owned(),
            value: bytes,
        });
    }

    #[test]
    fn a_damaged_resource_does_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = listener_with_a_strange_virtual_host();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        let report = scan::<Listener>(&bytes);
        prop_assert!(report.findings.len() <= MAX_FINDINGS);
        let _json = crate::json::any_to_json_redacted(&Any {
            type_url: crate::type_url::LISTENER.to_owned(),
            value: bytes,
        });
    }
}
