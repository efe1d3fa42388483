//! What is described and checked, and what is to be deleted.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{
    deployment, mesh, pod, proxy, refused, run, said,
    server::{ApiServer, Script},
    webhooks,
};

#[tokio::test]
async fn a_pod_is_described() {
    let mesh = mesh().await;
    let admin = proxy(mesh.dir.path()).await;
    let to = ("cart-0".to_owned(), 15000);
    mesh.api.script.lock().unwrap().ports.insert(to, admin);
    let text = said(&mesh.api, &["describe", "pod", "cart-0", "-n", "shop"]).await;
    for line in [
        "Pod shop/cart-0",
        "  address       127.0.0.1 on n1",
        "  mesh          in it, with proxy:1; ready",
        "  config        current, revision 1 of 1 of control-0",
        "  mutual TLS    strict, port 8080 permissive",
        "Services",
        "  cart:80 -> 8080 (http)",
        "Policies",
        "  MutualTLS shop/all",
        "Problems",
        "  the proxy has no certificate yet",
    ] {
        assert!(text.lines().any(|own| own == line), "{line:?} in {text}");
    }
    mesh.control.stop().await;
}

#[tokio::test]
async fn a_service_is_described() {
    let mesh = mesh().await;
    let text = said(&mesh.api, &["describe", "service", "cart", "-n", "shop"]).await;
    for line in [
        "Service shop/cart",
        "  port          80 http (http)",
        "  endpoints     2, 1 of them in the mesh",
        "  127.0.0.1 cart as cart, mTLS",
        "  HTTPRoute shop/slow",
        "  TrafficPolicy shop/cart",
    ] {
        assert!(text.lines().any(|own| own == line), "{line:?} in {text}");
    }
    let error = refused(&mesh.api, &["describe", "svc", "nobody"]).await;
    assert!(
        error.starts_with("Service default/nobody is not there"),
        "{error}"
    );
    mesh.control.stop().await;
}

#[tokio::test]
async fn a_policy_is_described_by_what_became_of_it() {
    let mesh = mesh().await;
    let condition = |kind: &str, status: &str, generation: u32| {
        json!({"type": kind, "status": status, "reason": "Why", "message": "because",
            "observedGeneration": generation})
    };
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "slow", "namespace": "shop", "generation": 2},
        "spec": {}, "status": {"parents": [
            {"controllerName": "else", "parentRef": {"name": "x"}, "conditions": []},
            {"controllerName": "outrigger.dev/mesh", "conditions": [
                condition("Accepted", "False", 2), condition("ResolvedRefs", "True", 1)],
                "parentRef": {"kind": "Service", "name": "cart", "port": 80}},
        ]},
    });
    mesh.api.script.lock().unwrap().objects.push(route);
    let text = said(
        &mesh.api,
        &["describe", "policy", "httproute", "slow", "-n", "shop"],
    )
    .await;
    let want = "\
HTTPRoute shop/slow
For Service cart:80
  Accepted      False Why: because
  ResolvedRefs  True  Why: because (of an older version)
  in force      the last version that was valid
";
    assert_eq!(text, want);
    let report = run(&mesh.api, &["check"]).await.1;
    assert!(
        report.contains("warning  policies: HTTPRoute shop/slow: because"),
        "{report}"
    );
    let error = refused(&mesh.api, &["describe", "policy", "httproute", "x"]).await;
    assert_eq!(error, "HTTPRoute default/x is not there");
    let error = refused(&mesh.api, &["describe", "policy", "htproute", "x"]).await;
    assert!(error.contains("did you mean HTTPRoute?"), "{error}");
    mesh.control.stop().await;
}

/// The lines of a check that are not good, with its exit code.
async fn found(api: &ApiServer, words: &[&str]) -> (ExitCode, Vec<String>) {
    let (result, text) = run(api, words).await;
    let bad = text.lines().filter(|line| !line.starts_with("ok "));
    (result.unwrap(), bad.map(str::to_owned).collect())
}

#[tokio::test]
async fn a_mesh_that_is_well_has_nothing_wrong() {
    let mesh = mesh().await;
    let none: Vec<String> = Vec::new();
    assert_eq!(
        found(&mesh.api, &["check"]).await,
        (ExitCode::SUCCESS, none)
    );
    let report: Value =
        serde_json::from_str(&said(&mesh.api, &["check", "-o", "json"]).await).unwrap();
    let report = report.as_array().unwrap();
    assert!(
        report.len() > 8 && report.iter().all(|one| one["outcome"] == "good"),
        "{report:?}"
    );
    mesh.control.stop().await;
}

#[tokio::test]
async fn each_thing_that_is_wrong_is_found() {
    let mesh = mesh().await;
    {
        let mut script = mesh.api.script.lock().unwrap();
        script
            .objects
            .retain(|one| one["kind"] == "Namespace" || one["kind"] == "Pod");
        script
            .objects
            .extend([deployment(0), webhooks("Mutating", "another")]);
        script.objects.push(pod("shop", "old-0", &json!({}), false));
        let mut lost = pod(
            "shop",
            "lost-0",
            &json!({"outrigger.dev/mesh": "sidecar"}),
            true,
        );
        lost["status"]["podIPs"][0]["ip"] = "10.9.9.9".into();
        script.objects.push(lost);
        script.kinds.remove("gateway.networking.k8s.io/v1");
        script
            .kinds
            .get_mut("outrigger.dev/v1")
            .unwrap()
            .retain(|kind| *kind != "MutualTLS");
    }
    let (code, lines) = found(&mesh.api, &["check"]).await;
    assert_eq!(code, ExitCode::FAILURE);
    let starts = [
        "WRONG    definitions of the policies: the cluster knows no MutualTLS",
        "warning  Gateway API: the cluster knows no HTTPRoute, GRPCRoute",
        "WRONG    control plane: none of 1 replicas is ready",
        "WRONG    webhook for pods: outrigger-injector does not trust the control plane",
        "warning  webhook for policies: there is no outrigger-policies",
        "warning  connections of the proxies: not connected to the control plane: shop/lost-0",
        "warning  pods outside the mesh: made before their namespace was in it; restart shop/old-0",
    ];
    assert_eq!(lines.len(), starts.len(), "{lines:#?}");
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    mesh.control.stop().await;
}

#[tokio::test]
async fn a_cluster_is_looked_at_before_it_has_a_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let api = ApiServer::start(dir.path(), Script::default()).await;
    let (code, lines) = found(&api, &["check", "--pre"]).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(
        lines[0].starts_with("WRONG    Kubernetes: version v1.0.0"),
        "{lines:?}"
    );
    {
        let mut script = api.script.lock().unwrap();
        script.minor = 29;
        script.forbidden.insert("clusterroles");
    }
    let (code, lines) = found(&api, &["check", "--pre"]).await;
    assert_eq!(code, ExitCode::FAILURE);
    let want = "WRONG    your rights to install it: you may not create clusterroles";
    assert_eq!(lines[0], want);
    assert!(lines[1].starts_with("warning  Gateway API"), "{lines:?}");
    api.script.lock().unwrap().forbidden.clear();
    let (code, lines) = found(&api, &["check", "--pre"]).await;
    assert_eq!((code, lines.len()), (ExitCode::SUCCESS, 1), "{lines:?}");
}

#[tokio::test]
async fn what_is_installed_is_uninstalled_when_no_pod_needs_it() {
    let mesh = mesh().await;
    let error = refused(&mesh.api, &["uninstall"]).await;
    assert!(error.starts_with("1 pods still have the proxy"), "{error}");
    assert!(error.contains("shop/cart-0"), "{error}");
    let kinds = |text: &str| -> Vec<String> {
        let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        let kinds = all
            .iter()
            .map(|one| one["kind"].as_str().unwrap().to_owned());
        kinds.collect()
    };
    let some = kinds(&said(&mesh.api, &["uninstall", "--force"]).await);
    assert!(some[0].ends_with("WebhookConfiguration"), "{some:?}");
    assert!(some.contains(&"Deployment".to_owned()), "{some:?}");
    for kept in ["Namespace", "CustomResourceDefinition"] {
        assert!(!some.contains(&kept.to_owned()), "{some:?}");
    }
    let installed = said(&mesh.api, &["install"]).await;
    let mut installed = kinds(&installed);
    let mut all = kinds(&said(&mesh.api, &["uninstall", "--force", "--purge"]).await);
    installed.sort();
    all.sort();
    assert_eq!(all, installed);

    let mut deployment = deployment(1);
    deployment["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "Helm"});
    {
        let mut script = mesh.api.script.lock().unwrap();
        script.objects.retain(|one| one["kind"] != "Deployment");
        script.objects.push(deployment);
    }
    let error = refused(&mesh.api, &["uninstall", "--force"]).await;
    assert_eq!(error, "it was installed by Helm; use `helm uninstall`");
    mesh.control.stop().await;
}
