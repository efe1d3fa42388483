//! Header changes: levels, order, variables and what may not be touched.

use http::{HeaderName, HeaderValue};

use super::*;
use crate::config::route::{AppendAction, HeaderAdd, WeightedCluster};

fn add(name: &'static str, value: &'static str, how: AppendAction) -> HeaderAdd {
    HeaderAdd {
        name: HeaderName::from_static(name),
        value: HeaderValue::from_static(value),
        how,
    }
}

fn mods(request_add: Vec<HeaderAdd>, remove: &[&'static str]) -> HeaderMods {
    HeaderMods {
        request_add,
        request_remove: remove.iter().map(|n| HeaderName::from_static(n)).collect(),
        ..HeaderMods::default()
    }
}

fn vars(headers: &HeaderMap) -> Vars<'_> {
    Vars {
        remote: "10.0.0.9:4711".parse().expect("address"),
        protocol: "HTTP/1.1",
        request: view("/p?q=1", headers),
    }
}

/// Applies request changes at the given levels, most specific first.
fn apply([arm, route, host, config]: [HeaderMods; 4], headers: &mut HeaderMap) {
    let before = headers.clone();
    let arms = vec![WeightedCluster {
        name: "c".into(),
        weight: 1,
        headers: arm,
        host_rewrite: None,
    }];
    let rule = Route {
        name: "r".into(),
        matcher: on(prefix("/")),
        action: Action::Forward(Box::new(forward(Target::Weighted(arms)))),
        headers: route,
        filters: RouteFilters::default(),
    };
    let mut virtual_host = virtual_host(vec![Arc::new(rule)]);
    virtual_host.headers = host;
    let table = RouteTable::new(Arc::new(RouteConfig {
        name: "config".into(),
        virtual_hosts: vec![virtual_host],
        headers: config,
        ignore_port_in_host: false,
    }));
    let hit = table
        .hit(&view("/p", &before), false, &mut rng())
        .expect("hit");
    hit.apply_to_request(headers, &vars(&before));
}

fn one(mods: HeaderMods, headers: &mut HeaderMap) {
    let none = HeaderMods::default;
    apply([none(), mods, none(), none()], headers);
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .map(|v| v.to_str().expect("ascii").to_owned())
        .collect()
}

#[test]
fn levels_go_from_the_most_to_the_least_specific() {
    use AppendAction::{AppendOrAdd, OverwriteOrAdd};
    let level = |value| {
        mods(
            vec![
                add("x-over", value, OverwriteOrAdd),
                add("x-app", value, AppendOrAdd),
            ],
            &[],
        )
    };
    let mut headers = HeaderMap::new();
    apply(
        [level("arm"), level("route"), level("host"), level("config")],
        &mut headers,
    );
    assert_eq!(values(&headers, "x-over"), ["config"]);
    assert_eq!(
        values(&headers, "x-app"),
        ["arm", "route", "host", "config"]
    );
}

#[test]
fn append_actions() {
    use AppendAction::{AddIfAbsent, AppendOrAdd, OverwriteIfExists, OverwriteOrAdd};
    for (how, present, absent) in [
        (AppendOrAdd, vec!["old", "new"], vec!["new"]),
        (AddIfAbsent, vec!["old"], vec!["new"]),
        (OverwriteOrAdd, vec!["new"], vec!["new"]),
        (OverwriteIfExists, vec!["new"], vec![]),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("x-there", HeaderValue::from_static("old"));
        let list = vec![add("x-there", "new", how), add("x-new", "new", how)];
        one(mods(list, &[]), &mut headers);
        assert_eq!(values(&headers, "x-there"), present, "{how:?}");
        assert_eq!(values(&headers, "x-new"), absent, "{how:?}");
    }
}

#[test]
fn removals_come_before_additions() {
    let mut headers = HeaderMap::new();
    headers.append("x-a", HeaderValue::from_static("old"));
    headers.append("x-a", HeaderValue::from_static("older"));
    let list = vec![add("x-a", "new", AppendAction::AppendOrAdd)];
    one(mods(list, &["x-a", "x-none"]), &mut headers);
    assert_eq!(values(&headers, "x-a"), ["new"]);
}

#[test]
fn ht_23_framing_and_host_are_out_of_reach() {
    let names = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
        "proxy-connection",
    ];
    let mut headers = HeaderMap::new();
    for name in names {
        headers.insert(name, HeaderValue::from_static("own"));
    }
    let list = names.map(|name| add(name, "evil", AppendAction::OverwriteOrAdd));
    one(mods(list.into(), &names), &mut headers);
    for name in names {
        assert_eq!(values(&headers, name), ["own"], "{name}");
    }
}

#[test]
fn variables_are_filled_in_and_unknown_ones_stay() {
    for (template, want) in [
        ("plain", Some("plain")),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", Some("10.0.0.9:4711")),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", Some("10.0.0.9")),
        ("<%REQ(x-in)%>", Some("<seen>")),
        ("%REQ(X-In):2%", Some("se")),
        ("%REQ(x-none?x-in)%", Some("seen")),
        ("%REQ(x-none)%", None),
        ("a%REQ(x-none)%", Some("a")),
        (
            "%REQ(:path)% %REQ(:METHOD)% %PROTOCOL%",
            Some("/p?q=1 GET HTTP/1.1"),
        ),
        ("100%%", Some("100%")),
        ("50% off", Some("50% off")),
        ("%NO_SUCH%%PROTOCOL%", Some("%NO_SUCH%HTTP/1.1")),
        ("%REQ(x-in)x%", Some("%REQ(x-in)x%")),
        ("5%PROTOCOL%", Some("5HTTP/1.1")),
        ("5% of %PROTOCOL%", Some("5% of HTTP/1.1")),
        ("%", Some("%")),
        ("%REQ()%", None),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("x-in", HeaderValue::from_static("seen"));
        let list = vec![add("x-out", template, AppendAction::OverwriteOrAdd)];
        one(mods(list, &[]), &mut headers);
        let got = values(&headers, "x-out");
        assert_eq!(got.first().map(String::as_str), want, "{template}");
    }
}

#[test]
fn an_echoed_header_is_bounded() {
    let mut headers = HeaderMap::new();
    let long = "a".repeat(50_000);
    headers.insert("x-in", HeaderValue::from_str(&long).expect("value"));
    let all = "%REQ(x-in)%%REQ(x-in)%%REQ(x-in)%";
    let list = vec![add("x-out", all, AppendAction::OverwriteOrAdd)];
    one(mods(list, &[]), &mut headers);
    assert_eq!(values(&headers, "x-out")[0].len(), 8 << 10);
}

#[test]
fn responses_have_their_own_changes() {
    let rule = Route {
        headers: HeaderMods {
            response_add: vec![add("x-out", "%REQ(x-in)%", AppendAction::AppendOrAdd)],
            response_remove: vec![HeaderName::from_static("server")],
            ..HeaderMods::default()
        },
        ..(*named("r", on(prefix("/")))).clone()
    };
    let table = table(vec![Arc::new(rule), named("plain", on(prefix("/")))]);
    let mut request = HeaderMap::new();
    request.insert("x-in", HeaderValue::from_static("seen"));
    let hit = table
        .hit(&view("/", &request), false, &mut rng())
        .expect("hit");
    let mut response = HeaderMap::new();
    response.insert("server", HeaderValue::from_static("app"));
    hit.apply_to_response(&mut response, &vars(&request));
    assert!(hit.changes_response());
    assert_eq!(values(&response, "x-out"), ["seen"]);
    assert!(!response.contains_key("server"));
    let mut untouched = request.clone();
    hit.apply_to_request(&mut untouched, &vars(&request));
    assert_eq!(untouched, request);
}
