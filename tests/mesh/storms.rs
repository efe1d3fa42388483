//! Whole services fail, and the mesh makes it no worse.

use std::{fs, time::Duration};

use outrigger_tests::{
    mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{
    PATIENCE, app, apply, control_plane, load, object, service, sidecar, summary,
};

const HTTP: &str = "[{port: 80, targetPort: 8080, appProtocol: http}]";

fn reaches(pod: &Pod, vip: &str) {
    until("an answer", PATIENCE, || {
        let (code, ..) = pod.sh(&format!("curl -sf -m 2 http://{vip}/"));
        (code == Some(0)).then_some(())
    });
}

fn fails(pod: &Pod, status: u16) {
    let (code, _, err) = pod.sh(&format!(
        "curl -s -m 2 'http://127.0.0.1:8080/control/fail?status={status}'"
    ));
    assert_eq!(code, Some(0), "{err}");
}

fn served(pod: &Pod) -> u64 {
    let (_, out, _) = pod.sh("curl -s -m 2 http://127.0.0.1:8080/control/counts");
    let counts: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    counts["served"].as_u64().expect("a number")
}

/// Calls at a steady rate over one kept connection and writes a line for each answer:
/// `seconds status milliseconds cause`.
const STEADY: &str = "
import http.client, sys, time
vip, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
peer = http.client.HTTPConnection(vip, 80, timeout=10)
begin = time.monotonic()
print('0 ready 0')
for n in range(int(rate * seconds)):
    time.sleep(max(0, begin + n / rate - time.monotonic()))
    sent = time.monotonic()
    peer.request('GET', '/')
    answer = peer.getresponse()
    answer.read()
    now = time.monotonic()
    cause = answer.getheader('proxy-status', '').replace(' ', '_')
    print('%.3f %d %.3f %s' % (time.time(), answer.status, (now - sent) * 1000, cause), flush=True)
";

/// One answer, as the steady caller saw it.
struct Seen {
    at: f64,
    status: u16,
    millis: f64,
    cause: String,
}

fn steady(mesh: &mut Mesh, client: &Pod, vip: &str, rate: u32, seconds: u32) {
    let file = mesh.dir.join("steady.py");
    fs::write(&file, STEADY).expect("written");
    let mut python = std::process::Command::new("python3");
    python.arg("-u").arg(file).arg(vip);
    python.args([rate.to_string(), seconds.to_string()]);
    mesh.spawn_in(client, "steady", &python);
}

fn seen(mesh: &Mesh) -> Vec<Seen> {
    let log = mesh.log("client-steady");
    let rows = log.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some(Seen {
            at: words.next()?.parse().ok()?,
            status: words.next()?.parse().ok()?,
            millis: words.next()?.parse().ok()?,
            cause: words.next()?.to_owned(),
        })
    });
    rows.collect()
}

fn now() -> f64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.expect("after 1970").as_secs_f64()
}

mesh_test!(all_endpoints_fail_and_the_breaker_answers_at_once, mesh, {
    control_plane(mesh);
    let client = mesh.pod("client");
    let servers: Vec<_> = (0..3).map(|n| mesh.pod(&format!("web{n}"))).collect();
    let addresses: Vec<_> = servers.iter().map(|pod| pod.ip).collect();
    let vip = "10.96.0.80";
    apply(mesh, &service("web", vip, HTTP, &addresses));
    let spec = "{targetRefs: [{kind: Service, name: web}], circuitBreaker: {failureRate: 50, \
                minimumCalls: 10, window: 2s, openDuration: 1s, halfOpenProbes: 3, ramp: 3s}}";
    apply(mesh, &object("TrafficPolicy", "breaker", spec));
    for server in &servers {
        app(mesh, server, 8080, &[]);
        sidecar(mesh, server, "web", &[]);
    }
    sidecar(mesh, &client, "client", &[]);
    reaches(&client, vip);
    steady(mesh, &client, vip, 100, 14);
    std::thread::sleep(Duration::from_secs(2));
    let failing = now();
    servers.iter().for_each(|server| fails(server, 503));
    std::thread::sleep(Duration::from_secs(3));
    let healed = now();
    servers.iter().for_each(|server| fails(server, 0));
    until("the end of the load", PATIENCE, || {
        (seen(mesh).len() == 1400).then_some(())
    });
    let all = seen(mesh);
    assert!(
        all.iter()
            .filter(|s| s.at < failing)
            .all(|s| s.status == 200)
    );
    // It opens within its window.
    let opened = all.iter().find(|s| s.cause.contains("BreakerOpen"));
    let opened = opened.expect("the breaker has opened");
    println!("open {:.2} s after the failure", opened.at - failing);
    assert!(opened.at - failing < 2.0, "{}", opened.at - failing);
    // The caller is told at once, and why.
    let refused = all.iter().filter(|s| s.cause.contains("BreakerOpen"));
    let mut millis: Vec<_> = refused.clone().map(|s| s.millis).collect();
    millis.sort_by(f64::total_cmp);
    let (count, median) = (millis.len(), millis[millis.len() / 2]);
    println!(
        "{count} refusals: median {median} ms, 99 % {} ms",
        millis[count * 99 / 100]
    );
    assert!(
        refused
            .clone()
            .all(|s| s.status == 503 && s.cause.contains("connection_limit_reached"))
    );
    assert!(count > 100 && median < 5.0, "{count} refusals, {median} ms");
    // Traffic comes back by and by: few at first, then all.
    let first = all.iter().find(|s| s.at > healed && s.status == 200);
    let back = first.expect("an answer again").at;
    let share = |from: f64, to: f64| {
        let part: Vec<_> = all
            .iter()
            .filter(|s| (back + from..back + to).contains(&s.at))
            .collect();
        let good = part.iter().filter(|s| s.status == 200).count();
        println!(
            "{from:.1} to {to:.1} s after the first answer: {good} of {}",
            part.len()
        );
        100 * good / part.len().max(1)
    };
    let end = all.iter().fold(back, |end, s| end.max(s.at)) - back;
    let shares = [
        share(0.0, 1.0),
        share(1.0, 2.0),
        share(2.0, 3.0),
        // A probe may have met an endpoint that was not healed yet, so that the ramp began later.
        share(end - 1.0, end),
    ];
    assert!(
        shares[0] < 60 && shares[0] < shares[1] && shares[1] < shares[2],
        "{shares:?}"
    );
    assert_eq!(shares[3], 100);
});

mesh_test!(rt_04_retries_of_three_hops_do_not_multiply, mesh, {
    control_plane(mesh);
    let client = mesh.pod("client");
    let hops: Vec<_> = ["first", "second", "third"]
        .map(|name| mesh.pod(name))
        .into();
    let vips = ["10.96.0.81", "10.96.0.82", "10.96.0.83"];
    for (n, hop) in hops.iter().enumerate() {
        apply(mesh, &service(&hop.name, vips[n], HTTP, &[hop.ip]));
        // Each hop may try three times, whatever fails, and passes over nobody.
        let spec = format!(
            "{{targetRefs: [{{kind: Service, name: {}}}], retries: {{attempts: 2, on: [5xx], \
             budget: {{percent: 20, minConcurrent: 2}}}}, \
             outlierDetection: {{consecutiveErrors: 0}}}}",
            hop.name
        );
        apply(mesh, &object("TrafficPolicy", &hop.name, &spec));
        let next = vips.get(n + 1).map(|vip| format!("http://{vip}/"));
        let calls: Vec<_> = next.iter().flat_map(|url| ["--calls", url]).collect();
        app(mesh, hop, 8080, &calls);
        sidecar(mesh, hop, &hop.name, &[]);
    }
    sidecar(mesh, &client, "client", &[]);
    reaches(&client, vips[0]);
    fails(&hops[2], 503);
    let before = served(&hops[2]);
    let (rate, seconds) = (50, 10);
    load(mesh, &client, "storm", ("GET", vips[0]), rate, seconds);
    let told = summary(mesh, "storm", PATIENCE * 3);
    assert_eq!(told["failed"], rate * seconds, "{told}");
    let (sent, last) = (u64::from(rate * seconds), served(&hops[2]) - before);
    println!("{sent} requests, {last} at the last hop; {told}");
    // One in five more, and what each of the three hops may always add: two retries a second, over
    // the interval before, which was quiet, and the time of the load. Without a budget it is 27.
    let floor = 3 * 2 * (10 + u64::from(seconds));
    assert!(
        last >= sent && last <= sent * 12 / 10 + floor,
        "{last} for {sent}"
    );
    // As soon as it is well again, all is.
    fails(&hops[2], 0);
    for _ in 0..20 {
        let (code, ..) = client.sh(&format!("curl -sf -m 2 http://{}/", vips[0]));
        assert_eq!(code, Some(0));
    }
});
