//! Tests of the file source.

use std::io::Write as _;

use outrigger_proto::type_url;

use super::*;
use crate::config::listener::ChainKind;

const GOOD: &str = "
static_resources:
  listeners:
  - name: web
    address: { socket_address: { address: 127.0.0.1, port_value: 8080 } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': HTTP_CONNECTION_MANAGER
          stat_prefix: web
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: { prefix: / }
                route: { cluster: app, timeout: 0s }
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 0.25s
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9090 } } }
admin:
  address: { socket_address: { address: 127.0.0.1, port_value: 9901 } }
layered_runtime: { layers: [] }
";

fn load_text(text: &str) -> Result<Local, Vec<Invalid>> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let text = text.replace("HTTP_CONNECTION_MANAGER", type_url::HTTP_CONNECTION_MANAGER);
    file.write_all(text.as_bytes()).expect("written");
    load(file.path(), SystemTime::UNIX_EPOCH)
}

#[test]
fn envoys_own_file_works_and_what_is_passed_over_is_named() {
    let local = load_text(GOOD).expect("good");
    let listener = &local.snapshot.listeners["web"];
    assert!(matches!(listener.chains[0].kind, ChainKind::Http(_)));
    let app = &local.snapshot.clusters["app"];
    assert_eq!(app.connect_timeout.as_millis(), 250);
    let members = &local.snapshot.endpoints["app"].priorities[0][0].endpoints;
    assert_eq!(members[0].address.to_string(), "127.0.0.1:9090");
    assert!(
        local
            .ignored
            .iter()
            .any(|path| path.contains("layered_runtime"))
    );
    let shown = local.view.resources(Kind::Cluster);
    let json = shown[0].json().expect("held");
    assert_eq!(json["connect_timeout"], "0.250s");
}

#[test]
fn the_resources_may_stand_bare_and_as_json() {
    let text =
        r#"{"clusters": [{"name": "c", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}]}"#;
    assert!(
        load_text(text)
            .expect("good")
            .snapshot
            .clusters
            .contains_key("c")
    );
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = GOOD
        .replace("cluster: app,", "cluster: other,")
        .replace("connect_timeout: 0.25s", "connect_timeout: 0s");
    let wrong = load_text(&text).expect_err("bad");
    let texts: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    assert!(texts.contains(&"cluster \"app\": connect_timeout: must be over 0s".to_owned()));
    assert!(
        texts
            .iter()
            .any(|text| text.contains("\"other\", which is not here")),
        "{texts:?}"
    );
}

#[test]
fn a_file_that_is_missing_or_is_no_yaml_is_an_error_with_its_name() {
    let wrong = load(Path::new("/nonexistent.yaml"), SystemTime::UNIX_EPOCH).expect_err("missing");
    assert!(wrong[0].to_string().contains("/nonexistent.yaml"));
    assert!(load_text("a: [").is_err());
    assert!(load_text("static_resources: { listeners: 7 }").is_err());
    let twice = "{clusters: [{name: c, type: ORIGINAL_DST}, {name: c, type: ORIGINAL_DST}]}";
    assert!(
        load_text(twice).expect_err("twice")[0]
            .to_string()
            .contains("twice")
    );
}

#[test]
fn a_large_generated_json_file_is_read() {
    // More nodes than the YAML reader's budget against bombs allows.
    let filler = vec![0; 300_000];
    let all = serde_json::json!({
        "static_resources": { "clusters": [{ "name": "c", "type": "ORIGINAL_DST" }] },
        "layered_runtime": { "layers": filler },
    });
    let local = load_text(&all.to_string()).expect("good");
    assert!(local.snapshot.clusters.contains_key("c"));
}
