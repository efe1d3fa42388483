//! A client that is made of the words it says.

use super::*;
use crate::{
    translate::ResourceType::{Cluster, Endpoints, Listener, Routes},
    xds::testing::{FakeView, text},
};

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

/// The names of a type that are wanted now; `after` the answer seen last.
fn want(all: &[&str], after: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names(all),
        version_info: after.map(|a| a.version_info.clone()).unwrap_or_default(),
        response_nonce: after.map(|a| a.nonce.clone()).unwrap_or_default(),
        ..DiscoveryRequest::default()
    }
}

fn said(answer: &DiscoveryResponse) -> Vec<String> {
    answer.resources.iter().map(text).collect()
}

fn one(stream: &mut SotwStream, view: &FakeView) -> DiscoveryResponse {
    let mut answers = stream.push(view);
    assert_eq!(answers.len(), 1, "{answers:#?}");
    answers.remove(0)
}

#[test]
fn listeners_and_clusters_are_always_all_of_them() {
    let view = FakeView::default()
        .with(Cluster, "a", Some("1"))
        .with(Cluster, "b", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Cluster, want(&[], None)).unwrap();
    let first = one(&mut stream, &view);
    assert_eq!(said(&first), ["a=1", "b=1"]);
    stream.request(Cluster, want(&[], Some(&first))).unwrap();
    assert_eq!(stream.push(&view.clone().again()), []);
    let view = view.with(Cluster, "a", Some("2"));
    let second = one(&mut stream, &view);
    assert_eq!(said(&second), ["a=2", "b=1"]);
    assert_ne!(first.version_info, second.version_info);
    stream.request(Cluster, want(&[], Some(&second))).unwrap();
    // XD-03: what is missing is gone.
    let view = view.with(Cluster, "b", None);
    assert_eq!(said(&one(&mut stream, &view)), ["a=2"]);
}

#[test]
fn xd_03_routes_and_endpoints_are_only_what_is_new() {
    let view = FakeView::default().with(Endpoints, "a", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Endpoints, want(&["a", "b"], None)).unwrap();
    let first = one(&mut stream, &view);
    assert_eq!(said(&first), ["a=1"]);
    stream
        .request(Endpoints, want(&["a", "b"], Some(&first)))
        .unwrap();
    let view = view.with(Endpoints, "b", Some("1"));
    let second = one(&mut stream, &view);
    assert_eq!(said(&second), ["b=1"]);
    stream
        .request(Endpoints, want(&["a", "b"], Some(&second)))
        .unwrap();
    // Nothing can be said about what went away; when it comes back it is sent.
    let view = view.with(Endpoints, "a", None);
    assert_eq!(stream.push(&view), []);
    let view = view.with(Endpoints, "a", Some("1"));
    assert_eq!(said(&one(&mut stream, &view)), ["a=1"]);
}

#[test]
fn no_names_after_names_are_none() {
    let view = FakeView::default()
        .with(Listener, "a", Some("1"))
        .with(Listener, "b", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Listener, want(&["a"], None)).unwrap();
    let first = one(&mut stream, &view);
    assert_eq!(said(&first), ["a=1"]);
    stream.request(Listener, want(&[], Some(&first))).unwrap();
    assert_eq!(
        stream.push(&view.clone().with(Listener, "a", Some("2"))),
        []
    );
    stream
        .request(Listener, want(&["*"], Some(&first)))
        .unwrap();
    assert_eq!(said(&one(&mut stream, &view)), ["a=1", "b=1"]);
}

#[test]
fn a_request_that_has_not_seen_the_newest_answer_does_not_count() {
    let view = FakeView::default()
        .with(Endpoints, "a", Some("1"))
        .with(Endpoints, "b", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Endpoints, want(&["a"], None)).unwrap();
    let first = one(&mut stream, &view);
    stream
        .request(Endpoints, want(&["a"], Some(&first)))
        .unwrap();
    let view = view.with(Endpoints, "a", Some("2"));
    let second = one(&mut stream, &view);
    stream
        .request(Endpoints, want(&["a", "b"], Some(&first)))
        .unwrap();
    assert_eq!(stream.push(&view), []);
    assert_eq!(stream.settled(), 2, "the second answer was not taken");
    stream
        .request(Endpoints, want(&["a", "b"], Some(&second)))
        .unwrap();
    assert_eq!(said(&one(&mut stream, &view)), ["b=1"]);
}

/// XD-04: a nonce and a version of an earlier stream, maybe of another server, mean nothing.
#[test]
fn xd_04_a_new_stream_is_answered_in_full() {
    let view = FakeView::default().with(Endpoints, "a", Some("1"));
    let mut stream = SotwStream::default();
    let old = DiscoveryResponse {
        version_info: "99".into(),
        nonce: "7".into(),
        ..DiscoveryResponse::default()
    };
    stream.request(Endpoints, want(&["a"], Some(&old))).unwrap();
    let answer = one(&mut stream, &view);
    assert_eq!(said(&answer), ["a=1"]);
    // The same resources have the same version, whichever stream and whenever.
    let mut other = SotwStream::default();
    other.request(Endpoints, want(&["a"], None)).unwrap();
    let again = one(&mut other, &view.again());
    assert_eq!(again.version_info, answer.version_info);
}

#[test]
fn a_name_that_comes_back_is_sent_again() {
    let view = FakeView::default().with(Routes, "a", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Routes, want(&["a"], None)).unwrap();
    let first = one(&mut stream, &view);
    stream.request(Routes, want(&[], Some(&first))).unwrap();
    assert_eq!(stream.push(&view), []);
    stream.request(Routes, want(&["a"], Some(&first))).unwrap();
    assert_eq!(said(&one(&mut stream, &view)), ["a=1"]);
}

/// What goes away is in the answer until everybody who named it has been told.
#[test]
fn clusters_go_last() {
    let old = FakeView::default()
        .with(Cluster, "a", Some("1"))
        .with(Routes, "r", Some("to a"));
    let new = old
        .clone()
        .with(Cluster, "a", None)
        .with(Cluster, "b", Some("1"))
        .with(Routes, "r", Some("to b"));
    let mut stream = SotwStream::default();
    stream.request(Cluster, want(&[], None)).unwrap();
    stream.request(Routes, want(&["r"], None)).unwrap();
    for answer in stream.push(&old) {
        let (kind, names): (_, &[&str]) = match ResourceType::of(&answer.type_url) {
            Some(Routes) => (Routes, &["r"]),
            _ => (Cluster, &[]),
        };
        stream.request(kind, want(names, Some(&answer))).unwrap();
    }
    let answers = stream.push(&new);
    let texts: Vec<_> = answers.iter().map(said).collect();
    assert_eq!(texts, [names(&["a=1", "b=1"]), names(&["r=to b"])]);
    stream
        .request(Cluster, want(&[], Some(&answers[0])))
        .unwrap();
    let last = one(&mut stream, &new);
    assert_eq!(said(&last), ["b=1"]);
    stream.request(Cluster, want(&[], Some(&last))).unwrap();
    stream
        .request(Routes, want(&["r"], Some(&answers[1])))
        .unwrap();
    assert_eq!(stream.push(&new), []);
    assert_eq!(stream.settled(), new.revision());
}

/// envoyproxy/envoy#33607.
#[test]
fn endpoints_are_sent_again_with_their_cluster() {
    let view = FakeView::default()
        .with(Cluster, "a", Some("1"))
        .with(Endpoints, "a", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Cluster, want(&[], None)).unwrap();
    stream.request(Endpoints, want(&["a"], None)).unwrap();
    for (answer, wanted) in stream.push(&view).iter().zip([&[][..], &["a"]]) {
        let kind = ResourceType::of(&answer.type_url).unwrap();
        stream.request(kind, want(wanted, Some(answer))).unwrap();
    }
    let view = view.with(Cluster, "a", Some("2"));
    let texts: Vec<_> = stream.push(&view).iter().map(said).collect();
    assert_eq!(texts, [names(&["a=2"]), names(&["a=1"])]);
}

#[test]
fn a_refusal_is_kept_and_ends_with_the_next_ack() {
    let view = FakeView::default().with(Listener, "a", Some("bad"));
    let mut stream = SotwStream::default();
    stream.request(Listener, want(&[], None)).unwrap();
    let first = one(&mut stream, &view);
    let refusal = DiscoveryRequest {
        error_detail: Some(outrigger_proto::google::rpc::Status {
            message: "no".into(),
            ..Default::default()
        }),
        version_info: String::new(),
        ..want(&[], Some(&first))
    };
    stream.request(Listener, refusal).unwrap();
    assert_eq!(
        stream.push(&view),
        [],
        "the same again would be refused again"
    );
    let expected = Rejected {
        revision: 1,
        reason: "no".into(),
        names: names(&["a"]),
    };
    assert_eq!(
        stream.rejected().collect::<Vec<_>>(),
        [(Listener, &expected)]
    );
    assert_eq!(stream.settled(), 1);
    let view = view.with(Listener, "a", Some("good"));
    let second = one(&mut stream, &view);
    stream.request(Listener, want(&[], Some(&second))).unwrap();
    assert_eq!(stream.rejected().count(), 0);
}

#[test]
fn changes_wait_for_the_answer_to_the_last_ones() {
    let view = FakeView::default().with(Routes, "a", Some("1"));
    let mut stream = SotwStream::default();
    stream.request(Routes, want(&["a"], None)).unwrap();
    let first = one(&mut stream, &view);
    let view = view
        .with(Routes, "a", Some("2"))
        .with(Routes, "a", Some("3"));
    assert_eq!(stream.push(&view), []);
    stream.request(Routes, want(&["a"], Some(&first))).unwrap();
    assert_eq!(said(&one(&mut stream, &view)), ["a=3"]);
}

#[test]
fn xd_08_odd_names_end_the_stream() {
    let mut stream = SotwStream::default();
    let status = stream.request(Listener, want(&[""], None)).unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}
