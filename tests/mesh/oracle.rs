//! Envoy as an oracle: the same resources, the same requests, the same application; what comes back
//! and what the application saw must be the same too, but for differences that are listed here, each
//! with its reason.

use std::{collections::BTreeMap, fs, process::Command};

use outrigger_tests::{
    bin, mesh_test,
    netns::{Mesh, until},
};
use serde_json::{Value, json};

use crate::support::PATIENCE;

const RESOURCES: &str = include_str!("oracle/resources.yaml");
const CASES: &str = include_str!("oracle/cases.json");
const UPSTREAM: &str = include_str!("oracle/upstream.py");
const ASK: &str = include_str!("oracle/ask.py");

/// Headers that are not compared in answers.
const OF_ANSWERS: &[(&str, &str)] = &[
    ("date", "the time"),
    ("server", "their names"),
    ("content-length", "framing; contents are compared"),
    ("transfer-encoding", "framing"),
    ("connection", "framing"),
    ("x-envoy-upstream-service-time", "Envoy's own"),
    ("proxy-status", "ours: says why (RFC 9209)"),
    (
        "retry-after",
        "ours: says when a rate limit lets through again",
    ),
];

/// Headers that are not compared in what the application sees.
const OF_REQUESTS: &[(&str, &str)] = &[
    ("x-request-id", "chance"),
    ("x-forwarded-proto", "Envoy's own; a sidecar adds nothing"),
    ("x-envoy-expected-rq-timeout-ms", "Envoy's own"),
    ("x-envoy-original-path", "Envoy's own"),
    ("x-envoy-original-host", "Envoy's own"),
    ("traceparent", "ours: every request can be followed"),
    (
        "content-length",
        "Envoy says 0 where a client said nothing; contents are compared",
    ),
];

/// Cases that end differently, with what is different and why that is right.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "normal form /app/..%2f..",
        "digits of an encoding are written in capitals (RFC 3986 §6.2.2.1)",
    ),
    (
        "query ?q=a%20b",
        "query parameters are compared as they are meant, not as they are encoded",
    ),
    (
        "grpc",
        "a success by configuration is one for gRPC too, not UNKNOWN",
    ),
    ("grpc with suffix", "as before"),
    (
        "redirect scheme?q=1",
        "a port that the scheme implies is not written (Gateway API)",
    ),
    (
        "redirect port of host",
        "another scheme is not served on the port of this one (Gateway API)",
    ),
    (
        "method BREW",
        "methods are the application's to know (RFC 9110 §16.1)",
    ),
    (
        "continue",
        "the application is asked, not the proxy (RFC 9110 §10.1.1)",
    ),
    ("hop by hop", "te is for one connection (RFC 9110 §10.1.4)"),
    (
        "large path",
        "414 says what is too long (RFC 9110 §15.5.15)",
    ),
    ("two hosts", "there must be one (RFC 9112 §3.2)"),
    ("no version", "malformed, not old"),
    ("http/1.0", "HTTP/1.0 clients are served"),
    (
        "http/3.1",
        "505 is what says that a version is not spoken (RFC 9110 §15.6.6)",
    ),
];

/// Starts the application and a proxy in a pod, and asks all.
fn answers(mesh: &mut Mesh, name: &str, proxy: &Command) -> BTreeMap<String, Value> {
    let pod = mesh.pod(name);
    let mut upstream = Command::new("python3");
    upstream.args(["-u", "upstream.py"]);
    mesh.spawn_in(&pod, "upstream", &upstream);
    mesh.spawn_in(&pod, "proxy", proxy);
    for port in [9001, 9002, 10000, 10001] {
        until("all to listen", PATIENCE, || {
            let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
            let (code, ..) = pod.sh(&format!("bash -c '{probe}'"));
            (code == Some(0)).then_some(())
        });
    }
    let (code, out, err) = pod.sh("python3 ask.py cases.json");
    assert_eq!(code, Some(0), "{name}: {err}");
    out.lines()
        .map(|line| serde_json::from_str(line).expect("a case and its answer"))
        .map(|(name, answer): (String, Value)| (name, answer))
        .collect()
}

fn without(headers: &Value, names: &[(&str, &str)]) -> Value {
    let mut kept: Vec<_> = headers.as_array().into_iter().flatten().collect();
    kept.retain(|pair| names.iter().all(|(name, _)| pair[0] != *name));
    kept.sort_by_key(|pair| pair.to_string());
    json!(kept)
}

/// What of an answer is compared.
fn comparable(answer: &Value) -> Value {
    let mut headers = without(&answer["headers"], OF_ANSWERS);
    let mut seen = answer["seen"].clone();
    // What a proxy says in an answer of its own is its own to word.
    let success = answer["status"]
        .as_str()
        .is_some_and(|s| s.starts_with('2'));
    let own = seen.is_null() && !success && answer["body"] != "short and stout";
    let body = if own {
        json!("…")
    } else {
        answer["body"].clone()
    };
    if own {
        headers = without(&headers, &[("content-type", "with its text")]);
    }
    if let Some(seen) = seen.as_object_mut() {
        seen["headers"] = without(&seen["headers"], OF_REQUESTS);
    }
    json!({"status": answer["status"], "headers": headers, "body": body, "seen": seen})
}

mesh_test!(envoy_answers_the_same, mesh, {
    let files = [
        ("resources.yaml", RESOURCES),
        ("cases.json", CASES),
        ("upstream.py", UPSTREAM),
        ("ask.py", ASK),
    ];
    for (name, text) in files {
        fs::write(mesh.dir.join(name), text).expect("written");
    }
    let mut envoy = Command::new("envoy");
    envoy.args(["-c", "resources.yaml", "--concurrency", "1", "-l", "warn"]);
    envoy.arg("--use-dynamic-base-id");
    let mut own = Command::new(bin("outrigger-proxy"));
    own.args(["run", "--config", "resources.yaml", "--workers", "1"]);
    let envoy = answers(mesh, "envoy", &envoy);
    let own = answers(mesh, "own", &own);
    let wanted: Vec<Value> = serde_json::from_str(CASES).expect("a table");
    assert!(envoy.len() >= wanted.len(), "{} answers", envoy.len());
    assert_eq!(envoy.len(), own.len());
    let mut wrong = Vec::new();
    for (name, theirs) in &envoy {
        let (theirs, ours) = (comparable(theirs), comparable(&own[name]));
        let listed = DIFFERENT.iter().any(|(case, _)| case == name);
        if listed == (theirs == ours) {
            let what = if listed {
                "is no longer different"
            } else {
                "is different"
            };
            wrong.push(format!("{name} {what}\n  Envoy {theirs}\n  ours  {ours}"));
        }
    }
    println!(
        "{} requests, {} known differences",
        envoy.len(),
        DIFFERENT.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
});
