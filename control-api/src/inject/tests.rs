//! Golden pods, and what is refused.

use super::*;

fn settings() -> Settings {
    Settings {
        image: "localhost/outrigger-proxy:1".into(),
        pull_policy: "IfNotPresent".into(),
        control_plane: "outrigger-control.outrigger-system.svc:15012".into(),
        trust_domain: "outrigger.local".into(),
        trust_bundle: "-----BEGIN CERTIFICATE-----".into(),
        otlp_endpoint: String::new(),
    }
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn injected(pod: &Value) -> (Value, Vec<Warning>) {
    match inject(pod, &settings()) {
        Outcome::Injected { pod, warnings } => (*pod, warnings),
        other => panic!("{other:?}"),
    }
}

fn golden(name: &str, pod: &str) {
    let (pod, _) = injected(&yaml(pod));
    insta::assert_snapshot!(name, serde_saphyr::to_string(&pod).expect("YAML"));
}

#[test]
fn a_small_pod() {
    golden(
        "small",
        "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {containers: [{name: app, image: 'app:1'}]}
",
    );
}

#[test]
fn a_pod_of_a_deployment_with_everything_said() {
    golden(
        "everything",
        "
metadata:
  generateName: web-7d9f-
  labels: {app: web, pod-template-hash: 7d9f}
  annotations:
    outrigger.dev/inject: 'true'
    outrigger.dev/exclude-inbound-ports: '9100'
    outrigger.dev/exclude-outbound-ports: 5432,6000-6010
    outrigger.dev/exclude-outbound-cidrs: 10.9.0.0/16, fd00::/8
    outrigger.dev/log-level: debug
    outrigger.dev/access-log: json
    outrigger.dev/proxy-image: other:2
    outrigger.dev/proxy-cpu: 100m
    outrigger.dev/proxy-memory-limit: 64Mi
    outrigger.dev/drain-seconds: '10'
  ownerReferences:
    - {apiVersion: apps/v1, kind: ReplicaSet, name: web-7d9f, controller: true}
spec:
  terminationGracePeriodSeconds: 8
  securityContext: {runAsNonRoot: true, runAsUser: 1000}
  initContainers: [{name: migrate, image: 'app:1'}]
  containers:
    - {name: app, image: 'app:1', volumeMounts: [{name: data, mountPath: /data}]}
    - {name: helper, image: 'helper:1', lifecycle: {preStop: {exec: {command: [stop]}}}}
  volumes: [{name: data, emptyDir: {}}]
",
    );
}

#[test]
fn names_are_as_short_as_the_api_server_wants_them() {
    let (pod, _) = injected(&yaml("{spec: {containers: [{name: app, image: a}]}}"));
    let ports = pod.pointer("/spec/initContainers/1/ports").cloned();
    for port in ports.as_ref().and_then(Value::as_array).expect("a list") {
        let name = port["name"].as_str().expect("a name");
        assert!(
            name.len() <= 15,
            "{name}: a port's name has 15 characters (RFC 6335)"
        );
    }
}

#[test]
fn once_is_enough() {
    let pod = yaml("{metadata: {name: a}, spec: {containers: [{name: app, image: a}]}}");
    let (once, _) = injected(&pod);
    assert_eq!(inject(&once, &settings()), Outcome::Left(Reason::Already));
}

#[test]
fn the_patch_makes_the_pod() {
    let old = yaml("{spec: {containers: [{name: app, image: a}], volumes: [{name: v}]}}");
    let (new, _) = injected(&old);
    let mut patched = old.clone();
    for operation in patch(&old, &new) {
        assert_eq!(operation["op"], "add");
        let path = operation["path"].as_str().expect("a path");
        let (parent, key) = path.rsplit_once('/').expect("a parent");
        let parent = patched.pointer_mut(parent).expect("its parent is there");
        parent[key] = operation["value"].clone();
    }
    assert_eq!(patched, new);
    assert!(patch(&new, &new).is_empty());
}

#[test]
fn opted_out_by_annotation_or_label() {
    for place in ["annotations", "labels"] {
        for value in ["'false'", "disabled"] {
            let pod = yaml(&format!(
                "{{metadata: {{{place}: {{outrigger.dev/inject: {value}}}}}, \
                 spec: {{hostNetwork: true, containers: []}}}}"
            ));
            assert_eq!(inject(&pod, &settings()), Outcome::Left(Reason::OptedOut));
        }
    }
}

#[test]
fn ku_08_host_network_and_the_proxys_user_are_refused_with_a_reason() {
    let table = [
        ("{hostNetwork: true, containers: []}", "host's network"),
        (
            "{securityContext: {runAsUser: 1337}, containers: []}",
            "runs as user 1337",
        ),
        (
            "{containers: [{name: a}, {name: bad, securityContext: {runAsUser: 1337}}]}",
            "container \"bad\" runs as user 1337",
        ),
        (
            "{initContainers: [{name: bad, securityContext: {runAsUser: 1337}}], containers: []}",
            "container \"bad\" runs as user 1337",
        ),
    ];
    for (spec, why) in table {
        let pod = yaml(&format!("{{metadata: {{name: a}}, spec: {spec}}}"));
        let Outcome::Refused(reason) = inject(&pod, &settings()) else {
            panic!("{spec} was not refused");
        };
        assert!(reason.contains(why), "{reason}");
        assert!(
            reason.contains("outrigger.dev/inject: \"false\""),
            "{reason}"
        );
    }
}

#[test]
fn ku_09_annotations_that_cannot_be_obeyed_are_refused() {
    let table = [
        ("inject", "maybe"),
        ("exclude-inbound-ports", "0"),
        ("exclude-inbound-ports", "65536"),
        ("exclude-outbound-ports", "90-80"),
        ("exclude-outbound-ports", "http"),
        ("exclude-outbound-cidrs", "10.0.0.0/33"),
        ("access-log", "yes"),
        ("drain-seconds", "3s"),
        ("drain-seconds", "301"),
        ("proxy-cpu", "-1"),
        ("proxy-memory", "64MB"),
        ("proxy-memory-limit", ""),
    ];
    for (name, value) in table {
        let pod = serde_json::json!({
            "metadata": {"annotations": {format!("outrigger.dev/{name}"): value}},
            "spec": {"containers": []},
        });
        let Outcome::Refused(why) = inject(&pod, &settings()) else {
            panic!("{name}: {value} was not refused");
        };
        assert!(why.contains(&format!("outrigger.dev/{name}")), "{why}");
    }
}

#[test]
fn ku_09_ports_as_people_write_them() {
    for value in ["80", "80, 443", " 8000-8010 ,80,80", ""] {
        let pod = serde_json::json!({
            "metadata": {"annotations": {"outrigger.dev/exclude-inbound-ports": value}},
            "spec": {"containers": []},
        });
        let (pod, _) = injected(&pod);
        let args = &pod["spec"]["initContainers"][0]["args"];
        assert_eq!(args[1], "--exclude-inbound-ports");
        assert_eq!(args[2], value);
    }
}

#[test]
fn an_annotation_that_nobody_knows_is_told() {
    let pod = yaml(
        "{metadata: {annotations: {outrigger.dev/loglevel: debug, other.dev/x: y}}, \
         spec: {containers: []}}",
    );
    let (_, warnings) = injected(&pod);
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["annotation outrigger.dev/loglevel is not known to Outrigger"]
    );
}

#[test]
fn a_pod_that_has_no_time_is_not_kept_waiting() {
    for (grace, seconds) in [(0, None), (1, None), (2, Some(1)), (60, Some(5))] {
        let pod = serde_json::json!({"spec": {
            "terminationGracePeriodSeconds": grace,
            "containers": [{"name": "app", "image": "a"}],
        }});
        let (pod, _) = injected(&pod);
        let wait = pod.pointer("/spec/containers/0/lifecycle/preStop/sleep/seconds");
        assert_eq!(wait.and_then(Value::as_u64), seconds, "grace {grace}");
    }
}

const PROBED: &str = "
metadata: {name: web}
spec:
  initContainers:
    - name: helper
      restartPolicy: Always
      startupProbe: {tcpSocket: {port: 7000}, timeoutSeconds: 4}
  containers:
    - name: app
      ports: [{name: web, containerPort: 8080}]
      readinessProbe:
        periodSeconds: 2
        httpGet: {path: /ready, port: web, httpHeaders: [{name: X-Probe, value: 'yes'}]}
      livenessProbe: {httpGet: {path: /live, port: 8443, scheme: HTTPS}}
      startupProbe: {exec: {command: [true]}}
      lifecycle: {preStop: {httpGet: {path: /bye, port: 8080}}}
    - name: rpc
      livenessProbe: {grpc: {port: 9000, service: cart}}
      readinessProbe: {httpGet: {host: other.example, port: 80}}
      startupProbe: {tcpSocket: {port: unknown}}
";

#[test]
fn ku_10_probes_over_the_network_go_through_the_proxy() {
    let pod = yaml(PROBED);
    let (new, _) = injected(&pod);
    let at = |path: &str| new.pointer(path).cloned().unwrap_or_default();
    let there = |path: &str| serde_json::json!({"path": path, "port": 15021});
    let app = at("/spec/containers/0");
    assert_eq!(
        app["readinessProbe"]["httpGet"],
        there("/probe/app/readiness")
    );
    assert_eq!(app["readinessProbe"]["periodSeconds"], 2);
    assert_eq!(
        app["livenessProbe"]["httpGet"],
        there("/probe/app/liveness")
    );
    assert_eq!(app["startupProbe"], yaml("{exec: {command: [true]}}"));
    assert_eq!(
        app["lifecycle"]["preStop"]["httpGet"],
        there("/probe/app/preStop")
    );
    let rpc = at("/spec/containers/1");
    assert_eq!(
        rpc["livenessProbe"],
        serde_json::json!({
        "httpGet": there("/probe/rpc/liveness")})
    );
    assert_eq!(rpc["readinessProbe"]["httpGet"]["host"], "other.example");
    assert_eq!(
        rpc["startupProbe"]["tcpSocket"]["port"], "unknown",
        "the API server will say so"
    );
    let helper = at("/spec/initContainers/2");
    assert_eq!(
        helper["startupProbe"]["httpGet"],
        there("/probe/helper/startup")
    );
}

#[test]
fn ku_10_the_proxy_is_told_what_to_ask() {
    let (new, _) = injected(&yaml(PROBED));
    let env = new
        .pointer("/spec/initContainers/1/env")
        .cloned()
        .unwrap_or_default();
    let env = env.as_array().expect("a list");
    let probes = env
        .iter()
        .find(|one| one["name"] == "OUTRIGGER_PROBES")
        .expect("there");
    let probes = probes["value"].as_str().expect("a text");
    let read: outrigger_proxy::bootstrap::Probes = probes.parse().expect("the proxy reads it");
    let names: Vec<_> = read.0.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "app/liveness",
            "app/preStop",
            "app/readiness",
            "helper/startup",
            "rpc/liveness"
        ]
    );
    let asked = |name: &str| format!("{:?}", read.0.get(name).expect(name).ask);
    assert!(
        asked("app/readiness").contains("port: 8080"),
        "{}",
        asked("app/readiness")
    );
    assert!(asked("app/liveness").contains("tls: true"));
    assert!(asked("rpc/liveness").contains("service: \"cart\""));
}

#[test]
fn every_kind_that_makes_pods() {
    let template = "{metadata: {labels: {app: a}}, spec: {containers: [{name: app, image: a}]}}";
    let kinds = [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "Job",
    ];
    for kind in kinds {
        let text = format!(
            "kind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {{template: {template}}}"
        );
        let (out, said) = manifest(&text, &settings()).expect(kind);
        assert!(said.is_empty());
        let out = yaml(&out);
        let containers = &out["spec"]["template"]["spec"]["initContainers"];
        assert_eq!(containers[1]["name"], "outrigger-proxy", "{kind}");
    }
    let cron = format!(
        "kind: CronJob\nmetadata: {{name: a}}\nspec: {{jobTemplate: {{spec: {{template: {template}}}}}}}"
    );
    let (out, _) = manifest(&cron, &settings()).expect("a CronJob");
    let path = "/spec/jobTemplate/spec/template/spec/initContainers/1/name";
    assert_eq!(yaml(&out).pointer(path), Some(&"outrigger-proxy".into()));
}

#[test]
fn what_makes_no_pods_is_passed_on() {
    let text = "kind: Service\nmetadata:\n  name: a\n";
    let (out, said) = manifest(text, &settings()).expect("a Service");
    assert_eq!(yaml(&out), yaml(text));
    assert!(said.is_empty());
}

#[test]
fn a_manifest_with_a_pod_that_cannot_be_protected_is_refused_whole() {
    let text = "kind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true, containers: []}";
    let why = manifest(text, &settings()).expect_err("refused");
    assert!(why.starts_with("Pod a: "), "{why}");
}
