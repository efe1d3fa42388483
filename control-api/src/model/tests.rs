//! What is taken, what is refused, and how it is said.

use serde_json::json;

use super::{Invalid, Kind, Share, Span, parse_manifest, parse_object};

fn one(kind: &str, spec: &str) -> String {
    let version = match kind {
        "HTTPRoute" | "GRPCRoute" => "gateway.networking.k8s.io/v1",
        _ => "outrigger.dev/v1",
    };
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: n}}\nspec: {spec}\n"
    )
}

fn faults(manifest: &str) -> Vec<String> {
    match parse_manifest(manifest, "default") {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(Invalid::to_string).collect(),
    }
}

/// `kind | spec | fault below the object's name`; no fault: it is good.
fn table(rows: &[(&str, &str, &str)]) {
    for (kind, spec, fault) in rows {
        let expected: Vec<String> = match *fault {
            "" => Vec::new(),
            fault => vec![format!("{kind} n/x: {fault}")],
        };
        assert_eq!(faults(&one(kind, spec)), expected, "{kind} {spec}");
    }
}

#[test]
fn services() {
    let kind = "Service";
    table(&[
        (kind, "{ports: [{port: 80}]}", ""),
        (
            kind,
            "{ports: []}",
            "spec.ports: must have 1 to 1000 entries",
        ),
        (
            kind,
            "{ports: [{port: 0}]}",
            "spec.ports[0].port: must be 1 to 65535",
        ),
        (
            kind,
            "{ports: [{port: 70000}]}",
            "spec.ports[0].port: invalid value: integer `70000`, expected u16",
        ),
        (
            kind,
            "{ports: [{name: a, port: 1}, {name: a, port: 2}]}",
            "spec.ports[1].name: must be unique among the ports",
        ),
        (
            kind,
            "{ports: [{port: 80, appProtocol: quic}]}",
            "spec.ports[0].appProtocol: \"quic\" is not one of http, http2, h2c, grpc, tcp, tls, \
             https",
        ),
        (
            kind,
            "{ports: [{port: 80}], addresses: [0.0.0.0]}",
            "spec.addresses[0]: must be the address of one host",
        ),
        (
            kind,
            "{ports: [{port: 80}], addresses: [\"fe80::1%eth0\"]}",
            "spec.addresses[0]: invalid IP address syntax",
        ),
        (
            kind,
            "{ports: [{port: 80}], endpoints: [{address: 10.0.0.1}, {address: 10.0.0.1}]}",
            "spec.endpoints[1].address: stands there twice",
        ),
        (
            kind,
            "{ports: [{port: 80}], endpoints: [{address: 10.0.0.1, weight: 0}]}",
            "spec.endpoints[0].weight: must be 1 to 100000",
        ),
        (
            kind,
            "{ports: [{port: 80}], endpoint: []}",
            "spec.endpoint: unknown field `endpoint`, expected one of `ports`, `addresses`, \
             `endpoints`, `serviceAccount`; did you mean `endpoints`?",
        ),
    ]);
}

#[test]
fn routes() {
    let kind = "HTTPRoute";
    let rule = |rule: &str| format!("{{parentRefs: [{{name: s}}], rules: [{rule}]}}");
    for (inner, fault) in [
        ("{}", ""),
        (
            "{matches: [{path: {value: a}}]}",
            "matches[0].path.value: must begin with / and be a plain path",
        ),
        (
            "{matches: [{path: {type: RegularExpression, value: \"(\"}}]}",
            "matches[0].path.value: is no regular expression: error: unclosed group",
        ),
        (
            "{matches: [{headers: [{name: a b, value: c}]}]}",
            "matches[0].headers[0].name: must be a name",
        ),
        (
            "{matches: [{headers: [{name: a, value: c}, {name: A, value: d}]}]}",
            "matches[0].headers[1].name: stands there twice",
        ),
        (
            "{backendRefs: [{name: s}]}",
            "backendRefs[0].port: must be 1 to 65535",
        ),
        (
            "{backendRefs: [{kind: Pod, name: s, port: 1}]}",
            "backendRefs[0].kind: must be Service",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}",
            "filters[0].requestRedirect.statusCode: must be 301, 302, 303, 307 or 308",
        ),
        (
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Host]}}]}",
            "filters[0].requestHeaderModifier.remove[0]: must not be a header of the connection",
        ),
        (
            "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: \
             {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            "filters[0].urlRewrite.path.type: needs matches that are all of PathPrefix",
        ),
        (
            "{timeouts: {request: 1s, backendRequest: 2s}}",
            "timeouts.backendRequest: must not be longer than request",
        ),
        (
            "{timeouts: {request: 1 s}}",
            "timeouts.request: \"1 s\" is no duration like 500ms, 30s or 1h30m",
        ),
        ("{retry: {attempts: 0}}", "retry.attempts: must be 1 to 100"),
        (
            "{retry: {codes: [200]}}",
            "retry.codes[0]: must be 400 to 599",
        ),
        (
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: s, port: 1}, \
             fraction: {numerator: 3, denominator: 2}}}]}",
            "filters[0].requestMirror.fraction: must be at most 1",
        ),
    ] {
        let fault = match fault {
            "" => String::new(),
            fault => format!("spec.rules[0].{fault}"),
        };
        table(&[(kind, &rule(inner), &fault)]);
    }
}

#[test]
fn routes_and_their_parents() {
    let kind = "HTTPRoute";
    table(&[
        (
            kind,
            "{parentRefs: []}",
            "spec.parentRefs: must have 1 to 32 entries",
        ),
        (
            kind,
            "{parentRefs: [{kind: Gateway, name: g}]}",
            "spec.parentRefs[0].kind: must be Service",
        ),
        (
            "GRPCRoute",
            "{parentRefs: [{name: s}], rules: [{matches: [{method: {service: a/b}}]}]}",
            "spec.rules[0].matches[0].method.service: must be a name without /",
        ),
        (
            "GRPCRoute",
            "{parentRefs: [{name: s}], rules: [{filters: [{type: URLRewrite, urlRewrite: \
             {hostname: h}}]}]}",
            "spec.rules[0].filters[0].type: is not for gRPC",
        ),
    ]);
}

#[test]
fn traffic_policies() {
    let kind = "TrafficPolicy";
    for (inner, fault) in [
        (
            "loadBalancer: {policy: maglev}",
            "spec.loadBalancer.hash: must say what is hashed",
        ),
        (
            "loadBalancer: {hash: [{header: a}]}",
            "spec.loadBalancer.hash: needs policy ringHash or maglev",
        ),
        (
            "loadBalancer: {policy: random, slowStart: 1s}",
            "spec.loadBalancer.slowStart: does not go with this policy",
        ),
        (
            "connections: {maxConnections: 0}",
            "spec.connections.maxConnections: must be over 0",
        ),
        (
            "retries: {backoff: {base: 1s, max: 500ms}}",
            "spec.retries.backoff.max: must not be less than base",
        ),
        (
            "circuitBreaker: {failureRate: 101}",
            "spec.circuitBreaker.failureRate: 101 is not within 0 to 100 percent",
        ),
        (
            "healthChecks: [{}]",
            "spec.healthChecks[0]: must have one of http, tcp and grpc",
        ),
        ("healthChecks: [{tcp: {}}]", ""),
        (
            "outlierDetection: {maxEjectionPercent: 0.5}",
            "spec.outlierDetection.maxEjectionPercent: must be a whole number",
        ),
    ] {
        table(&[(
            kind,
            &format!("{{targetRefs: [{{name: s}}], {inner}}}"),
            fault,
        )]);
    }
    table(&[
        (
            kind,
            "{targetRefs: []}",
            "spec.targetRefs: must have 1 or more entries",
        ),
        (
            kind,
            "{targetRefs: [{name: s}], retries: {on: [sometimes]}}",
            "spec.retries.on[0]: must be one of 5xx, gateway-error, reset, reset-before-request, \
             connect-failure, refused-stream, retriable-4xx, retriable-status-codes, cancelled, \
             deadline-exceeded, internal, resource-exhausted, unavailable",
        ),
    ]);
}

#[test]
fn policies_of_workloads() {
    let authz = "AuthorizationPolicy";
    table(&[
        (authz, "{}", ""),
        (authz, "{action: DENY, rules: [{}]}", ""),
        (
            authz,
            "{rules: [{from: [{}]}]}",
            "spec.rules[0].from[0]: must say something",
        ),
        (
            authz,
            "{rules: [{from: [{identities: [web]}]}]}",
            "spec.rules[0].from[0].identities[0]: must be spiffe://…, <namespace>/<service \
             account> or *",
        ),
        (
            authz,
            "{rules: [{to: [{paths: [/a*b]}]}]}",
            "spec.rules[0].to[0].paths[0]: must have * only at the beginning or only at the end",
        ),
        (
            authz,
            "{rules: [{from: [{ipBlocks: [10.0.0.0/33]}]}]}",
            "spec.rules[0].from[0].ipBlocks[0]: \"10.0.0.0/33\" is no address or CIDR",
        ),
        (
            authz,
            "{targetRefs: [{name: s}], selector: {}}",
            "spec.selector: must not stand beside targetRefs",
        ),
        (
            authz,
            "{action: permit}",
            "spec.action: \"permit\" is not one of allow, deny, audit",
        ),
        ("MutualTLS", "{mode: STRICT, ports: {80: permissive}}", ""),
        ("MutualTLS", "{}", "spec: missing field `mode`"),
        (
            "MutualTLS",
            "{mode: strict, ports: {0: strict}}",
            "spec.ports.0: must be 1 to 65535",
        ),
        (
            "RateLimit",
            "{requests: 0}",
            "spec.requests: must be over 0",
        ),
        (
            "RateLimit",
            "{requests: 1, per: 1ms}",
            "spec.per: must be 50ms or more",
        ),
        ("Telemetry", "{tracing: {sampling: 0.01}}", ""),
        (
            "FaultInjection",
            "{targetRefs: [{name: s}]}",
            "spec: must have a delay or an abort",
        ),
        (
            "FaultInjection",
            "{targetRefs: [{name: s}], abort: {percent: 5}}",
            "spec.abort: must have either httpStatus or grpcStatus",
        ),
    ]);
}

#[test]
fn envelopes() {
    let good = one("Service", "{ports: [{port: 80}]}");
    let cases = [
        ("", "manifest: holds no object"),
        ("---\n---\n", "manifest: holds no object"),
        (
            "[1, 2]",
            "object 1 of the manifest: must be a mapping with apiVersion, kind and metadata",
        ),
        (
            "kind: Service",
            "object 1 of the manifest: missing field `apiVersion`",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}",
            "object 1 of the manifest: kind: \"Pod\" is not one of Service, HTTPRoute, GRPCRoute, \
             TLSRoute, TCPRoute, TrafficPolicy, AuthorizationPolicy, MutualTLS, FaultInjection, \
             RateLimit, Telemetry",
        ),
        (
            &good.replace("outrigger.dev/v1", "v1"),
            "Service n/x: apiVersion: must be outrigger.dev/v1",
        ),
        (
            &good.replace("name: x", "name: X_"),
            "Service n/X_: metadata.name: must be lower-case letters, digits, '-' and '.'",
        ),
        (
            &format!("{good}---\n{good}"),
            "Service n/x: stands in the manifest twice",
        ),
    ];
    for (manifest, fault) in cases {
        assert_eq!(faults(manifest), [fault], "{manifest}");
    }
    assert!(
        faults("a: [")
            .first()
            .is_some_and(|f| f.starts_with("manifest: is not YAML"))
    );
    assert!(
        faults("a: 1\na: 2")
            .first()
            .is_some_and(|f| f.contains("duplicate"))
    );
}

#[test]
fn what_a_cluster_adds_is_passed_over() {
    let manifest = "
apiVersion: outrigger.dev/v1
kind: Service
metadata:
  name: x
  uid: 1234
  generation: 3
  managedFields: [{manager: kubectl}]
  labels: {a: b}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}', c: d}
spec: {ports: [{port: 80}]}
status: {ready: true}
";
    let object = parse_manifest(manifest, "shop").unwrap().remove(0);
    let expected = json!({
        "name": "x", "namespace": "shop", "labels": {"a": "b"}, "annotations": {"c": "d"},
    });
    assert_eq!(object.json["metadata"], expected);
}

#[test]
fn what_is_shown_can_be_applied_again() {
    for object in parse_manifest(include_str!("../../examples/shop.yaml"), "n").unwrap() {
        let again = parse_object(object.json.clone(), "other", 0).unwrap();
        assert_eq!((again.key, again.json), (object.key, object.json));
    }
}

#[test]
fn lists_are_opened() {
    let manifest = "{kind: List, apiVersion: v1, items: [{apiVersion: outrigger.dev/v1, kind: \
                    Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}]}";
    assert_eq!(parse_manifest(manifest, "n").unwrap().len(), 1);
}

#[test]
fn kinds_are_found_by_what_people_call_them() {
    for (name, kind) in [
        ("Service", Kind::Service),
        ("services", Kind::Service),
        ("httproutes", Kind::HttpRoute),
        ("trafficpolicies", Kind::TrafficPolicy),
        ("mutualtls", Kind::MutualTls),
        ("telemetries", Kind::Telemetry),
    ] {
        assert_eq!(Kind::parse(name), Some(kind), "{name}");
    }
    assert_eq!(Kind::parse("pods"), None);
}

#[test]
fn shares_and_durations_keep_their_value() {
    for text in ["0.0", "0.01", "12.5", "100.0"] {
        let share: Share = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&share).unwrap(), text);
    }
    for text in ["0s", "1h2m3s4ms", "90s"] {
        let span: Span = serde_json::from_value(json!(text)).unwrap();
        let again: Span = serde_json::from_value(serde_json::to_value(span).unwrap()).unwrap();
        assert_eq!(span, again, "{text}");
    }
    for text in ["", "1", "s", "-1s", "1.5s", "99999999999999999999s", "1sm"] {
        assert!(crate::duration::parse(text).is_err(), "{text}");
    }
}
