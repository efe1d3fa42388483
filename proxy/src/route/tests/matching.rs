//! Which route a request gets.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::config::{
    matcher::{HeaderKey, HeaderKind, HeaderMatch, StringMatch},
    route::{QueryMatch, WeightedCluster},
    units::{ClusterName, Fraction},
};

fn name_of(table: &RouteTable, request: &RequestView<'_>, grpc: bool) -> Option<String> {
    table
        .hit(request, grpc, &mut rng())
        .ok()
        .map(|hit| hit.route.name.to_string())
}

fn found(table: &RouteTable, path: &str) -> Option<String> {
    name_of(table, &view(path, &HeaderMap::new()), false)
}

fn matches_path(matcher: PathMatch, path: &str) -> bool {
    found(&table(vec![named("r", on(matcher))]), path).is_some()
}

#[test]
fn paths_match_by_kind() {
    let fold = |text: &str| PathMatch::Prefix {
        text: text.into(),
        ignore_case: true,
    };
    let regex = |text: &str| PathMatch::Regex(regex::Regex::new(text).expect("regex"));
    for (matcher, path, want) in [
        (prefix("/"), "/anything", true),
        (prefix("/api"), "/apix", true),
        (prefix("/api"), "/ap", false),
        (prefix("/api"), "/API", false),
        (fold("/api"), "/API/x", true),
        (exact("/api"), "/api", true),
        (exact("/api"), "/api?q=1", true),
        (exact("/api"), "/api/", false),
        (element("/api"), "/api", true),
        (element("/api"), "/api/x", true),
        (element("/api"), "/apix", false),
        (element("/api"), "/x?/api", false),
        (element("/api/"), "/api", true),
        (element("/"), "/x", true),
        (regex("^(?:/v[12]/.*)$"), "/v1/x", true),
        (regex("^(?:/v[12])$"), "/v1?x", true),
        (regex("^(?:/v[12])$"), "/v1/x", false),
        (exact("/é"), "/e", false),
        (prefix("/é"), "/è", false),
    ] {
        let shown = format!("{matcher:?} {path}");
        assert_eq!(matches_path(matcher, path), want, "{shown}");
    }
}

#[test]
fn connect_matches_by_method_alone() {
    let table = table(vec![
        named("connect", on(PathMatch::Connect)),
        named("rest", on(prefix("/"))),
    ]);
    let headers = HeaderMap::new();
    let mut request = view("", &headers);
    request.method = "CONNECT";
    assert_eq!(name_of(&table, &request, false).as_deref(), Some("connect"));
    assert_eq!(found(&table, "/x").as_deref(), Some("rest"));
}

#[test]
fn the_first_match_wins_and_all_conditions_count() {
    let mut headers = HeaderMap::new();
    headers.insert("x-v", HeaderValue::from_static("2"));
    let on_header = |value: &str| {
        let mut matcher = on(prefix("/"));
        matcher.headers = vec![HeaderMatch {
            key: HeaderKey::Name("x-v".parse().expect("name")),
            kind: HeaderKind::String(StringMatch::exact(value)),
            invert: false,
            missing_as_empty: false,
        }];
        matcher
    };
    let mut grpc = on(prefix("/"));
    grpc.grpc_only = true;
    let table = table(vec![
        named("grpc", grpc),
        named("one", on_header("1")),
        named("two", on_header("2")),
        named("late", on(exact("/a"))),
    ]);
    assert_eq!(
        name_of(&table, &view("/a", &headers), false).as_deref(),
        Some("two")
    );
    assert_eq!(
        name_of(&table, &view("/a", &headers), true).as_deref(),
        Some("grpc")
    );
    assert_eq!(found(&table, "/a").as_deref(), Some("late"));
    assert_eq!(found(&table, "/b"), None);
}

#[test]
fn query_parameters_match_raw_or_decoded_and_the_first_counts() {
    let query = |name: &str, value: Option<&str>| {
        let mut matcher = on(prefix("/"));
        matcher.query = vec![QueryMatch {
            name: name.into(),
            value: value.map(StringMatch::exact),
        }];
        table(vec![named("r", matcher)])
    };
    for (name, value, path, want) in [
        ("a", Some("1"), "/?a=1", true),
        ("a", Some("1"), "/?b=2&a=1&a=2", true),
        ("a", Some("2"), "/?a=1&a=2", false),
        ("a", Some("x y"), "/?a=x%20y", true),
        ("a", Some("x%20y"), "/?a=x%20y", true),
        ("a", Some("x%20y"), "/?a=x y", false),
        ("a b", Some("1"), "/?a%20b=1", true),
        ("a", None, "/?a", true),
        ("a", Some(""), "/?a", true),
        ("a", None, "/?b=a", false),
        ("a", None, "/", false),
        ("", None, "/?&&", false),
        ("a", Some("1=2"), "/?a=1=2", true),
    ] {
        assert_eq!(
            found(&query(name, value), path).is_some(),
            want,
            "{name} {value:?} {path}"
        );
    }
}

#[test]
fn a_share_of_requests_takes_a_route() {
    let mut some = on(prefix("/"));
    some.fraction = Some(Fraction::new(25, 100));
    let table = table(vec![named("some", some), named("rest", on(prefix("/")))]);
    let headers = HeaderMap::new();
    let mut rng = rng();
    let taken = (0..10_000)
        .filter(|_| {
            let hit = table.hit(&view("/", &headers), false, &mut rng);
            &*hit.expect("one of them").route.name == "some"
        })
        .count();
    assert!((2_300..2_700).contains(&taken), "{taken}");
}

#[test]
fn a_miss_says_what_is_missing() {
    let headers = HeaderMap::new();
    let no_route = table(vec![named("r", on(exact("/a")))]);
    let miss = no_route.hit(&view("/b", &headers), false, &mut rng());
    assert_eq!(miss.expect_err("no route"), NoRoute::Route);
    let no_host = RouteTable::new(Arc::new(RouteConfig {
        name: "config".into(),
        virtual_hosts: Vec::new(),
        headers: HeaderMods::default(),
        ignore_port_in_host: false,
    }));
    let miss = no_host.hit(&view("/", &headers), false, &mut rng());
    assert_eq!(miss.expect_err("no host"), NoRoute::Host);
}

fn arm(name: &str, weight: u32) -> WeightedCluster {
    WeightedCluster {
        name: name.into(),
        weight,
        headers: HeaderMods::default(),
        host_rewrite: None,
    }
}

#[test]
fn a_split_follows_its_weights() {
    let target = Target::Weighted(vec![arm("a", 70), arm("b", 30), arm("never", 0)]);
    let action = Action::Forward(Box::new(forward(target)));
    let table = table(vec![route("r", on(prefix("/")), action)]);
    let headers = HeaderMap::new();
    let mut rng = rng();
    let mut counts = std::collections::HashMap::new();
    for _ in 0..10_000 {
        let hit = table
            .hit(&view("/", &headers), false, &mut rng)
            .expect("hit");
        *counts.entry(hit.cluster.expect("a cluster")).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!(
        (6_800..7_200).contains(&counts[&ClusterName::from("a")]),
        "{counts:?}"
    );
}

#[test]
fn a_split_without_weight_and_a_missing_cluster_header_name_no_cluster() {
    let zero = forward(Target::Weighted(vec![arm("a", 0)]));
    assert_eq!(
        hit(prefix("/"), Action::Forward(Box::new(zero)), "/").cluster,
        None
    );
    let by_header = forward(Target::Header("x-to".parse().expect("name")));
    let action = Action::Forward(Box::new(by_header));
    assert_eq!(hit(prefix("/"), action.clone(), "/").cluster, None);
    let mut headers = HeaderMap::new();
    headers.insert("x-to", HeaderValue::from_static("cart"));
    let hit = table(vec![route("r", on(prefix("/")), action)])
        .hit(&view("/", &headers), false, &mut rng())
        .expect("hit");
    assert_eq!(hit.cluster, Some("cart".into()));
}

/// What the index must agree with: each route in turn, by the definition of its matcher.
fn naive(routes: &[Arc<Route>], path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap_or_default();
    let fits = |route: &&Arc<Route>| match &route.matcher.path {
        PathMatch::Prefix {
            text,
            ignore_case: false,
        } => path.starts_with(&**text),
        PathMatch::Prefix { text, .. } => path.to_lowercase().starts_with(&text.to_lowercase()),
        PathMatch::Exact {
            text,
            ignore_case: false,
        } => path == &**text,
        PathMatch::Exact { text, .. } => path.eq_ignore_ascii_case(text),
        PathMatch::ElementPrefix { text, .. } => {
            let text = text.trim_end_matches('/');
            path == text || path.starts_with(&format!("{text}/"))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::Connect => false,
    };
    routes.iter().find(fits).map(|route| route.name.to_string())
}

fn any_matcher() -> impl Strategy<Value = PathMatch> {
    let text = "(/|/[ab]{1,2}|[ab]){1,4}/?";
    prop_oneof![
        (text, any::<bool>()).prop_map(|(text, ignore_case)| PathMatch::Prefix {
            text: text.into(),
            ignore_case
        }),
        (text, any::<bool>()).prop_map(|(text, ignore_case)| PathMatch::Exact {
            text: text.into(),
            ignore_case
        }),
        text.prop_map(|text| element(&text)),
        text.prop_map(|text| PathMatch::Regex(
            regex::Regex::new(&format!("^(?:{text}.?)$")).expect("regex")
        )),
        Just(PathMatch::Connect),
    ]
}

proptest! {
    #[test]
    fn the_index_agrees_with_trying_every_route(
        matchers in prop::collection::vec(any_matcher(), 0..40),
        paths in prop::collection::vec("/?(/|[abAB]){0,8}(\\?a)?", 1..20),
    ) {
        let routes: Vec<_> = matchers
            .into_iter()
            .enumerate()
            .map(|(n, matcher)| named(&n.to_string(), on(matcher)))
            .collect();
        let table = table(routes.clone());
        for path in &paths {
            prop_assert_eq!(found(&table, path), naive(&routes, path), "{}", path);
        }
    }
}
