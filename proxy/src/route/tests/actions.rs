//! Rewrites, redirects, direct responses and mirrors.

use http::HeaderValue;

use super::*;
use crate::config::{
    route::{HostRewrite, Mirror, PathRewrite, Redirect, RedirectPath, WeightedCluster},
    units::Fraction,
};

fn with_rewrite(rewrite: PathRewrite) -> Action {
    let mut forward = forward(Target::Cluster("c".into()));
    forward.path_rewrite = Some(rewrite);
    Action::Forward(Box::new(forward))
}

fn rewritten(matcher: PathMatch, new: &str, path: &str) -> String {
    let action = with_rewrite(PathRewrite::Prefix(new.into()));
    let path = hit(matcher, action, path).rewritten_path(path);
    path.expect("rewritten").to_string()
}

/// The table of Gateway API `HTTPPathModifier.replacePrefixMatch`.
#[test]
fn prefixes_are_replaced_as_the_gateway_api_says() {
    for (path, prefix, new, want) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/foo/bar?q=/foo", "/foo", "/xyz", "/xyz/bar?q=/foo"),
        ("/foo?q", "/foo", "", "/?q"),
    ] {
        assert_eq!(
            rewritten(element(prefix), new, path),
            want,
            "{path} {prefix} {new}"
        );
    }
}

#[test]
fn plain_prefixes_paste_inside_an_element_and_join_at_its_end() {
    for (path, text, new, want) in [
        ("/foobar", "/foo", "/xyz", "/xyzbar"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/bar", "/foo/", "/", "/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
    ] {
        assert_eq!(
            rewritten(prefix(text), new, path),
            want,
            "{path} {text} {new}"
        );
    }
    assert_eq!(rewritten(exact("/foo"), "/xyz", "/foo?q"), "/xyz?q");
    let fold = PathMatch::Prefix {
        text: "/foo".into(),
        ignore_case: true,
    };
    assert_eq!(rewritten(fold, "/xyz", "/FOO/bar"), "/xyz/bar");
}

fn by_regex(pattern: &str, substitution: &str, path: &str) -> Option<String> {
    let action = with_rewrite(PathRewrite::Regex {
        pattern: regex::Regex::new(pattern).expect("regex"),
        substitution: substitution.into(),
    });
    let path = hit(prefix("/"), action, path).rewritten_path(path);
    path.map(|path| path.to_string())
}

#[test]
fn regex_rewrites_replace_every_match_of_the_path() {
    for (pattern, substitution, path, want) in [
        (
            "^/service/([^/]+)(/.*)$",
            "${2}/instance/${1}",
            "/service/foo/v1/api",
            "/v1/api/instance/foo",
        ),
        ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
        ("/one", "/-${0}-", "/one?one", "/-/one-?one"),
        ("^/.*$", "/full", "/a/b?q=1", "/full?q=1"),
        ("(a)|(b)", "[${2}]", "/a", "/[]"),
        ("^/", "x", "/a", "/xa"),
        ("a", "$${1}", "/a", "/${1}"),
    ] {
        assert_eq!(
            by_regex(pattern, substitution, path).as_deref(),
            Some(want),
            "{pattern}"
        );
    }
}

#[test]
fn a_rewrite_that_explodes_is_not_done() {
    let long = format!("/{}", "a".repeat(9_000));
    assert_eq!(by_regex("a", "aaaaaaaaaaaaaaaa", &long), None);
    assert_eq!(by_regex("^/a.*$", "/\u{0} ", "/a"), None, "not a path");
}

fn redirect(redirect: Redirect, matcher: PathMatch, authority: &str, path: &str) -> String {
    let status = redirect.status;
    let hit = hit(matcher, Action::Redirect(Box::new(redirect)), path);
    let headers = HeaderMap::new();
    let mut request = view(path, &headers);
    request.authority = authority;
    let answer = hit.answer(&request).expect("an answer");
    assert_eq!(answer.status, status);
    assert!(hit.cluster.is_none() && hit.forward().is_none());
    let location = answer.location.expect("a location");
    location.to_str().expect("ascii").to_owned()
}

fn found() -> Redirect {
    Redirect {
        status: StatusCode::FOUND,
        scheme: None,
        host: None,
        port: None,
        path: None,
        strip_query: false,
    }
}

#[test]
fn redirects_name_scheme_host_and_port_as_the_gateway_api_tests_expect() {
    let to = |scheme: Option<&str>, host: Option<&str>, port: Option<u16>| Redirect {
        scheme: scheme.map(Into::into),
        host: host.map(Into::into),
        port,
        ..found()
    };
    for (authority, redirection, want) in [
        (
            "echo",
            to(None, Some("example.org"), None),
            "http://example.org/p?q",
        ),
        ("echo", to(Some("https"), None, None), "https://echo/p?q"),
        (
            "echo",
            to(Some("https"), Some("example.org"), None),
            "https://example.org/p?q",
        ),
        ("echo:80", to(Some("https"), None, None), "https://echo/p?q"),
        (
            "echo:8080",
            to(Some("https"), None, None),
            "https://echo/p?q",
        ),
        ("echo:8080", to(None, None, None), "http://echo:8080/p?q"),
        ("echo:80", to(None, None, None), "http://echo/p?q"),
        ("echo", to(None, None, Some(80)), "http://echo/p?q"),
        ("echo", to(None, None, Some(8083)), "http://echo:8083/p?q"),
        (
            "echo:80",
            to(None, Some("example.org"), Some(8083)),
            "http://example.org:8083/p?q",
        ),
        (
            "echo",
            to(Some("https"), None, Some(443)),
            "https://echo/p?q",
        ),
        (
            "echo",
            to(Some("https"), None, Some(8443)),
            "https://echo:8443/p?q",
        ),
        (
            "echo",
            to(Some("https"), None, Some(80)),
            "https://echo:80/p?q",
        ),
        (
            "[::1]:8080",
            to(None, None, Some(81)),
            "http://[::1]:81/p?q",
        ),
    ] {
        let shown = format!("{authority} {redirection:?}");
        assert_eq!(
            redirect(redirection, prefix("/"), authority, "/p?q"),
            want,
            "{shown}"
        );
    }
}

#[test]
fn redirects_change_the_path() {
    let to = |path, strip_query| Redirect {
        path: Some(path),
        strip_query,
        ..found()
    };
    let regex = RedirectPath::Regex {
        pattern: regex::Regex::new("^/a/(.*)$").expect("regex"),
        substitution: "/${1}/a".into(),
    };
    for (path, redirection, want) in [
        (
            "/original-prefix/lemon",
            to(RedirectPath::Prefix("/new".into()), false),
            "/new/lemon",
        ),
        (
            "/a/b?q",
            to(RedirectPath::Full("/full".into()), false),
            "/full?q",
        ),
        (
            "/a/b?q",
            to(RedirectPath::Full("/full".into()), true),
            "/full",
        ),
        (
            "/a/b?q",
            to(RedirectPath::Full("/full?own".into()), false),
            "/full?own",
        ),
        (
            "/a/b?q",
            to(RedirectPath::Full("full".into()), true),
            "/full",
        ),
        ("/a/b?q", to(regex, false), "/b/a?q"),
    ] {
        let matcher = match path {
            "/a/b?q" => element("/a"),
            _ => element("/original-prefix"),
        };
        let want = format!("http://echo{want}");
        assert_eq!(redirect(redirection, matcher, "echo", path), want, "{path}");
    }
}

#[test]
fn every_redirect_status_is_kept() {
    for status in [301, 302, 303, 307, 308] {
        let status = StatusCode::from_u16(status).expect("status");
        redirect(Redirect { status, ..found() }, prefix("/"), "a", "/");
    }
}

#[test]
fn a_direct_response_answers_by_itself() {
    let hit = hit(
        prefix("/"),
        Action::Respond(Box::new(DirectResponse {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: bytes::Bytes::from_static(b"no backend"),
        })),
        "/",
    );
    let headers = HeaderMap::new();
    let answer = hit.answer(&view("/", &headers)).expect("an answer");
    assert_eq!(answer.status, 500);
    assert_eq!(&*answer.body, b"no backend");
    assert_eq!((answer.location, hit.cluster), (None, None));
}

#[test]
fn hosts_are_rewritten_by_the_most_specific_rule() {
    let literal = |text| Some(HostRewrite::Literal(HeaderValue::from_static(text)));
    let run = |route_rule, arm_rule, headers: &HeaderMap| {
        let mut forward = forward(Target::Weighted(vec![WeightedCluster {
            name: "c".into(),
            weight: 1,
            headers: HeaderMods::default(),
            host_rewrite: arm_rule,
        }]));
        forward.host_rewrite = route_rule;
        hit(prefix("/"), Action::Forward(Box::new(forward)), "/").host_header(headers)
    };
    let set = |text| HostHeader::Set(HeaderValue::from_static(text));
    let mut headers = HeaderMap::new();
    let by_header = || Some(HostRewrite::Header("x-host".parse().expect("name")));
    assert_eq!(run(None, None, &headers), HostHeader::Keep);
    assert_eq!(run(literal("route"), None, &headers), set("route"));
    assert_eq!(run(literal("route"), literal("arm"), &headers), set("arm"));
    assert_eq!(
        run(Some(HostRewrite::Endpoint), None, &headers),
        HostHeader::OfEndpoint
    );
    assert_eq!(run(by_header(), None, &headers), HostHeader::Keep);
    headers.insert("x-host", HeaderValue::from_static("there"));
    assert_eq!(run(by_header(), None, &headers), set("there"));
}

#[test]
fn mirrors_are_drawn_by_their_share() {
    let mirror = |name: &str, percent, keep_host| Mirror {
        cluster: name.into(),
        fraction: Fraction::new(percent, 100),
        keep_host,
    };
    let mut forward = forward(Target::Cluster("c".into()));
    forward.mirrors = vec![
        mirror("all", 100, false),
        mirror("none", 0, false),
        mirror("half", 50, true),
    ];
    let hit = hit(prefix("/"), Action::Forward(Box::new(forward)), "/");
    let mut rng = rng();
    let mut counts = [0; 3];
    for _ in 0..1_000 {
        for mirror in hit.mirrors(&mut rng) {
            match mirror.cluster.as_str() {
                "all" => counts[0] += 1,
                "none" => counts[1] += 1,
                _ => counts[2] += 1,
            }
        }
    }
    assert!(counts[0] == 1_000 && counts[1] == 0, "{counts:?}");
    assert!((400..600).contains(&counts[2]), "{counts:?}");
    let shadow = |mirror: &Mirror, host| {
        mirror
            .host(host)
            .map(|h| h.to_str().expect("ascii").to_owned())
    };
    let first = mirror("m", 100, false);
    assert_eq!(shadow(&first, "a.test").as_deref(), Some("a.test-shadow"));
    assert_eq!(
        shadow(&first, "a.test:80").as_deref(),
        Some("a.test-shadow:80")
    );
    assert_eq!(shadow(&mirror("m", 100, true), "a.test"), None);
}
