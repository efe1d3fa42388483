//! What is taken and what is refused.

use serde::{Serialize, de::DeserializeOwned};

use super::*;

/// The faults of a spec that serde can read.
fn faults<T: Spec + DeserializeOwned>(yaml: &str) -> Vec<String> {
    let spec: T = serde_saphyr::from_str(yaml).unwrap();
    let found = spec.faults();
    found
        .iter()
        .map(|(path, why)| format!("{path}: {why}"))
        .collect()
}

fn unreadable<T: DeserializeOwned>(yaml: &str) -> String {
    let read: Result<T, _> = serde_json::from_value(serde_saphyr::from_str(yaml).unwrap());
    read.err().unwrap().to_string()
}

/// A good spec has no faults, and what is written of it reads as the same again.
fn good<T: Spec + DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(yaml: &str) -> T {
    let spec: T = serde_saphyr::from_str(yaml).unwrap();
    assert_eq!(spec.faults(), []);
    let written = serde_json::to_value(&spec).unwrap();
    let again: T = serde_json::from_value(written).unwrap();
    assert_eq!(again, spec);
    spec
}

#[test]
fn durations_are_read_as_the_gateway_api_writes_them() {
    for (text, millis) in [
        ("0s", 0),
        ("10s", 10_000),
        ("500ms", 500),
        ("1h30m", 5_400_000),
        ("1h1m1s1ms", 3_661_001),
        ("99999h", 359_996_400_000),
    ] {
        let span: Span = text.parse().unwrap();
        assert_eq!(span.0.as_millis(), millis, "{text}");
        assert_eq!(span.to_string().parse(), Ok(span), "{text}");
    }
    for text in [
        "",
        "10",
        "s",
        "1.5s",
        "-1s",
        "1d",
        "100000s",
        "1s1s1s1s1s",
        "1 s",
        "١s",
        "1us",
    ] {
        assert!(text.parse::<Span>().is_err(), "{text}");
    }
}

#[test]
fn percents_are_0_to_100() {
    for (text, millionths) in [
        ("0", 0),
        ("0.01", 100),
        ("12.5", 125_000),
        ("100", 1_000_000),
    ] {
        let percent: Percent = serde_json::from_str(text).unwrap();
        assert_eq!(percent.millionths(), millionths);
        assert_eq!(serde_json::to_string(&percent).unwrap(), text);
    }
    for text in ["-1", "100.1", "1e300"] {
        assert!(serde_json::from_str::<Percent>(text).is_err(), "{text}");
    }
    assert!(Percent::try_from(f64::NAN).is_err());
}

#[test]
fn a_slip_is_answered_with_the_word_that_was_meant() {
    let error = unreadable::<HttpRouteSpec>("{parentRefs: [], rules: [{timeuots: {}}]}");
    let said = did_you_mean(&error);
    assert!(said.starts_with("unknown field `timeuots`"), "{said}");
    assert!(said.ends_with("did you mean `timeouts`?"), "{said}");
    let error = unreadable::<HttpRouteSpec>("{parentRefs: [], rules: [{sessionPersistence: {}}]}");
    assert_eq!(did_you_mean(&error), error);
    let error =
        unreadable::<TrafficPolicySpec>("{targetRefs: [], loadBalancer: {policy: peakEWMA}}");
    assert!(
        did_you_mean(&error).ends_with("did you mean `peakEwma`?"),
        "{error}"
    );
    assert_eq!(did_you_mean("missing field `name`"), "missing field `name`");
    assert_eq!(did_you_mean("unknown field `"), "unknown field `");
}

const ROUTE: &str = "
parentRefs: [{name: cart, port: 80}]
rules:
- name: canary
  matches:
  - path: {type: PathPrefix, value: /v2}
    headers: [{name: x-user, type: RegularExpression, value: 'b.*'}]
    queryParams: [{name: debug, value: '1'}]
    method: GET
  filters:
  - type: RequestHeaderModifier
    requestHeaderModifier: {set: [{name: x-a, value: b}], remove: [x-c]}
  - type: URLRewrite
    urlRewrite: {hostname: cart.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
  - type: RequestMirror
    requestMirror: {backendRef: {name: shadow, port: 80}, percent: 10}
  backendRefs:
  - {name: cart-v1, port: 80, weight: 9}
  - {name: cart-v2, port: 80, weight: 1}
  timeouts: {request: 10s, backendRequest: 2s}
  retry: {codes: [503], attempts: 3, backoff: 50ms}
- filters:
  - type: RequestRedirect
    requestRedirect: {scheme: https, statusCode: 301}
";

#[test]
fn a_route_with_everything_is_taken() {
    let route = good::<HttpRouteSpec>(ROUTE);
    assert_eq!(route.rules.len(), 2);
    good::<GrpcRouteSpec>(
        "
parentRefs: [{name: cart}]
rules:
- matches: [{method: {service: shop.v1.Cart, method: Add}, headers: [{name: a, value: b}]}]
  filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x, value: y}]}}]
  backendRefs: [{name: cart-v2, port: 80}]
",
    );
}

/// A route with these rules.
fn rule(rules: &str) -> String {
    format!("{{parentRefs: [{{name: cart}}], rules: [{rules}]}}")
}

fn refuses(yaml: &str, expected: &str) {
    let found = faults::<HttpRouteSpec>(yaml);
    assert!(
        found.iter().any(|fault| fault == expected),
        "{yaml}\n{found:#?}"
    );
}

#[test]
fn a_bad_route_is_refused_field_by_field() {
    for (yaml, expected) in [
        (
            rule("{timeouts: {request: 1s, backendRequest: 2s}}"),
            "rules[0].timeouts.backendRequest: must not be longer than request",
        ),
        (
            rule("{matches: [{path: {value: v1}}]}"),
            "rules[0].matches[0].path.value: must begin with '/'",
        ),
        (
            rule("{matches: [{path: {value: /a/../b}}]}"),
            "rules[0].matches[0].path.value: must not contain \"/../\"",
        ),
        (
            rule("{matches: [{path: {type: RegularExpression, value: '/(a'}}]}"),
            "rules[0].matches[0].path.value: is no regular expression: unclosed group",
        ),
        (
            rule("{matches: [{method: get}]}"),
            "rules[0].matches[0].method: must be one of GET, HEAD, POST, PUT, DELETE, CONNECT, \
             OPTIONS, TRACE, PATCH",
        ),
        (
            rule("{matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}]}"),
            "rules[0].matches[0].headers[1].name: stands there twice",
        ),
        (
            rule("{backendRefs: [{name: a}]}"),
            "rules[0].backendRefs[0].port: must be 1 to 65535",
        ),
        (
            rule("{backendRefs: [{name: a, port: 80, kind: Pod}]}"),
            "rules[0].backendRefs[0].kind: must be Service",
        ),
        (
            rule("{retry: {codes: [200]}}"),
            "rules[0].retry.codes[0]: must be 400 to 599",
        ),
    ] {
        refuses(&yaml, expected);
    }
}

#[test]
fn a_bad_filter_is_refused_field_by_field() {
    for (yaml, expected) in [
        (
            rule(
                "{filters: [{type: URLRewrite, requestMirror: {backendRef: {name: a, port: 1}}}]}",
            ),
            "rules[0].filters[0].requestMirror: does not go with this type",
        ),
        (
            rule(
                "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: \
                 Host, value: a}]}}]}",
            ),
            "rules[0].filters[0].requestHeaderModifier.set[0].name: the host is changed with a \
             URLRewrite filter",
        ),
        (
            rule(
                "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, \
                 urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            ),
            "rules[0].filters[0]: needs exactly one match, of type PathPrefix",
        ),
        (
            rule(
                "{filters: [{type: RequestRedirect, requestRedirect: {}}], backendRefs: [{name: \
                 a, port: 80}]}",
            ),
            "rules[0].filters[0]: a redirect excludes backendRefs",
        ),
        (
            rule("{name: a}, {name: a}"),
            "rules[1].name: stands there twice",
        ),
        (
            "{parentRefs: []}".to_owned(),
            "parentRefs: must have 1 to 32 entries",
        ),
    ] {
        refuses(&yaml, expected);
    }
}

#[test]
fn every_fault_is_found_at_once() {
    let found = faults::<HttpRouteSpec>(
        "{parentRefs: [{name: Cart}], rules: [{retry: {attempts: 99}, backendRefs: [{name: a}]}]}",
    );
    assert_eq!(found.len(), 3, "{found:#?}");
}

#[test]
fn a_traffic_policy_with_everything_is_taken() {
    good::<TrafficPolicySpec>(
        "
targetRefs: [{kind: Service, name: cart, port: 80}]
loadBalancer: {policy: ringHash, hashOn: [{header: x-user}, {sourceIp: true}], minimumRingSize: 64}
connections: {connectTimeout: 1s, idleTimeout: 90s, keepalive: {time: 60s, interval: 10s, probes: 3}}
timeouts: {request: 15s, idle: 60s, maxDuration: 1h}
retries:
  attempts: 3
  retryOn: [connect-failure, '5xx']
  statusCodes: [503]
  perTryTimeout: 2s
  backoff: {base: 10ms, max: 1s}
  budget: {percent: 20, interval: 10s, minConcurrency: 5}
circuitBreaker:
  limits: {maxConnections: 100, maxPendingRequests: 50, maxRequests: 200, maxRetries: 3}
  breaker: {scope: service, failureRateThreshold: 50, window: 10s, minimumCalls: 20}
outlierDetection: {consecutive5xx: 5, interval: 5s, successRate: {stdevFactor: 1.9}}
healthChecks: [{http: {path: /healthz, expectedStatuses: [{start: 200, end: 300}]}, interval: 5s}]
",
    );
}

#[test]
fn a_bad_traffic_policy_is_refused_field_by_field() {
    let service = |rest: &str| format!("{{targetRefs: [{{kind: Service, name: a}}], {rest}}}");
    for (yaml, expected) in [
        (
            service("loadBalancer: {policy: random, hashOn: [{header: a}]}"),
            "loadBalancer.hashOn: is for policy ringHash or maglev",
        ),
        (
            service("loadBalancer: {slowStart: {window: 1s}}"),
            "loadBalancer.slowStart: is for policy leastRequest or roundRobin",
        ),
        (
            service("loadBalancer: {policy: maglev, tableSize: 65536}"),
            "loadBalancer.tableSize: must be a prime up to 5000011",
        ),
        (
            service("timeouts: {request: 1s}, retries: {perTryTimeout: 2s}"),
            "retries.perTryTimeout: must not be longer than timeouts.request",
        ),
        (
            service("healthChecks: [{}]"),
            "healthChecks[0]: must have exactly one of http, tcp and grpc",
        ),
        (
            service("circuitBreaker: {breaker: {slowCallRateThreshold: 10}}"),
            "circuitBreaker.breaker.slowCallDuration: is required with slowCallRateThreshold",
        ),
        (
            "{targetRefs: [{kind: HTTPRoute, name: a}], outlierDetection: {}}".to_owned(),
            "outlierDetection: is for Services: a route has no endpoints of its own",
        ),
        (
            "{targetRefs: [{kind: Pod, name: a}]}".to_owned(),
            "targetRefs[0].kind: must be Service or HTTPRoute or GRPCRoute",
        ),
    ] {
        let found = faults::<TrafficPolicySpec>(&yaml);
        assert!(
            found.iter().any(|fault| fault == expected),
            "{yaml}\n{found:#?}"
        );
    }
}

#[test]
fn authorization_names_are_checked() {
    good::<AuthorizationPolicySpec>(
        "
targetRefs: [{kind: Service, name: cart}]
action: ALLOW
rules:
- from: [{serviceAccounts: [shop/web]}, {principals: ['spiffe://outrigger.local/ns/ops/*']}]
  to: [{methods: [GET], paths: ['/cart/*'], headers: [{name: x-team, value: shop}]}]
- from: [{ipBlocks: [10.0.0.0/8, '::1']}]
  to: [{ports: [9090]}]
",
    );
    good::<AuthorizationPolicySpec>("{}");
    for (yaml, expected) in [
        (
            "{action: DENY}",
            "rules: must not be empty: without rules nothing ever matches",
        ),
        (
            "{rules: [{from: [{}]}]}",
            "rules[0].from[0]: must not be empty; leave `from` out for all",
        ),
        (
            "{rules: [{from: [{principals: [web]}]}]}",
            "rules[0].from[0].principals[0]: must begin with spiffe:// or *",
        ),
        (
            "{rules: [{from: [{serviceAccounts: [web]}]}]}",
            "rules[0].from[0].serviceAccounts[0]: must be <namespace>/<service account>",
        ),
        (
            "{rules: [{from: [{ipBlocks: [10.0.0.0/33]}]}]}",
            "rules[0].from[0].ipBlocks[0]: must be an address or a CIDR range",
        ),
        (
            "{rules: [{to: [{paths: ['/a*b']}]}]}",
            "rules[0].to[0].paths[0]: may have one '*', at its beginning or end",
        ),
    ] {
        let found = faults::<AuthorizationPolicySpec>(yaml);
        assert!(
            found.iter().any(|fault| fault == expected),
            "{yaml}\n{found:#?}"
        );
    }
}

#[test]
fn the_closest_mutual_tls_mode_counts() {
    let spec = good::<MutualTlsSpec>(
        "{selector: {matchLabels: {app: cart}}, mode: strict, ports: [{port: 9090, mode: PERMISSIVE}]}",
    );
    assert_eq!(spec.mode_of(9090), (2, Mode::Permissive));
    assert_eq!(spec.mode_of(8080), (1, Mode::Strict));
    assert_eq!(
        good::<MutualTlsSpec>("{mode: STRICT}").mode_of(1),
        (0, Mode::Strict)
    );
    let found = faults::<MutualTlsSpec>("{mode: STRICT, ports: [{port: 1, mode: STRICT}]}");
    assert_eq!(
        found,
        ["ports: needs a selector: ports belong to workloads"]
    );
}

#[test]
fn faults_need_something_to_do() {
    good::<FaultInjectionSpec>(
        "
targetRefs: [{kind: HTTPRoute, name: cart, sectionName: canary}]
headers: [{name: x-chaos, value: 'on'}]
delay: {fixedDelay: 100ms, percentage: 50}
abort: {grpcStatus: 14, percentage: 0.1}
",
    );
    let found = faults::<FaultInjectionSpec>("{targetRefs: [{kind: Service, name: a}]}");
    assert_eq!(found, [": must have delay, abort, or both"]);
    let both = "{targetRefs: [{kind: Service, name: a}], abort: {httpStatus: 503, grpcStatus: 1}}";
    let found = faults::<FaultInjectionSpec>(both);
    assert_eq!(
        found,
        ["abort: must have exactly one of httpStatus and grpcStatus"]
    );
}

#[test]
fn telemetry_needs_something_to_say() {
    good::<TelemetrySpec>("{tracing: {randomSampling: 12.5}, accessLog: {format: json}}");
    assert_eq!(
        faults::<TelemetrySpec>("{}"),
        [": must have tracing, accessLog, or both"]
    );
}

#[test]
fn references_mean_what_they_say() {
    let parent: ParentRef = serde_json::from_str(r#"{"name": "cart", "port": 80}"#).unwrap();
    assert!(parent.covers("shop", ("shop", "cart"), (80, "http")));
    assert!(!parent.covers("shop", ("shop", "cart"), (81, "http")));
    assert!(!parent.covers("other", ("shop", "cart"), (80, "http")));
    let service: TargetRef =
        serde_json::from_str(r#"{"kind": "Service", "name": "cart", "sectionName": "http"}"#)
            .unwrap();
    assert_eq!(service.of_service("cart", (80, "http")), Some(1));
    assert_eq!(service.of_service("cart", (80, "grpc")), None);
    assert_eq!(service.of_rule("HTTPRoute", "cart", None), None);
    let route: TargetRef =
        serde_json::from_str(r#"{"kind": "HTTPRoute", "name": "cart"}"#).unwrap();
    assert_eq!(route.of_rule("HTTPRoute", "cart", Some("a")), Some(0));
    let rule: TargetRef =
        serde_json::from_str(r#"{"kind": "HTTPRoute", "name": "cart", "sectionName": "a"}"#)
            .unwrap();
    assert_eq!(rule.of_rule("HTTPRoute", "cart", Some("a")), Some(1));
    assert_eq!(rule.of_rule("HTTPRoute", "cart", Some("b")), None);
}
