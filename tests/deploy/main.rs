//! What an operator installs: the chart by the helm that is built from its module, the plain
//! manifests, and what `outrigger install` prints, which have to be the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use outrigger_proxy::telemetry::metrics::{ALL, Kind};
use outrigger_tests::bin;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn helm() -> String {
    let build = root().join("tests/peers/helm/build");
    let built = Command::new(&build).output().expect("a shell");
    let why = text(&built.stderr);
    assert!(
        built.status.success(),
        "run {} first, where there is a network: {why}",
        build.display()
    );
    text(&built.stdout).trim().to_owned()
}

fn template(namespace: &str, more: &[&str]) -> Output {
    Command::new(helm())
        .args(["template", "outrigger", "deploy/chart", "--include-crds"])
        .args(["--kube-version", "1.34.0", "--namespace", namespace])
        .args(more)
        .current_dir(root())
        .output()
        .expect("helm")
}

/// The objects in a manifest, by kind and name.
fn objects(manifest: &str) -> BTreeMap<(String, String), Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(manifest).expect("YAML");
    let all = all.into_iter().filter(|one| !one.is_null());
    let named = all.map(|one| {
        let name = |path: &str| {
            one.pointer(path)
                .and_then(Value::as_str)
                .expect(path)
                .to_owned()
        };
        ((name("/kind"), name("/metadata/name")), one)
    });
    named.collect()
}

#[test]
fn the_plain_manifests_are_the_chart() {
    let checked = Command::new(root().join("deploy/render"))
        .arg("--check")
        .env("HELM", helm())
        .output()
        .expect("a shell");
    assert!(
        checked.status.success(),
        "{}{}",
        text(&checked.stdout),
        text(&checked.stderr)
    );
}

#[test]
fn the_command_line_and_the_chart_mean_the_same() {
    let installed = Command::new(bin("outrigger"))
        .args([
            "install",
            "--image",
            "r.example/control:2",
            "--proxy-image",
            "r.example/proxy:2",
        ])
        .args([
            "--pull-policy",
            "Always",
            "--replicas",
            "3",
            "--trust-domain",
            "example.org",
        ])
        .args([
            "--otlp-endpoint",
            "http://jaeger:4317",
            "--log-level",
            "debug",
        ])
        .output()
        .expect("outrigger");
    let values = "image.control=r.example/control:2,image.proxy=r.example/proxy:2,\
        image.pullPolicy=Always,replicas=3,trustDomain=example.org,\
        otlpEndpoint=http://jaeger:4317,logLevel=debug,plain=true";
    let rendered = template("outrigger-system", &["--set", values]);
    assert!(rendered.status.success(), "{}", text(&rendered.stderr));
    let (cli, chart) = (
        objects(&text(&installed.stdout)),
        objects(&text(&rendered.stdout)),
    );
    let (cli_names, chart_names): (Vec<_>, Vec<_>) = (cli.keys().collect(), chart.keys().collect());
    assert_eq!(cli_names, chart_names);
    for (name, object) in &cli {
        assert_eq!(Some(object), chart.get(name), "{name:?}");
    }
}

#[test]
fn helm_marks_what_is_its_own_and_makes_no_namespace() {
    let rendered = template("outrigger-system", &[]);
    let all = objects(&text(&rendered.stdout));
    assert!(!all.keys().any(|(kind, _)| kind == "Namespace"));
    let deployment = &all[&("Deployment".to_owned(), "outrigger-control".to_owned())];
    assert_eq!(
        deployment["metadata"]["labels"]["app.kubernetes.io/managed-by"],
        "Helm"
    );
    assert_eq!(deployment["spec"]["replicas"], 2);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert!(container[probe].is_object(), "{probe}");
    }
    assert!(container["resources"]["requests"].is_object());
    for kind in [
        "PodDisruptionBudget",
        "NetworkPolicy",
        "ValidatingWebhookConfiguration",
    ] {
        assert!(all.keys().any(|(own, _)| own == kind), "{kind}");
    }
    let off = "podDisruptionBudget.enabled=false,networkPolicy.enabled=false";
    let rendered = template("outrigger-system", &["--set", off]);
    let all = objects(&text(&rendered.stdout));
    for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
        assert!(!all.keys().any(|(own, _)| own == kind), "{kind}");
    }
}

/// KU-11: what is not asked for does not wait for the mesh, and policies never do.
#[test]
fn ku_11_a_namespace_can_be_kept_from_the_webhook() {
    let set = ["--set", "webhook.excludedNamespaces={billing,ops}"];
    let rendered = template("outrigger-system", &set);
    let all = objects(&text(&rendered.stdout));
    let injector = &all[&(
        "MutatingWebhookConfiguration".to_owned(),
        "outrigger-injector".to_owned(),
    )];
    for webhook in injector["webhooks"].as_array().expect("a list") {
        let terms = webhook["namespaceSelector"]["matchExpressions"]
            .as_array()
            .expect("terms");
        let mut names = terms
            .iter()
            .filter(|term| term["key"] == "kubernetes.io/metadata.name");
        let names = names.next().expect("names")["values"]
            .as_array()
            .expect("a list");
        for name in ["kube-system", "outrigger-system", "billing", "ops"] {
            assert!(names.iter().any(|own| own == name), "{name}");
        }
    }
    let judge = all
        .iter()
        .find(|((kind, _), _)| kind == "ValidatingWebhookConfiguration")
        .map(|(_, object)| object["webhooks"][0]["failurePolicy"].clone());
    assert_eq!(judge, Some("Ignore".into()));
}

#[test]
fn values_that_cannot_be_are_refused() {
    let table = [
        ("replicas=0", "replicas"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("otlpEndpoint=jaeger:4317", "otlpEndpoint"),
        ("certificateTtl=1d", "certificateTtl"),
        ("webhook.timeoutSeconds=31", "timeoutSeconds"),
        ("replica=3", "replica"),
    ];
    for (value, field) in table {
        let rendered = template("outrigger-system", &["--set", value]);
        let why = text(&rendered.stderr);
        assert!(
            !rendered.status.success() && why.contains(field),
            "{value}: {why}"
        );
    }
    let elsewhere = template("mesh", &[]);
    let why = text(&elsewhere.stderr);
    assert!(
        !elsewhere.status.success() && why.contains("outrigger-system"),
        "{why}"
    );
}

/// Numbers of the control plane, which declares them where it counts.
const OF_THE_CONTROL_PLANE: [&str; 3] = [
    "outrigger_control_proxies",
    "outrigger_control_proxies_behind",
    "outrigger_control_proxies_rejecting",
];

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let mut known: BTreeSet<String> = OF_THE_CONTROL_PLANE.map(str::to_owned).into();
    for metric in ALL {
        let suffixes: &[&str] = match metric.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_sum", "_count"],
            Kind::Info => &["_info"],
        };
        known.extend(
            suffixes
                .iter()
                .map(|suffix| format!("{}{suffix}", metric.name)),
        );
    }
    let file = root().join("deploy/samples/grafana.json");
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(file).expect("a file")).expect("JSON");
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names = words.filter(|w| w.starts_with("outrigger_") || w.starts_with("process_"));
            for name in names {
                assert!(known.contains(name), "{name} in {}", panel["title"]);
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked}");
}
