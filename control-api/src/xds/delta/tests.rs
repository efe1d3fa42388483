//! A proxy that is made of the words it says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    translate::ResourceType::{Cluster, Endpoints, Listener, Routes},
    xds::testing::{FakeView, text},
};

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn subscribe(all: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names(all),
        ..DeltaDiscoveryRequest::default()
    }
}

fn unsubscribe(all: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_unsubscribe: names(all),
        ..DeltaDiscoveryRequest::default()
    }
}

/// A new stream of a proxy that still holds these.
fn resume(all: &[&str], held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let held = held
        .iter()
        .map(|(name, v)| ((*name).to_owned(), (*v).to_owned()));
    DeltaDiscoveryRequest {
        initial_resource_versions: held.collect(),
        ..subscribe(all)
    }
}

fn ack(answer: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: answer.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn nack(answer: &DeltaDiscoveryResponse, why: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        error_detail: Some(outrigger_proto::google::rpc::Status {
            code: 3,
            message: why.into(),
            ..Default::default()
        }),
        ..ack(answer)
    }
}

/// What an answer says: resources, then removals.
fn said(answer: &DeltaDiscoveryResponse) -> (Vec<String>, Vec<String>) {
    let resources = answer
        .resources
        .iter()
        .map(|r| text(r.resource.as_ref().unwrap()));
    (resources.collect(), answer.removed_resources.clone())
}

/// The one answer that is due.
fn one(stream: &mut DeltaStream, view: &FakeView) -> DeltaDiscoveryResponse {
    let mut answers = stream.push(view);
    assert_eq!(answers.len(), 1, "{answers:#?}");
    answers.remove(0)
}

fn silent(stream: &mut DeltaStream, view: &FakeView) {
    assert_eq!(stream.push(view), []);
}

#[test]
fn what_was_sent_is_not_sent_again() {
    let view = FakeView::default().with(Listener, "a", Some("1"));
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&["a"])).unwrap();
    let first = one(&mut stream, &view);
    assert_eq!(said(&first), (names(&["a=1"]), vec![]));
    stream.request(Listener, ack(&first)).unwrap();
    silent(&mut stream, &view);
    // XD-06: a new state that says the same is no news.
    let view = view.again();
    silent(&mut stream, &view);
    assert_eq!((stream.settled(), stream.looked_at()), (2, 2));
    let view = view
        .with(Listener, "a", Some("2"))
        .with(Listener, "b", Some("1"));
    assert_eq!(said(&one(&mut stream, &view)), (names(&["a=2"]), vec![]));
}

#[test]
fn xd_03_what_is_not_there_is_said_and_comes_later() {
    let view = FakeView::default();
    let mut stream = DeltaStream::default();
    stream.request(Endpoints, subscribe(&["a", "b"])).unwrap();
    let first = one(&mut stream, &view);
    assert_eq!(said(&first), (vec![], names(&["a", "b"])));
    stream.request(Endpoints, ack(&first)).unwrap();
    silent(&mut stream, &view);
    let view = view.with(Endpoints, "a", Some("1"));
    assert_eq!(said(&one(&mut stream, &view)), (names(&["a=1"]), vec![]));
    let view = view.with(Endpoints, "a", None);
    assert_eq!(said(&one(&mut stream, &view)), (vec![], names(&["a"])));
    let view = view.with(Endpoints, "a", Some("1"));
    assert_eq!(said(&one(&mut stream, &view)), (names(&["a=1"]), vec![]));
}

#[test]
fn xd_04_a_new_stream_says_what_it_holds_and_gets_the_rest() {
    let view = FakeView::default()
        .with(Cluster, "same", Some("1"))
        .with(Cluster, "changed", Some("2"))
        .with(Cluster, "new", Some("1"));
    let same = view.version(Cluster, "same");
    for wanted in [&["*"][..], &[], &["same", "changed", "new", "gone"]] {
        let mut stream = DeltaStream::default();
        let held = [("same", same.as_str()), ("changed", "zzz"), ("gone", "0")];
        stream.request(Cluster, resume(wanted, &held)).unwrap();
        let answers = stream.push(&view);
        let (resources, removed): (Vec<_>, Vec<_>) = answers.iter().map(said).unzip();
        assert_eq!(
            resources.concat(),
            names(&["changed=2", "new=1"]),
            "{wanted:?}"
        );
        assert_eq!(removed.concat(), names(&["gone"]), "{wanted:?}");
    }
}

/// The proxy no longer wants what it held: that is not ours to follow.
#[test]
fn xd_04_what_is_held_and_not_wanted_is_left_alone() {
    let view = FakeView::default().with(Endpoints, "a", Some("1"));
    let mut stream = DeltaStream::default();
    let held = [("a", "0"), ("b", "0")];
    stream.request(Endpoints, resume(&["a"], &held)).unwrap();
    assert_eq!(said(&one(&mut stream, &view)), (names(&["a=1"]), vec![]));
}

#[test]
fn a_name_that_is_subscribed_again_is_sent_again() {
    let view = FakeView::default().with(Routes, "a", Some("1"));
    let mut stream = DeltaStream::default();
    stream.request(Routes, subscribe(&["a"])).unwrap();
    one(&mut stream, &view);
    stream.request(Routes, unsubscribe(&["a"])).unwrap();
    silent(&mut stream, &view);
    stream.request(Routes, subscribe(&["a"])).unwrap();
    assert_eq!(said(&one(&mut stream, &view)).0, names(&["a=1"]));
    stream.request(Routes, subscribe(&["a"])).unwrap();
    assert_eq!(said(&one(&mut stream, &view)).0, names(&["a=1"]));
}

/// "…the server must answer with the resource or in removed_resources."
#[test]
fn a_name_that_leaves_while_all_are_wanted_is_said_once_more() {
    let view = FakeView::default().with(Cluster, "a", Some("1"));
    let mut stream = DeltaStream::default();
    stream
        .request(Cluster, subscribe(&["*", "a", "b"]))
        .unwrap();
    stream.push(&view);
    stream.request(Cluster, unsubscribe(&["a", "b"])).unwrap();
    let answers = stream.push(&view);
    let (resources, removed): (Vec<_>, Vec<_>) = answers.iter().map(said).unzip();
    assert_eq!(
        (resources.concat(), removed.concat()),
        (names(&["a=1"]), names(&["b"]))
    );
}

#[test]
fn nothing_is_an_answer_for_who_wants_all() {
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&[])).unwrap();
    let answer = one(&mut stream, &FakeView::default());
    assert_eq!(said(&answer), (vec![], vec![]));
    // Only listeners and clusters have an old way to want all.
    let mut stream = DeltaStream::default();
    stream.request(Endpoints, subscribe(&[])).unwrap();
    silent(&mut stream, &FakeView::default());
}

#[test]
fn what_is_named_comes_first_and_goes_last() {
    let old = FakeView::default()
        .with(Cluster, "a", Some("1"))
        .with(Endpoints, "a", Some("1"))
        .with(Routes, "r", Some("to a"));
    let new = old
        .clone()
        .with(Cluster, "a", None)
        .with(Endpoints, "a", None)
        .with(Cluster, "b", Some("1"))
        .with(Endpoints, "b", Some("1"))
        .with(Routes, "r", Some("to b"));
    let mut stream = DeltaStream::default();
    stream.request(Routes, subscribe(&["r"])).unwrap();
    stream.request(Cluster, subscribe(&["a", "b"])).unwrap();
    stream.request(Endpoints, subscribe(&["a", "b"])).unwrap();
    stream.push(&old);
    let order = |answers: &[DeltaDiscoveryResponse]| -> Vec<String> {
        let all = answers.iter().flat_map(|answer| {
            let kind = ResourceType::of(&answer.type_url).unwrap();
            let (new, gone) = said(answer);
            let gone = gone.into_iter().map(|name| format!("{name} gone"));
            let each = new.into_iter().chain(gone);
            each.map(move |what| format!("{kind:?} {what}"))
        });
        all.collect()
    };
    let expected = [
        "Cluster b=1",
        "Endpoints b=1",
        "Routes r=to b",
        "Cluster a gone",
        "Endpoints a gone",
    ];
    assert_eq!(order(&stream.push(&new)), expected);
    // Also when no cluster comes in place of the one that goes.
    let last = new
        .with(Routes, "r", Some("to none"))
        .with(Cluster, "b", None);
    assert_eq!(
        order(&stream.push(&last)),
        ["Routes r=to none", "Cluster b gone"]
    );
}

/// envoyproxy/envoy#33607.
#[test]
fn endpoints_are_sent_again_with_their_cluster() {
    let view = FakeView::default()
        .with(Cluster, "a", Some("1"))
        .with(Endpoints, "a", Some("1"))
        .with(Endpoints, "b", Some("1"));
    let mut stream = DeltaStream::default();
    stream.request(Cluster, subscribe(&["a"])).unwrap();
    stream.request(Endpoints, subscribe(&["a", "b"])).unwrap();
    stream.push(&view);
    let view = view.with(Cluster, "a", Some("2"));
    let answers: Vec<_> = stream.push(&view).iter().map(said).collect();
    assert_eq!(
        answers,
        [(names(&["a=2"]), vec![]), (names(&["a=1"]), vec![])]
    );
}

#[test]
fn a_refusal_stays_until_a_better_version_is_taken() {
    let view =
        FakeView::default()
            .with(Listener, "a", Some("bad"))
            .with(Listener, "b", Some("good"));
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&["a", "b"])).unwrap();
    let first = one(&mut stream, &view);
    assert_eq!(stream.settled(), 1, "not before the answer");
    stream.request(Listener, nack(&first, "a: no")).unwrap();
    silent(&mut stream, &view);
    assert_eq!(stream.settled(), 2, "a refusal is an answer too");
    let refused = |stream: &DeltaStream| -> Vec<Rejected> {
        stream
            .rejected()
            .map(|(_, rejected)| rejected.clone())
            .collect()
    };
    let expected = Rejected {
        revision: 2,
        reason: "a: no".into(),
        names: names(&["a", "b"]),
    };
    assert_eq!(refused(&stream), [expected]);
    let view = view.with(Listener, "a", Some("better"));
    let second = one(&mut stream, &view);
    stream.request(Listener, ack(&second)).unwrap();
    assert_eq!(
        refused(&stream).first().map(|r| r.names.clone()),
        Some(names(&["b"]))
    );
    let view = view.with(Listener, "b", Some("better"));
    let third = one(&mut stream, &view);
    stream.request(Listener, ack(&third)).unwrap();
    assert_eq!(refused(&stream), []);
}

/// The nonce says which answer is meant, and nothing about whether the request counts.
#[test]
fn a_subscription_counts_whatever_its_nonce() {
    let view = FakeView::default().with(Listener, "a", Some("1"));
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&["x"])).unwrap();
    stream.push(&view);
    let odd = DeltaDiscoveryRequest {
        response_nonce: "from another stream".into(),
        ..subscribe(&["a"])
    };
    stream.request(Listener, odd).unwrap();
    assert_eq!(said(&one(&mut stream, &view)).0, names(&["a=1"]));
}

#[test]
fn a_proxy_that_does_not_answer_is_not_sent_more_and_more() {
    let mut view = FakeView::default().with(Listener, "a", Some("0"));
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&["a"])).unwrap();
    let mut sent = Vec::new();
    for i in 0..2 * MAX_IN_FLIGHT {
        sent.extend(stream.push(&view));
        view = view.with(Listener, "a", Some(&format!("{i}")));
    }
    assert_eq!(sent.len(), MAX_IN_FLIGHT);
    assert_eq!(stream.settled(), 0);
    stream.request(Listener, ack(&sent[0])).unwrap();
    let newest = format!("a={}", 2 * MAX_IN_FLIGHT - 1);
    assert_eq!(said(&one(&mut stream, &view)).0, [newest]);
}

#[test]
fn xd_08_odd_names_end_the_stream_and_odd_numbers_of_them_too() {
    let long = "x".repeat(MAX_NAME + 1);
    for odd in ["", long.as_str()] {
        let mut stream = DeltaStream::default();
        let status = stream.request(Listener, subscribe(&[odd])).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
    let mut stream = DeltaStream::default();
    let many: Vec<String> = (0..=MAX_NAMES).map(|i| i.to_string()).collect();
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: many,
        ..DeltaDiscoveryRequest::default()
    };
    let status = stream.request(Listener, request).unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    // A name twice is a name.
    let view = FakeView::default().with(Listener, "a", Some("1"));
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&["a", "a"])).unwrap();
    assert_eq!(said(&one(&mut stream, &view)).0, names(&["a=1"]));
}

#[test]
fn much_is_sent_in_pieces() {
    let big = "x".repeat(MAX_ANSWER / 2);
    let view = FakeView::default()
        .with(Listener, "a", Some(&big))
        .with(Listener, "b", Some(&big))
        .with(Listener, "c", Some(&big));
    let mut stream = DeltaStream::default();
    stream.request(Listener, subscribe(&["*"])).unwrap();
    let sizes: Vec<_> = stream
        .push(&view)
        .iter()
        .map(prost::Message::encoded_len)
        .collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Set(u8, u8),
    Remove(u8),
    Subscribe(u8),
    Unsubscribe(u8),
    All(bool),
    Take,
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4_u8, 0..3_u8).prop_map(|(name, text)| Step::Set(name, text)),
        (0..4_u8).prop_map(Step::Remove),
        (0..4_u8).prop_map(Step::Subscribe),
        (0..4_u8).prop_map(Step::Unsubscribe),
        any::<bool>().prop_map(Step::All),
        Just(Step::Take),
        Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 1..40)
}

/// A proxy as the specification has it.
#[derive(Default)]
struct Client {
    all: bool,
    wanted: BTreeSet<String>,
    has: BTreeMap<String, (String, String)>,
}

impl Client {
    fn take(&mut self, stream: &mut DeltaStream, view: &FakeView) {
        for answer in stream.push(view) {
            for resource in &answer.resources {
                let text = text(resource.resource.as_ref().unwrap());
                let value = (text, resource.version.clone());
                self.has.insert(resource.name.clone(), value);
            }
            for name in &answer.removed_resources {
                self.has.remove(name);
            }
            stream.request(Cluster, ack(&answer)).unwrap();
        }
    }

    /// What it ought to have.
    fn due(&self, view: &FakeView) -> BTreeMap<String, String> {
        let mut names = self.wanted.clone();
        if self.all {
            names.extend(view.names(Cluster));
        }
        let each = names.into_iter();
        each.filter_map(|name| {
            let text = text(&view.get(Cluster, &name)?.resource);
            Some((name, text))
        })
        .collect()
    }
}

proptest! {
    /// However worlds, subscriptions and streams change: after everything was sent and taken, the
    /// proxy has what it wants, as it is, and nothing that is gone.
    #[test]
    fn a_proxy_ends_up_with_what_it_wants(steps in steps()) {
        let mut view = FakeView::default();
        let (mut stream, mut client) = (DeltaStream::default(), Client::default());
        client.wanted.insert("start".into());
        stream.request(Cluster, subscribe(&["start"])).unwrap();
        for step in steps {
            match step {
                Step::Set(n, t) => {
                    view = view.with(Cluster, &n.to_string(), Some(&t.to_string()));
                }
                Step::Remove(n) => view = view.with(Cluster, &n.to_string(), None),
                Step::Subscribe(n) => {
                    client.wanted.insert(n.to_string());
                    stream.request(Cluster, subscribe(&[&n.to_string()])).unwrap();
                }
                Step::Unsubscribe(n) => {
                    client.wanted.remove(&n.to_string());
                    if !client.all {
                        client.has.remove(&n.to_string());
                    }
                    stream.request(Cluster, unsubscribe(&[&n.to_string()])).unwrap();
                }
                Step::All(true) => {
                    client.all = true;
                    stream.request(Cluster, subscribe(&["*"])).unwrap();
                }
                Step::All(false) => {
                    client.all = false;
                    let wanted = client.wanted.clone();
                    client.has.retain(|name, _| wanted.contains(name));
                    stream.request(Cluster, unsubscribe(&["*"])).unwrap();
                }
                Step::Take => client.take(&mut stream, &view),
                Step::Reconnect => {
                    stream = DeltaStream::default();
                    let mut wanted: Vec<_> = client.wanted.iter().map(String::as_str).collect();
                    if client.all {
                        wanted.push("*");
                    }
                    let held = client.has.iter().map(|(n, (_, v))| (n.as_str(), v.as_str()));
                    let held: Vec<_> = held.collect();
                    stream.request(Cluster, resume(&wanted, &held)).unwrap();
                }
            }
        }
        client.take(&mut stream, &view);
        let has: BTreeMap<_, _> =
            client.has.iter().map(|(name, (text, _))| (name.clone(), text.clone())).collect();
        prop_assert_eq!(has, client.due(&view));
        prop_assert_eq!(stream.push(&view), vec![]);
        prop_assert_eq!(stream.settled(), view.revision());
    }
}
