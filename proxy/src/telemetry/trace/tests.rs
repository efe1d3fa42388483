//! The table of OB-01.

use rand::{SeedableRng, rngs::StdRng};

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const OTHER_TRACE: &str = "aaaabbbbccccddddeeeeffff00001111";
const OWN: SpanId = [7; 8];

type Headers<'a> = &'a [(&'static str, &'a str)];

fn map(headers: Headers<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().expect("a value"));
    }
    map
}

/// What the next hop reads; `{t}` and `{s}` stand for the ids that the proxy chose.
fn out(headers: Headers<'_>, sampling: Option<Fraction>) -> (Option<TraceContext>, Vec<String>) {
    let mut map = map(headers);
    let mut rng = StdRng::seed_from_u64(1);
    let context = TraceContext::extract(&map, sampling, &mut rng);
    if let Some(context) = &context {
        context.inject(&mut map, &OWN);
    }
    let id = context.map(|c| hex(&c.trace_id)).unwrap_or_default();
    let mut lines: Vec<_> = map
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
        .map(|line| {
            if id.is_empty() {
                line
            } else {
                line.replace(&id, "{t}")
            }
        })
        .map(|line| line.replace(&hex(&OWN), "{s}"))
        .collect();
    lines.sort();
    (context, lines)
}

fn parent(text: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{text}")
}

#[test]
fn ob_01_a_valid_context_is_continued_and_every_family_names_the_own_span() {
    let sampled = parent("01");
    let tracestate = "k=".to_owned() + &"v".repeat(600);
    let single = format!("{TRACE}-{SPAN}-1");
    let conflicting = format!("{OTHER_TRACE}-{SPAN}-1");
    let later = format!("42-{TRACE}-{SPAN}-01-what-will-be");
    let multi = [
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-sampled", "1"),
    ];
    let multi_out = ["x-b3-sampled: 1", "x-b3-spanid: {s}", "x-b3-traceid: {t}"];
    let kept = format!("tracestate: {tracestate}");
    let table: &[(&str, Headers<'_>, &[&str])] = &[
        (
            "traceparent only",
            &[("traceparent", &sampled)],
            &["traceparent: 00-{t}-{s}-01"],
        ),
        ("b3 single", &[("b3", &single)], &["b3: {t}-{s}-1"]),
        ("b3 multi", &multi, &multi_out),
        (
            "both agreeing",
            &[("traceparent", &sampled), ("b3", &single)],
            &["b3: {t}-{s}-1", "traceparent: 00-{t}-{s}-01"],
        ),
        (
            "both conflicting",
            &[("b3", &conflicting), ("traceparent", &sampled)],
            &["b3: {t}-{s}-1", "traceparent: 00-{t}-{s}-01"],
        ),
        (
            "b3 twice, conflicting",
            &[
                ("b3", &single),
                ("x-b3-traceid", OTHER_TRACE),
                ("x-b3-spanid", SPAN),
            ],
            &[
                "b3: {t}-{s}-1",
                "x-b3-sampled: 1",
                "x-b3-spanid: {s}",
                "x-b3-traceid: {t}",
            ],
        ),
        (
            "traceparent malformed, b3 good",
            &[("traceparent", "00-xyz"), ("b3", &single)],
            &["b3: {t}-{s}-1", "traceparent: 00-{t}-{s}-01"],
        ),
        (
            "tracestate of 600 bytes",
            &[("traceparent", &sampled), ("tracestate", &tracestate)],
            &["traceparent: 00-{t}-{s}-01", &kept],
        ),
        (
            "a later version",
            &[("traceparent", &later)],
            &["traceparent: 00-{t}-{s}-01"],
        ),
    ];
    continues(table);
}

fn continues(table: &[(&str, Headers<'_>, &[&str])]) {
    for (name, headers, want) in table {
        // No share of new traces, so that only the caller's decision samples.
        let (context, lines) = out(headers, Some(Fraction::NONE));
        let context = context.expect(name);
        assert_eq!(hex(&context.trace_id), TRACE, "{name}");
        assert_eq!(
            context.parent.map(|id| hex(&id)).as_deref(),
            Some(SPAN),
            "{name}"
        );
        assert!(context.sampled, "{name}");
        assert_eq!(lines, *want, "{name}");
    }
}

#[test]
fn ob_01_what_is_malformed_starts_a_new_trace() {
    let valid = parent("01");
    let upper = valid.to_uppercase();
    let table: &[(&str, String)] = &[
        ("malformed", "00-abc-def-01".into()),
        ("version ff", valid.replacen("00", "ff", 1)),
        ("upper-case hex", upper),
        ("zero trace id", format!("00-{}-{SPAN}-01", "0".repeat(32))),
        ("zero span id", format!("00-{TRACE}-{}-01", "0".repeat(16))),
        ("more than version 00 has", format!("{valid}-00")),
        ("short flags", format!("00-{TRACE}-{SPAN}-1")),
        ("no flags", format!("00-{TRACE}-{SPAN}")),
        ("not ascii hex", format!("00-{TRACE}-{SPAN}-0g")),
        ("empty", String::new()),
    ];
    for (name, value) in table {
        let (context, lines) = out(
            &[("traceparent", value), ("tracestate", "k=v")],
            Some(Fraction::ALL),
        );
        let context = context.expect(name);
        assert_ne!(hex(&context.trace_id), TRACE, "{name}");
        assert_eq!(context.parent, None, "{name}");
        assert_eq!(
            lines,
            ["traceparent: 00-{t}-{s}-01"],
            "{name}: no stale tracestate either"
        );
    }
    let (context, lines) = out(
        &[("traceparent", &valid), ("traceparent", &valid)],
        Some(Fraction::ALL),
    );
    assert_eq!(context.expect("a new one").parent, None, "two headers");
    assert_eq!(lines.len(), 1);
}

#[test]
fn ob_01_the_callers_decision_is_respected() {
    let unsampled = parent("00");
    let deferred = format!("{TRACE}-{SPAN}");
    let denied = format!("{TRACE}-{SPAN}-0");
    let debug = format!("{TRACE}-{SPAN}-d");
    let table: &[(&str, Headers<'_>, Fraction, bool, &str)] = &[
        (
            "sampled 0",
            &[("traceparent", &unsampled)],
            Fraction::ALL,
            false,
            "traceparent: 00-{t}-{s}-00",
        ),
        (
            "b3 0",
            &[("b3", &denied)],
            Fraction::ALL,
            false,
            "b3: {t}-{s}-0",
        ),
        (
            "b3 0 alone",
            &[("b3", "0")],
            Fraction::ALL,
            false,
            "b3: {t}-{s}-0",
        ),
        (
            "b3 debug",
            &[("b3", &debug)],
            Fraction::NONE,
            true,
            "b3: {t}-{s}-d",
        ),
        (
            "b3 left to us: yes",
            &[("b3", &deferred)],
            Fraction::ALL,
            true,
            "b3: {t}-{s}-1",
        ),
        (
            "b3 left to us: no",
            &[("b3", &deferred)],
            Fraction::NONE,
            false,
            "b3: {t}-{s}-0",
        ),
        (
            "nothing: yes",
            &[],
            Fraction::ALL,
            true,
            "traceparent: 00-{t}-{s}-01",
        ),
        (
            "nothing: no",
            &[],
            Fraction::NONE,
            false,
            "traceparent: 00-{t}-{s}-00",
        ),
    ];
    for (name, headers, share, sampled, line) in table {
        let (context, lines) = out(headers, Some(*share));
        assert_eq!(context.expect(name).sampled, *sampled, "{name}");
        assert_eq!(lines, [*line], "{name}");
    }
}

#[test]
fn ob_01_without_tracing_here_the_headers_stay_as_they_are() {
    let sampled = parent("01");
    let headers: Headers<'_> = &[("traceparent", &sampled), ("b3", "junk")];
    let (context, lines) = out(headers, None);
    let context = context.expect("the log wants its id");
    assert!(!context.sampled);
    assert_eq!(
        lines,
        [
            "b3: junk".to_owned(),
            format!("traceparent: 00-{{t}}-{SPAN}-01")
        ]
    );
    assert_eq!(out(&[], None).0, None);
    assert_eq!(out(&[("traceparent", "junk")], None).0, None);
}

#[test]
fn b3_with_64_bits_is_the_low_half() {
    let (context, lines) = out(
        &[
            ("x-b3-traceid", SPAN),
            ("x-b3-spanid", SPAN),
            ("x-b3-flags", "1"),
        ],
        Some(Fraction::NONE),
    );
    let context = context.expect("one");
    assert_eq!(hex(&context.trace_id), format!("{}{SPAN}", "0".repeat(16)));
    assert_eq!(
        lines,
        ["x-b3-flags: 1", "x-b3-spanid: {s}", "x-b3-traceid: {t}"]
    );
}
