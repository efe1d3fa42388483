//! Tests of the module above.

mod lives;
mod on_demand;

use tokio::sync::oneshot;

use super::*;
use crate::xds::{
    demand::{Demand, Demanded},
    protocol::Body,
    testing::{eds_cluster, endpoints, rds_listener, routes, tcp_listener},
};

const IDLE: Duration = Duration::from_secs(3600);

struct Rig {
    client: Client,
    demand: Demand,
    asked: tokio::sync::mpsc::Receiver<Ask>,
    published: Arc<Mutex<Vec<Arc<Snapshot>>>>,
    stats: Arc<Stats>,
    nonce: u32,
}

impl Rig {
    fn new(variant: Variant, subscription: &Subscription) -> Self {
        let (destinations, demand, asked) = Destinations::new(IDLE);
        let published = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&published);
        let publish: Publish = Arc::new(move |snapshot| {
            sink.lock().expect("not poisoned").push(snapshot);
        });
        let stats = Arc::new(Stats::default());
        let clock: WallClock = Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let client = Client::new(
            variant,
            subscription,
            destinations,
            Arc::clone(&stats),
            publish,
            clock,
        );
        Self {
            client,
            demand,
            asked,
            published,
            stats,
            nonce: 0,
        }
    }

    fn named(names: &[&str]) -> Self {
        let names = names.iter().map(|&name| name.into()).collect();
        let mut rig = Self::new(Variant::Delta, &Subscription::Named(names));
        rig.client.connected(Instant::now());
        rig
    }

    fn everything(variant: Variant) -> Self {
        let mut rig = Self::new(variant, &Subscription::Everything);
        rig.client.connected(Instant::now());
        rig
    }

    /// All requests that are due.
    fn requests(&mut self) -> Vec<Request> {
        let mut all = Vec::new();
        while let Some(request) = self.client.next_request(Instant::now()) {
            all.push(request);
            assert!(all.len() < 50, "requests without end: {all:?}");
        }
        all
    }

    /// Names newly subscribed by the requests that are due.
    fn subscribed(&mut self, kind: Kind) -> Vec<String> {
        let mut out = Vec::new();
        for request in self.requests() {
            if let (true, Body::Delta { subscribe, .. }) = (request.kind == kind, request.body) {
                out.extend(subscribe.iter().map(ToString::to_string));
            }
        }
        out
    }

    fn send(&mut self, kind: Kind, resources: &[(&str, &str, Bytes)], removed: &[&str]) {
        self.nonce += 1;
        let answer = Answer {
            kind,
            nonce: self.nonce.to_string(),
            version: self.nonce.to_string(),
            resources: resources
                .iter()
                .map(|(name, version, raw)| Received {
                    name: (*name).to_owned(),
                    version: (*version).to_owned(),
                    ttl: None,
                    body: Some((kind.type_url().to_owned(), raw.clone())),
                })
                .collect(),
            removed: removed.iter().map(|&name| name.to_owned()).collect(),
            errors: Vec::new(),
        };
        self.client.answer(answer, Instant::now());
    }

    /// The error of the reply to the last answer of a type.
    fn reply(&mut self, kind: Kind) -> Option<String> {
        let nonce = self.nonce.to_string();
        let all = self.requests();
        let reply = all.iter().find(|r| r.kind == kind && r.nonce == nonce);
        reply.expect("a reply").error.clone()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.client.assembler.snapshot())
    }

    fn ask(&mut self, address: &str) -> oneshot::Receiver<Demanded> {
        let (answer, heard) = oneshot::channel();
        let address = address.parse().expect("an address");
        self.client.ask(Ask { address, answer }, Instant::now());
        heard
    }

    /// A destination with its cluster and endpoints.
    fn serve(&mut self, address: &str, cluster: &str) {
        let name = format!("outbound/{address}");
        self.send(
            Kind::Listener,
            &[(&name, "1", tcp_listener(address, cluster))],
            &[],
        );
        self.send(Kind::Cluster, &[(cluster, "1", eds_cluster(cluster))], &[]);
        let members = endpoints(cluster, &["10.9.9.9:80"]);
        self.send(Kind::Endpoints, &[(cluster, "1", members)], &[]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_resource_names_is_subscribed_and_used_when_all_is_there() {
    let mut rig = Rig::named(&["in"]);
    assert_eq!(rig.subscribed(Kind::Listener), ["in"]);
    rig.send(
        Kind::Listener,
        &[("in", "1", rds_listener("in", "10.0.0.1:80", "r"))],
        &[],
    );
    assert_eq!(rig.subscribed(Kind::Route), ["r"]);
    rig.send(Kind::Route, &[("r", "1", routes("r", "c"))], &[]);
    assert_eq!(rig.subscribed(Kind::Cluster), ["c"]);
    rig.send(Kind::Cluster, &[("c", "1", eds_cluster("c"))], &[]);
    assert_eq!(rig.subscribed(Kind::Endpoints), ["c"]);
    assert!(rig.snapshot().listeners.is_empty(), "not closed yet");
    rig.send(
        Kind::Endpoints,
        &[("c", "1", endpoints("c", &["10.1.0.1:1"]))],
        &[],
    );
    let snapshot = rig.snapshot();
    assert!(snapshot.listeners.contains_key("in"));
    assert!(snapshot.routes.contains_key("r"));
    assert!(snapshot.clusters.contains_key("c") && snapshot.endpoints.contains_key("c"));
    let destination = "10.0.0.1:80".parse().expect("an address");
    assert!(snapshot.by_destination.contains_key(&destination));
    assert_eq!(rig.reply(Kind::Endpoints), None);
}

#[tokio::test(start_paused = true)]
async fn a_changed_route_is_used_only_when_its_new_cluster_is_there() {
    let mut rig = Rig::named(&["in"]);
    rig.send(
        Kind::Listener,
        &[("in", "1", rds_listener("in", "10.0.0.1:80", "r"))],
        &[],
    );
    rig.send(Kind::Route, &[("r", "1", routes("r", "old"))], &[]);
    rig.send(Kind::Cluster, &[("old", "1", eds_cluster("old"))], &[]);
    rig.send(
        Kind::Endpoints,
        &[("old", "1", endpoints("old", &["10.1.0.1:1"]))],
        &[],
    );
    let before = rig.snapshot();
    rig.send(Kind::Route, &[("r", "2", routes("r", "new"))], &[]);
    assert!(rig.subscribed(Kind::Cluster).contains(&"new".to_owned()));
    rig.send(Kind::Cluster, &[("new", "1", eds_cluster("new"))], &[]);
    let meanwhile = rig.snapshot();
    assert!(Arc::ptr_eq(&meanwhile.routes["r"], &before.routes["r"]));
    assert!(meanwhile.clusters.contains_key("old"));
    rig.send(
        Kind::Endpoints,
        &[("new", "1", endpoints("new", &["10.1.0.2:1"]))],
        &[],
    );
    let after = rig.snapshot();
    assert!(!Arc::ptr_eq(&after.routes["r"], &before.routes["r"]));
    assert!(after.clusters.contains_key("new"));
    assert!(
        !after.clusters.contains_key("old"),
        "nothing names it any more"
    );
    let mut left = Vec::new();
    for request in rig.requests() {
        if let Body::Delta { unsubscribe, .. } = request.body {
            left.extend(unsubscribe.into_iter().map(|name| (request.kind, name)));
        }
    }
    assert!(left.contains(&(Kind::Cluster, "old".into())));
}

#[tokio::test(start_paused = true)]
async fn a_missing_cluster_leaves_a_gap_instead_of_a_wait() {
    let mut rig = Rig::named(&["in"]);
    rig.send(
        Kind::Listener,
        &[("in", "1", rds_listener("in", "10.0.0.1:80", "r"))],
        &[],
    );
    rig.send(Kind::Route, &[("r", "1", routes("r", "none"))], &[]);
    assert!(rig.snapshot().listeners.is_empty());
    rig.send(Kind::Cluster, &[], &["none"]);
    let snapshot = rig.snapshot();
    assert!(snapshot.listeners.contains_key("in") && snapshot.clusters.is_empty());
    // A later creation still arrives (XD-03).
    rig.send(Kind::Cluster, &[("none", "1", eds_cluster("none"))], &[]);
    rig.send(
        Kind::Endpoints,
        &[("none", "1", endpoints("none", &["10.1.0.2:1"]))],
        &[],
    );
    assert!(rig.snapshot().clusters.contains_key("none"));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_wait_after_fifteen_seconds_once_the_server_has_spoken() {
    let mut rig = Rig::named(&["in"]);
    rig.requests();
    rig.send(
        Kind::Listener,
        &[("in", "1", tcp_listener("10.0.0.1:80", "c"))],
        &[],
    );
    // The listener is called "in" outside and otherwise inside.
    assert!(
        rig.reply(Kind::Listener)
            .is_some_and(|why| why.contains("inside"))
    );
    rig.send(
        Kind::Listener,
        &[("in", "2", rds_listener("in", "10.0.0.1:80", "r"))],
        &[],
    );
    rig.requests();
    let due = rig.client.deadline().expect("waits for r");
    assert_eq!(due, Instant::now() + crate::xds::NOT_THERE_AFTER);
    tokio::time::advance(crate::xds::NOT_THERE_AFTER).await;
    rig.client.timer(Instant::now());
    let snapshot = rig.snapshot();
    assert!(snapshot.listeners.contains_key("in") && snapshot.routes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_bad_resource_harms_no_good_one_and_keeps_its_last_version() {
    let mut rig = Rig::everything(Variant::Delta);
    let good = |name: &str| eds_cluster(name);
    rig.send(
        Kind::Cluster,
        &[("a", "1", good("a")), ("b", "1", good("b"))],
        &[],
    );
    assert_eq!(rig.reply(Kind::Cluster), None);
    for name in ["a", "b"] {
        rig.send(
            Kind::Endpoints,
            &[(name, "1", endpoints(name, &["10.1.0.1:1"]))],
            &[],
        );
    }
    let before = rig.snapshot();
    let bad = Bytes::from_static(b"\x0a\x01a\x20");
    let better = crate::xds::testing::resource(
        Kind::Cluster,
        "{name: b, type: EDS, connect_timeout: 1s, eds_cluster_config: {eds_config: {ads: {}}}}",
    );
    rig.send(Kind::Cluster, &[("a", "2", bad), ("b", "2", better)], &[]);
    let why = rig.reply(Kind::Cluster).expect("a NACK");
    assert!(why.starts_with("cluster"), "{why}");
    let after = rig.snapshot();
    assert!(Arc::ptr_eq(&after.clusters["a"], &before.clusters["a"]));
    assert_eq!(after.clusters["b"].connect_timeout, Duration::from_secs(1));
    assert_eq!(rig.stats.updates(Kind::Cluster, UpdateResult::Rejected), 1);
    // NACK, then fixed.
    rig.send(Kind::Cluster, &[("a", "3", good("a"))], &[]);
    assert_eq!(rig.reply(Kind::Cluster), None);
    let entry = lock(&rig.client.store);
    assert!(
        entry
            .get(Kind::Cluster, "a")
            .is_some_and(|one| one.rejected.is_none())
    );
}

#[tokio::test(start_paused = true)]
async fn xd_08_duplicate_and_nameless_resources_are_refused_by_name() {
    let mut rig = Rig::everything(Variant::Delta);
    let twice = [("a", "1", eds_cluster("a")), ("a", "1", eds_cluster("a"))];
    rig.send(Kind::Cluster, &twice, &[]);
    let why = rig.reply(Kind::Cluster).expect("a NACK");
    assert!(why.contains("\"a\"") && why.contains("twice"), "{why}");
    rig.send(Kind::Cluster, &[("", "1", Bytes::new())], &[]);
    assert!(
        rig.reply(Kind::Cluster)
            .is_some_and(|why| why.contains("without a name"))
    );
}

#[tokio::test(start_paused = true)]
async fn xd_03_what_is_missing_means_removal_only_where_answers_are_whole() {
    let mut rig = Rig::everything(Variant::Sotw);
    let two = [("", "", eds_cluster("a")), ("", "", eds_cluster("b"))];
    rig.send(Kind::Cluster, &two, &[]);
    let members = |name: &str| endpoints(name, &["10.1.0.1:1"]);
    rig.send(
        Kind::Endpoints,
        &[("", "", members("a")), ("", "", members("b"))],
        &[],
    );
    assert_eq!(rig.snapshot().clusters.len(), 2);
    rig.send(
        Kind::Endpoints,
        &[("", "", endpoints("a", &["10.1.0.7:1"]))],
        &[],
    );
    assert_eq!(rig.snapshot().endpoints.len(), 2, "b is still held");
    rig.send(Kind::Cluster, &[("", "", eds_cluster("a"))], &[]);
    let snapshot = rig.snapshot();
    assert!(snapshot.clusters.contains_key("a") && !snapshot.clusters.contains_key("b"));
    rig.send(Kind::Cluster, &two, &[]);
    rig.send(Kind::Endpoints, &[("", "", members("b"))], &[]);
    assert!(
        rig.snapshot().clusters.contains_key("b"),
        "a later creation arrives"
    );
}

#[tokio::test(start_paused = true)]
async fn xd_03_an_incremental_answer_removes_only_what_it_names() {
    let mut rig = Rig::everything(Variant::Delta);
    for name in ["a", "b"] {
        rig.send(Kind::Cluster, &[(name, "1", eds_cluster(name))], &[]);
        rig.send(
            Kind::Endpoints,
            &[(name, "1", endpoints(name, &["10.1.0.1:1"]))],
            &[],
        );
    }
    rig.send(Kind::Cluster, &[], &[]);
    assert_eq!(rig.snapshot().clusters.len(), 2);
    rig.send(Kind::Cluster, &[], &["a", "never-heard-of"]);
    assert_eq!(rig.snapshot().clusters.len(), 1);
    let store = lock(&rig.client.store);
    assert_eq!(store.all(Kind::Cluster).count(), 1, "names do not pile up");
}

#[tokio::test(start_paused = true)]
async fn lb_02_an_emptied_first_answer_after_a_reconnect_counts_only_after_its_grace() {
    for late in [false, true] {
        let mut rig = Rig::everything(Variant::Delta);
        for name in ["a", "b"] {
            rig.send(Kind::Cluster, &[(name, "1", eds_cluster(name))], &[]);
            rig.send(
                Kind::Endpoints,
                &[(name, "1", endpoints(name, &["10.1.0.1:1"]))],
                &[],
            );
        }
        let before = rig.snapshot();
        rig.client.disconnected();
        tokio::time::advance(Duration::from_secs(600)).await;
        rig.client.timer(Instant::now());
        rig.client.connected(Instant::now());
        rig.send(Kind::Cluster, &[], &["a"]);
        rig.send(Kind::Endpoints, &[("b", "9", endpoints("b", &[]))], &[]);
        assert!(Arc::ptr_eq(&rig.snapshot(), &before), "nothing changed yet");
        if late {
            tokio::time::advance(GRACE).await;
            rig.client.timer(Instant::now());
            let after = rig.snapshot();
            assert!(
                !after.clusters.contains_key("a"),
                "XD-04: not there for ever"
            );
            assert!(after.endpoints["b"].priorities.is_empty());
        } else {
            rig.send(Kind::Cluster, &[("a", "1", eds_cluster("a"))], &[]);
            rig.send(
                Kind::Endpoints,
                &[("b", "10", endpoints("b", &["10.1.0.1:1"]))],
                &[],
            );
            tokio::time::advance(GRACE).await;
            rig.client.timer(Instant::now());
            let after = rig.snapshot();
            assert!(Arc::ptr_eq(&after.clusters["a"], &before.clusters["a"]));
            assert!(Arc::ptr_eq(&after.endpoints["b"], &before.endpoints["b"]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn xd_04_later_answers_of_the_same_stream_remove_at_once() {
    let mut rig = Rig::everything(Variant::Delta);
    rig.send(Kind::Cluster, &[("a", "1", eds_cluster("a"))], &[]);
    rig.client.disconnected();
    rig.client.connected(Instant::now());
    rig.send(Kind::Cluster, &[("b", "1", eds_cluster("b"))], &[]);
    // What this stream gave, it takes at once; what is from before, after it has settled.
    rig.send(Kind::Cluster, &[], &["a", "b"]);
    assert!(lock(&rig.client.store).get(Kind::Cluster, "b").is_none());
    assert!(lock(&rig.client.store).held(Kind::Cluster, "a").is_some());
    tokio::time::advance(SETTLING).await;
    rig.send(Kind::Cluster, &[], &["a"]);
    assert!(lock(&rig.client.store).get(Kind::Cluster, "a").is_none());
}

#[tokio::test(start_paused = true)]
async fn xd_06_equal_pushes_change_no_pointer_and_publish_nothing() {
    let mut rig = Rig::everything(Variant::Delta);
    rig.send(Kind::Cluster, &[("a", "1", eds_cluster("a"))], &[]);
    let one = endpoints("a", &["10.1.0.1:1", "10.1.0.2:1"]);
    let shuffled = endpoints("a", &["10.1.0.2:1", "10.1.0.1:1"]);
    rig.send(Kind::Endpoints, &[("a", "1", one.clone())], &[]);
    let before = rig.snapshot();
    let count = rig.published.lock().expect("not poisoned").len();
    for n in 0..100 {
        let members = if n % 2 == 0 { &shuffled } else { &one };
        rig.send(Kind::Endpoints, &[("a", "2", members.clone())], &[]);
        rig.send(Kind::Cluster, &[("a", "2", eds_cluster("a"))], &[]);
    }
    assert!(Arc::ptr_eq(&before, &rig.snapshot()));
    assert_eq!(rig.published.lock().expect("not poisoned").len(), count);
    // A change keeps the endpoints that did not change.
    let grown = endpoints("a", &["10.1.0.2:1", "10.1.0.3:1", "10.1.0.1:1"]);
    rig.send(Kind::Endpoints, &[("a", "3", grown)], &[]);
    let after = rig.snapshot();
    let all = |s: &Snapshot| s.endpoints["a"].priorities[0][0].endpoints.clone();
    assert!(Arc::ptr_eq(&all(&before)[0], &all(&after)[0]));
    assert!(Arc::ptr_eq(&all(&before)[1], &all(&after)[1]));
    assert!(Arc::ptr_eq(&after.clusters["a"], &before.clusters["a"]));
}

#[tokio::test(start_paused = true)]
async fn lb_03_after_a_thousand_random_pushes_exactly_the_last_members_are_left() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand::rngs::StdRng::seed_from_u64(3);
    let mut rig = Rig::everything(Variant::Delta);
    let shared = |name: &str| {
        let yaml = format!(
            "{{name: {name}, type: EDS, eds_cluster_config: {{eds_config: {{ads: {{}}}}, \
             service_name: s}}}}"
        );
        crate::xds::testing::resource(Kind::Cluster, &yaml)
    };
    let all = [
        ("a", "1", shared("a")),
        ("b", "1", shared("b")),
        ("c", "1", eds_cluster("c")),
    ];
    rig.send(Kind::Cluster, &all, &[]);
    rig.send(
        Kind::Endpoints,
        &[
            ("s", "1", endpoints("s", &[])),
            ("c", "1", endpoints("c", &[])),
        ],
        &[],
    );
    for n in 0..1000_u32 {
        let members: Vec<String> = (0..rng.random_range(0..100))
            .map(|_| format!("10.0.0.{}:80", rng.random_range(0..250_u32)))
            .collect();
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        let name = if n % 3 == 0 { "c" } else { "s" };
        let version = n.to_string();
        rig.send(
            Kind::Endpoints,
            &[(name, &version, endpoints(name, &members))],
            &[],
        );
        let snapshot = rig.snapshot();
        let wanted: BTreeSet<&str> = members.iter().copied().collect();
        for cluster in if name == "c" { &["c"][..] } else { &["a", "b"] } {
            let localities = snapshot.endpoints[*cluster].priorities.iter().flatten();
            let held = localities.flat_map(|one| &one.endpoints);
            let held: BTreeSet<String> = held.map(|one| one.address.to_string()).collect();
            assert!(
                held.iter().map(String::as_str).eq(wanted.iter().copied()),
                "push {n}"
            );
        }
    }
    let store = lock(&rig.client.store);
    let again = rig.client.assembler.assemble(&store, &|_, _| false);
    assert!(again.is_none(), "a whole assembly gives the same");
}
