//! What good routes become.

use super::*;
use crate::config::{
    matcher::{HeaderKey, HeaderKind, StringMatch},
    route::{AppendAction, Domain, HashSource, HostRewrite, PathMatch, PathRewrite, Target},
    units::{Backoff, Fraction},
};

const RICH: &str = "{name: r, ignore_port_in_host_matching: true, \
         request_headers_to_remove: [x-gone], \
         virtual_hosts: [{name: v, domains: ['*', '*.A.com', 'b.*', C], \
         include_request_attempt_count: \
         true, routes: [{match: {path: /x, case_sensitive: false, headers: [{name: Host, \
         exact_match: h}, {name: x-a, present_match: false}, {name: x-n, range_match: {start: 1, \
         end: 3}}], query_parameters: [{name: q}], grpc: {}, runtime_fraction: {default_value: \
         {numerator: 25}}}, route: {weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, \
         weight: 0}]}, regex_rewrite: {pattern: {regex: '^/(x)'}, substitution: '/$\\1\\\\'}, \
         host_rewrite_literal: other}, request_headers_to_add: [{header: {key: x-b, value: \
         '50%%'}, append_action: ADD_IF_ABSENT}, {header: {key: x-empty}}], \
         response_headers_to_add: [{header: {key: x-c, value: v}, append: false}]}]}]}";

#[test]
fn matches_rewrites_and_header_changes() {
    let (routes, ignored) = routes(RICH);
    assert!(routes.ignore_port_in_host && ignored.is_empty());
    assert_eq!(routes.headers.request_remove[0], "x-gone");
    let host = &routes.virtual_hosts[0];
    assert_eq!(
        host.domains,
        [
            Domain::Any,
            Domain::Suffix(".a.com".into()),
            Domain::Prefix("b.".into()),
            Domain::Exact("c".into())
        ]
    );
    assert!(host.attempt_count_header);
    let route = &host.routes[0];
    assert_eq!(&*route.name, "v/0", "nameless ones get a name");
    assert!(matches!(
        &route.matcher.path,
        PathMatch::Exact {
            ignore_case: true,
            ..
        }
    ));
    assert!(route.matcher.grpc_only && route.matcher.query[0].value.is_none());
    assert_eq!(route.matcher.fraction, Some(Fraction::new(25, 100)));
    let [one, two, three] = route.matcher.headers.as_slice() else {
        panic!("three headers");
    };
    assert_eq!(one.key, HeaderKey::Authority);
    assert!(matches!(
        one.kind,
        HeaderKind::String(StringMatch::Exact { .. })
    ));
    assert!(two.invert && matches!(two.kind, HeaderKind::Present));
    assert!(matches!(three.kind, HeaderKind::Range { start: 1, end: 3 }));
    let Action::Forward(forward) = &route.action else {
        panic!("forwards");
    };
    assert!(matches!(&forward.target, Target::Weighted(arms) if arms.len() == 2));
    let Some(PathRewrite::Regex {
        pattern,
        substitution,
    }) = &forward.path_rewrite
    else {
        panic!("rewrites");
    };
    assert_eq!(pattern.replace_all("/x/x", &**substitution), "/$x\\/x");
    assert!(matches!(&forward.host_rewrite, Some(HostRewrite::Literal(host)) if host == "other"));
    let [add] = route.headers.request_add.as_slice() else {
        panic!("an empty value adds nothing");
    };
    assert_eq!(
        (add.value.as_bytes(), add.how),
        (&b"50%"[..], AppendAction::AddIfAbsent)
    );
    assert_eq!(
        route.headers.response_add[0].how,
        AppendAction::OverwriteOrAdd
    );
}

#[test]
fn retries_hashes_and_mirrors() {
    let (routes, ignored) = routes(
        "{name: r, virtual_hosts: [{name: v, domains: ['*'], request_mirror_policies: [{cluster: \
         m}], retry_policy: {retry_on: connect-failure}, routes: [{match: {prefix: /}, metadata: \
         {filter_metadata: {outrigger.retry: {allow_non_idempotent: true}}}, route: {cluster: c, \
         retry_policy: {retry_on: '5xx, reset,unavailable,strange', num_retries: 3, \
         per_try_timeout: 2s, retriable_status_codes: [503], retry_back_off: {base_interval: \
         0.0001s}}, hash_policy: [{header: {header_name: x-user}, terminal: true}, {cookie: {name: \
         s, ttl: 0s}}, {connection_properties: {source_ip: true}}, {filter_state: {key: k}}], \
         priority: HIGH}}]}]}",
    );
    let host = &routes.virtual_hosts[0];
    assert!(
        host.retry
            .as_ref()
            .is_some_and(|retry| retry.on.connect_failure)
    );
    let Action::Forward(forward) = &host.routes[0].action else {
        panic!("forwards");
    };
    let retry = forward.retry.as_ref().expect("a policy");
    assert!(retry.on.server_error_5xx && retry.on.reset && retry.on.grpc_unavailable);
    assert!(!retry.on.connect_failure && retry.allow_non_idempotent);
    assert_eq!(
        (retry.num_retries, retry.per_try_timeout),
        (3, Some(seconds(2)))
    );
    let least = Duration::from_millis(1);
    assert_eq!(
        retry.backoff,
        Backoff::new(least, least * 10).expect("good")
    );
    assert!(matches!(&forward.hash[0].source, HashSource::Header(name) if name == "x-user"));
    assert!(forward.hash[0].terminal && forward.hash.len() == 3);
    assert!(forward.high_priority);
    assert_eq!(
        forward.mirrors[0].cluster.as_str(),
        "m",
        "inherited from the host"
    );
    assert_eq!(forward.mirrors[0].fraction, Fraction::ALL);
    let route = "virtual_hosts[0].routes[0].route";
    assert_eq!(
        ignored,
        [
            format!("{route}.retry_policy.retry_on"),
            format!("{route}.hash_policy[3]")
        ]
    );
}

#[test]
fn filters_of_a_route_by_type_wrapped_or_switched_off() {
    let with = |filters: &str| {
        let route = format!(
            "match: {{prefix: /}}, route: {{cluster: c}}, typed_per_filter_config: {{{filters}}}"
        );
        let (routes, _) = routes(&with_route(&route));
        routes.virtual_hosts[0].routes[0].filters.clone()
    };
    let fault = with("envoy.fault: {'@type': '@FAULT', abort: {http_status: 503}}");
    assert!(fault.fault.is_some() && fault.rbac.is_none());
    let off = with("envoy.filters.http.rbac: {'@type': '@FILTER_CONFIG', disabled: true}");
    assert!(matches!(off.rbac, Some(None)));
    let empty = with("x: {'@type': '@RBAC_ROUTE'}");
    assert!(matches!(empty.rbac, Some(None)));
    let wrapped =
        with("x: {'@type': '@FILTER_CONFIG', config: {'@type': '@RBAC_ROUTE', rbac: {}}}");
    assert!(matches!(wrapped.rbac, Some(Some(_))));
    let optional =
        with("x: {'@type': '@FILTER_CONFIG', is_optional: true, config: {'@type': '@TCP'}}");
    assert!(optional.rbac.is_none() && optional.fault.is_none());
}
