//! Who may do what: tables for requests and raw connections, and what must not be a way around.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::config::matcher::{HeaderKey, HeaderKind, HeaderMatch};

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("an identity")
}

fn web() -> SpiffeId {
    id("spiffe://td/ns/shop/sa/web")
}

fn from<'a>(peer: Option<&'a SpiffeId>) -> Connection<'a> {
    Connection {
        peer,
        source: "10.1.2.3:40000".parse().expect("address"),
        client: "10.1.2.3".parse().expect("address"),
        destination: "[::ffff:10.9.0.1]:8080".parse().expect("address"),
        server_name: None,
    }
}

fn get<'a>(path_and_query: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    RequestView {
        method: "GET",
        path_and_query,
        authority: "cart",
        scheme: "http",
        headers,
    }
}

fn rbac(action: RbacAction, permission: Permission, principal: Principal) -> Rbac {
    Rbac {
        rules: Some(Rules {
            action,
            policies: vec![Policy {
                name: "p".into(),
                permissions: vec![permission],
                principals: vec![principal],
            }],
        }),
        shadow: None,
    }
}

fn is_web() -> Principal {
    Principal::Authenticated(Some(StringMatch::exact("spiffe://td/ns/shop/sa/web")))
}

fn path_is(text: &str) -> Permission {
    Permission::Path(StringMatch::exact(text))
}

fn path_under(text: &str) -> Permission {
    Permission::Path(StringMatch::Prefix {
        text: text.into(),
        ignore_case: false,
    })
}

fn method(name: &str) -> Permission {
    Permission::Header(HeaderMatch {
        key: HeaderKey::Method,
        kind: HeaderKind::String(StringMatch::exact(name)),
        invert: false,
        missing_as_empty: false,
    })
}

fn allows(rbac: &Rbac, path: &str) -> bool {
    let peer = web();
    let headers = HeaderMap::new();
    request(rbac, &from(Some(&peer)), &get(path, &headers))
        .enforced
        .allowed
}

#[test]
fn an_allow_list_refuses_what_it_does_not_name() {
    let rbac = rbac(RbacAction::Allow, path_is("/a"), is_web());
    let peer = web();
    let headers = HeaderMap::new();
    let yes = request(&rbac, &from(Some(&peer)), &get("/a?q", &headers)).enforced;
    assert!(yes.allowed);
    assert_eq!(yes.policy.map(|name| &**name), Some("p"));
    let no = request(&rbac, &from(Some(&peer)), &get("/b", &headers)).enforced;
    assert_eq!((no.allowed, no.policy), (false, None));
    assert_eq!(no.reason(), "no policy allows it");
}

#[test]
fn a_deny_list_lets_through_what_it_does_not_name() {
    let rbac = rbac(RbacAction::Deny, path_is("/a"), Principal::Any);
    assert!(allows(&rbac, "/b") && !allows(&rbac, "/a"));
    let headers = HeaderMap::new();
    let no = request(&rbac, &from(None), &get("/a", &headers)).enforced;
    assert_eq!(no.reason(), "by policy p");
}

#[test]
fn no_rules_enforce_nothing_and_empty_ones_refuse_all() {
    assert!(allows(&Rbac::default(), "/"));
    let empty = |action| Rbac {
        rules: Some(Rules {
            action,
            policies: Vec::new(),
        }),
        shadow: None,
    };
    assert!(!allows(&empty(RbacAction::Allow), "/"));
    assert!(allows(&empty(RbacAction::Deny), "/"));
}

#[test]
fn tl_09_identities_match_whole_and_plaintext_has_none() {
    let rbac = rbac(RbacAction::Allow, Permission::Any, is_web());
    let headers = HeaderMap::new();
    for (peer, want) in [
        (Some("spiffe://td/ns/shop/sa/web"), true),
        (Some("spiffe://td/ns/shop/sa/web-admin"), false),
        (Some("spiffe://other/ns/shop/sa/web"), false),
        (Some("spiffe://td/ns/shop/sa/Web"), false),
        (Some("spiffe://td/ns/shop/sa/web/x"), false),
        (None, false),
    ] {
        let peer = peer.map(id);
        let from = from(peer.as_ref());
        let by_request = request(&rbac, &from, &get("/", &headers)).enforced.allowed;
        let by_connection = connection(&rbac, &from).enforced.allowed;
        assert_eq!((by_request, by_connection), (want, want), "{peer:?}");
    }
}

#[test]
fn tl_08_any_identity_is_not_no_identity() {
    let rbac = rbac(
        RbacAction::Allow,
        Permission::Any,
        Principal::Authenticated(None),
    );
    let peer = web();
    assert!(connection(&rbac, &from(Some(&peer))).enforced.allowed);
    assert!(!connection(&rbac, &from(None)).enforced.allowed);
}

#[test]
fn tl_11_a_change_of_policy_holds_for_the_next_request_of_an_old_connection() {
    let before = rbac(RbacAction::Allow, Permission::Any, is_web());
    let after = rbac(RbacAction::Deny, Permission::Any, is_web());
    let peer = web();
    let old = from(Some(&peer));
    let headers = HeaderMap::new();
    assert!(request(&before, &old, &get("/", &headers)).enforced.allowed);
    assert!(!request(&after, &old, &get("/", &headers)).enforced.allowed);
    assert!(
        !connection(&after, &old).enforced.allowed,
        "an open stream is judged again too"
    );
}

#[test]
fn conditions_on_the_connection() {
    let net = |text: &str| text.parse().expect("a net");
    let headers = HeaderMap::new();
    let mut named = from(None);
    named.server_name = Some("cart.test");
    named.client = "192.0.2.1".parse().expect("address");
    let check = |permission: Permission, principal: Principal| {
        let rbac = rbac(RbacAction::Allow, permission, principal);
        request(&rbac, &named, &get("/", &headers)).enforced.allowed
    };
    let what = |permission| check(permission, Principal::Any);
    assert!(
        what(Permission::DestinationIp(net("10.9.0.0/16"))),
        "mapped IPv4 is IPv4"
    );
    assert!(!what(Permission::DestinationIp(net("10.8.0.0/16"))));
    assert!(what(Permission::DestinationPort(8080)));
    assert!(!what(Permission::DestinationPort(80)));
    assert!(what(Permission::DestinationPorts(8000..8081)));
    assert!(
        !what(Permission::DestinationPorts(8000..8080)),
        "the end is not part of it"
    );
    assert!(what(Permission::ServerName(StringMatch::exact(
        "cart.test"
    ))));
    let who = |principal| check(Permission::Any, principal);
    assert!(who(Principal::DirectRemoteIp(net("10.1.2.0/24"))));
    assert!(!who(Principal::DirectRemoteIp(net("192.0.2.0/24"))));
    assert!(who(Principal::RemoteIp(net("192.0.2.0/24"))));
    assert!(who(Principal::OneOf(vec![is_web(), Principal::Any])));
    assert!(!who(Principal::All(vec![is_web(), Principal::Any])));
    assert!(who(Principal::Not(Box::new(is_web()))));
}

#[test]
fn headers_and_methods_of_requests() {
    let key: Principal = Principal::Header(HeaderMatch {
        key: HeaderKey::Name(HeaderName::from_static("x-key")),
        kind: HeaderKind::Present,
        invert: false,
        missing_as_empty: false,
    });
    let rbac = rbac(RbacAction::Allow, method("GET"), key);
    let mut headers = HeaderMap::new();
    assert!(
        !request(&rbac, &from(None), &get("/", &headers))
            .enforced
            .allowed
    );
    headers.insert("x-key", HeaderValue::from_static("1"));
    assert!(
        request(&rbac, &from(None), &get("/", &headers))
            .enforced
            .allowed
    );
    let mut post = get("/", &headers);
    post.method = "POST";
    assert!(!request(&rbac, &from(None), &post).enforced.allowed);
}

/// Istio "authorization for TCP traffic": rules about HTTP on a port that is not.
#[test]
fn an_opaque_connection_is_never_let_in_by_a_rule_about_http() {
    let peer = web();
    let from = from(Some(&peer));
    let not_path = || Permission::Not(Box::new(path_is("/admin")));
    let one_of = || Permission::OneOf(vec![path_is("/a"), Permission::DestinationPort(8080)]);
    let both = |port| Permission::All(vec![method("GET"), Permission::DestinationPort(port)]);
    for (permission, allow_lets_in, deny_keeps_out) in [
        (path_is("/a"), false, true),
        (not_path(), false, true),
        (method("GET"), false, true),
        (one_of(), true, true),
        (both(8080), false, true),
        (both(80), false, false),
        (Permission::DestinationPort(8080), true, true),
        (Permission::Any, true, true),
    ] {
        let shown = format!("{permission:?}");
        let allow = rbac(RbacAction::Allow, permission.clone(), is_web());
        let deny = rbac(RbacAction::Deny, permission, is_web());
        assert_eq!(
            connection(&allow, &from).enforced.allowed,
            allow_lets_in,
            "{shown}"
        );
        assert_eq!(
            !connection(&deny, &from).enforced.allowed,
            deny_keeps_out,
            "{shown}"
        );
    }
    let other = rbac(
        RbacAction::Deny,
        path_is("/a"),
        Principal::Not(Box::new(is_web())),
    );
    assert!(
        connection(&other, &from).enforced.allowed,
        "not for whom it does not describe"
    );
}

#[test]
fn spelling_a_path_differently_is_no_way_around_a_deny() {
    let deny = rbac(RbacAction::Deny, path_under("/admin"), Principal::Any);
    for path in [
        "/admin",
        "/admin/x?y",
        "/%61dmin",
        "/a/../admin",
        "/a/%2e%2e/admin",
        "/./admin",
        "//admin",
        "/a/..%2fadmin",
        "/a/..%5Cadmin",
        "/a\\..\\admin",
        "/%2fadmin",
        "/a/..;x/admin",
        "/a/%2e%2E%2Fadmin",
        "/x/../admin#y",
    ] {
        assert!(!allows(&deny, path), "{path}");
    }
    for path in ["/a", "/a/admin", "/?/admin", "/a?x=../admin", "/adm%2569n"] {
        assert!(allows(&deny, path), "{path}");
    }
}

#[test]
fn spelling_a_path_differently_opens_no_allow() {
    let allow = rbac(RbacAction::Allow, path_under("/public"), Principal::Any);
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2Fadmin",
        "/public\\..\\admin",
        "/public/..;/admin",
        "/public/.%2e%5cadmin",
    ] {
        assert!(!allows(&allow, path), "{path}");
    }
    for path in [
        "/public/a%2Fb",
        "/public//a",
        "/x/../public",
        "/%70ublic/a;v=1",
    ] {
        assert!(allows(&allow, path), "{path}");
    }
    let not_admin = Permission::Not(Box::new(path_under("/admin")));
    let allow = rbac(RbacAction::Allow, not_admin, Principal::Any);
    assert!(allows(&allow, "/a") && !allows(&allow, "/a/..%2fadmin"));
}

#[test]
fn rules_under_trial_are_reported_and_never_enforced() {
    let mut trial = rbac(RbacAction::Allow, Permission::Any, Principal::Any);
    trial.shadow = rbac(RbacAction::Deny, path_is("/a"), Principal::Any).rules;
    let headers = HeaderMap::new();
    let verdict = request(&trial, &from(None), &get("/a", &headers));
    assert!(verdict.enforced.allowed);
    assert!(!verdict.shadow.expect("judged").allowed);
    assert!(connection(&trial, &from(None)).shadow.is_some());
}

#[test]
fn log_only_logs() {
    let log = rbac(RbacAction::Log, path_is("/a"), Principal::Any);
    let headers = HeaderMap::new();
    for (path, want) in [("/a", true), ("/b", false)] {
        let ruling = request(&log, &from(None), &get(path, &headers)).enforced;
        assert_eq!((ruling.allowed, ruling.log), (true, want), "{path}");
    }
}

#[test]
fn the_most_specific_filter_holds() {
    let listener = Rbac::default();
    let own = Arc::new(rbac(RbacAction::Deny, Permission::Any, Principal::Any));
    let none = RouteFilters::default();
    let with = |rbac| RouteFilters {
        rbac: Some(rbac),
        ..RouteFilters::default()
    };
    let set = with(Some(Arc::clone(&own)));
    let off = with(None);
    let is_own = |found: Option<&Rbac>| found.is_some_and(|r| std::ptr::eq(r, &*own));
    assert!(effective(&listener, &none, &none).is_some_and(|r| std::ptr::eq(r, &listener)));
    assert!(is_own(effective(&listener, &none, &set)));
    assert!(is_own(effective(&listener, &set, &none)));
    assert!(is_own(effective(&listener, &off, &set)));
    assert!(effective(&listener, &set, &off).is_none());
}

/// Permissions over two atoms: `true`/`false` leaves about the connection, and paths.
fn any_permission() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        Just(Permission::DestinationPort(1)),
        Just(Permission::DestinationPort(8080)),
        Just(path_is("/a")),
        Just(path_is("/b")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Permission::All),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Permission::OneOf),
            inner.prop_map(|p| Permission::Not(Box::new(p))),
        ]
    })
}

fn plain_logic(rule: &Permission, path: &str) -> bool {
    match rule {
        Permission::All(list) => list.iter().all(|p| plain_logic(p, path)),
        Permission::OneOf(list) => list.iter().any(|p| plain_logic(p, path)),
        Permission::Not(inner) => !plain_logic(inner, path),
        Permission::Path(matcher) => matcher.matches(path),
        Permission::DestinationPort(port) => *port == 8080,
        _ => true,
    }
}

proptest! {
    #[test]
    fn requests_follow_plain_logic_and_connections_are_never_freer(rule in any_permission()) {
        let allow = rbac(RbacAction::Allow, rule.clone(), Principal::Any);
        let deny = rbac(RbacAction::Deny, rule.clone(), Principal::Any);
        let opaque_in = connection(&allow, &from(None)).enforced.allowed;
        let opaque_passes = connection(&deny, &from(None)).enforced.allowed;
        for path in ["/a", "/b", "/c"] {
            let want = plain_logic(&rule, path);
            prop_assert_eq!(allows(&allow, path), want);
            prop_assert_eq!(allows(&deny, path), !want);
            // What an opaque connection may, every request may.
            prop_assert!(!opaque_in || want);
            prop_assert!(!opaque_passes || !want);
        }
    }
}
