//! What the command-line client prints, as somebody new to it sees it.

use std::{process::ExitCode, time::Duration};

use outrigger_control::{app::Running, cli, clock::Clock};
use outrigger_proto::type_url;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    api::run,
    common::{Ads, apply, certificate, channel, control_plane, token},
};

const CART: &str = "
apiVersion: outrigger.dev/v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
  addresses: [10.96.0.10]
  endpoints: [{address: 10.1.0.2}]
";

async fn said(running: &Running, words: &[&str]) -> String {
    let (result, text) = run(running, words).await;
    assert_eq!(result.unwrap(), ExitCode::SUCCESS, "{words:?}: {text}");
    text
}

async fn refused(running: &Running, words: &[&str]) -> String {
    let (result, text) = run(running, words).await;
    assert_eq!(text, "", "{words:?}");
    format!("{:#}", result.unwrap_err())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    assert_eq!(said(&running, &["token", "list"]).await, "none\n");
    let words = ["token", "create", "-n", "shop", "--service-account", "cart"];
    let plain = said(&running, &words).await;
    assert!(
        plain.starts_with("ort_") && plain.lines().count() == 1,
        "{plain}"
    );
    let words = [&words[..], &["--ttl", "15m", "-o", "json"]].concat();
    let made = json_of(&said(&running, &words).await);
    assert_eq!(made["spiffeId"], "spiffe://outrigger.local/ns/shop/sa/cart");

    let table = said(&running, &["token", "list", "-n", "shop"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "ID NAMESPACE ACCOUNT EXPIRES IN"
    );
    let id = made["id"].as_str().unwrap();
    let row: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(
        row[..3],
        [id, "shop", "cart"],
        "the one that ends first is first"
    );
    assert!(row[3] == "15m" || row[3].starts_with("14m"), "{table}");
    assert_eq!(lines.len(), 3);
    let list = json_of(&said(&running, &["token", "list", "-o", "json"]).await);
    assert_eq!(list[0]["id"], id);
    assert_eq!(
        said(&running, &["token", "list", "-n", "else"]).await,
        "none\n"
    );

    let secret = made["token"].as_str().unwrap();
    let (beginning, _) = id.split_at(6);
    let revoked = said(&running, &["token", "revoke", beginning]).await;
    let expected = format!("token {id} of spiffe://outrigger.local/ns/shop/sa/cart revoked\n");
    assert_eq!(revoked, expected);
    let root = dir.path().join("ca/root.pem");
    let anonymous = channel(&running, &root, None).await.unwrap();
    let status = certificate(anonymous, secret).await.err().unwrap();
    assert_eq!(status.message(), "the join token is not known");
    let again = refused(&running, &["token", "revoke", id]).await;
    assert_eq!(again, format!("there is no join token {id:?}"));
    running.stop().await;
}

#[tokio::test]
async fn what_was_meant_is_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let slips = "
apiVersion: outrigger.dev/v1
kind: TrafficPolcy
metadata: {name: cart}
---
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {name: cart}
spec: {targetRefs: [{name: cart}], retires: {}}
---
apiVersion: outrigger.dev/v1
kind: Pod
metadata: {name: cart}
";
    let faults = apply(&running, slips).await.err().unwrap();
    let ends = [
        "RateLimit, Telemetry; did you mean TrafficPolicy?",
        "; did you mean `retries`?",
        "Telemetry",
    ];
    for (line, end) in faults.message().lines().zip(ends) {
        assert!(line.ends_with(end), "{line}");
    }
    assert_eq!(faults.message().lines().count(), 3);
    let slip = refused(&running, &["list", "sevrices"]).await;
    assert!(slip.ends_with("did you mean Service?"), "{slip}");
    assert_eq!(said(&running, &["list", "svc"]).await, "none\n");
    running.stop().await;
}

#[tokio::test]
async fn what_was_done_comes_as_data_too() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let file = dir.path().join("cart.yaml");
    std::fs::write(&file, CART).unwrap();
    let file = file.to_str().unwrap();
    let words = ["apply", "-f", file, "--dry-run", "-o", "json"];
    let outcome =
        json!({"kind": "Service", "namespace": "shop", "name": "cart", "change": "created"});
    assert_eq!(
        json_of(&said(&running, &words).await),
        json!({"revision": 0, "dryRun": true, "outcomes": [outcome], "warnings": []})
    );
    let text = said(&running, &["apply", "-f", file, "--wait"]).await;
    assert_eq!(
        text,
        "Service shop/cart created\nrevision 1: no proxy is connected\n"
    );
    let words = [
        "delete", "svc", "cart", "-n", "shop", "--wait", "-o", "yaml",
    ];
    let yaml = said(&running, &words).await;
    let done: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(done["outcomes"][0]["change"], "deleted");
    assert_eq!(done["live"]["proxies"], 0);
    let missing = refused(&running, &["endpoints", "cart", "-n", "shop"]).await;
    assert_eq!(missing, "there is no Service \"cart\" in namespace shop");
    running.stop().await;
}

#[tokio::test]
async fn a_proxy_is_shown_with_what_it_holds_and_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let running = control_plane(dir.path(), Clock::system()).await;
    let empty = said(&running, &["status"]).await;
    assert_eq!(empty, "no proxy is connected (revision 0)\n");
    let nobody = refused(&running, &["config-dump", "shop/cart-1"]).await;
    assert_eq!(nobody, "no proxy \"shop/cart-1\": none is connected");

    apply(&running, CART).await.unwrap();
    let root = dir.path().join("ca/root.pem");
    let join = token(&running, "shop", "cart").await;
    let anonymous = channel(&running, &root, None).await.unwrap();
    let (_, svid) = certificate(anonymous, &join).await.unwrap();
    let known = channel(&running, &root, Some(&svid)).await.unwrap();
    let mut ads = Ads::open(known).await.unwrap();
    let names = ["outbound/10.96.0.10:80", "outbound/10.9.9.9:1"];
    ads.subscribe(type_url::LISTENER, &names).await;
    let answer = ads.next().await;
    ads.answer(&answer, None).await;
    // The answer is taken when the status says so.
    let acknowledged = async {
        loop {
            let status = json_of(&said(&running, &["status", "-o", "json"]).await);
            if status["proxies"][0]["ackedRevision"] == 1 {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let status = timeout(Duration::from_secs(20), acknowledged)
        .await
        .expect("acknowledged in time");
    let until = status["proxies"][0]["certificateExpires"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(until.ends_with('Z'), "{until}");
    let table = said(&running, &["status"]).await;
    let lines: Vec<_> = table
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert_eq!(
        lines[0],
        ["PROXY", "REVISION", "STATE", "RESOURCES", "CERTIFICATE"]
    );
    assert_eq!(lines[1][..3], ["shop/cart-1", "1/1", "current"]);
    assert!(
        lines[1][4] == "1h" || lines[1][4].starts_with("59m"),
        "one hour, less a moment: {table}"
    );

    // A renewal is noticed, although the stream goes on under the old certificate.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let renewing = channel(&running, &root, Some(&svid)).await.unwrap();
    certificate(renewing, "").await.unwrap();
    let status = json_of(&said(&running, &["status", "-o", "json"]).await);
    let renewed = status["proxies"][0]["certificateExpires"].as_str().unwrap();
    assert!(renewed > until.as_str(), "{renewed} after {until}");

    dumps(&running).await;
    drop(ads);
    running.stop().await;
}

/// What `config-dump` shows of the one proxy.
async fn dumps(running: &Running) {
    let words = [
        "config-dump",
        "shop/cart-1",
        "-o",
        "table",
        "-t",
        "listener",
    ];
    let table = said(running, &words).await;
    assert!(
        table.contains("Listener  outbound/10.96.0.10:80"),
        "{table}"
    );
    let words = [
        "config-dump",
        "shop/cart-1",
        "--name",
        "10.96",
        "-o",
        "yaml",
    ];
    let dump: Value = serde_saphyr::from_str(&said(running, &words).await).unwrap();
    let held = dump.get(type_url::LISTENER).and_then(Value::as_object);
    let held = held.unwrap();
    assert_eq!(held.keys().collect::<Vec<_>>(), ["outbound/10.96.0.10:80"]);
    let other = refused(running, &["config-dump", "shop/cart"]).await;
    assert_eq!(
        other,
        "no proxy \"shop/cart\" is connected; there are shop/cart-1"
    );
}

#[test]
fn every_command_explains_itself() {
    use clap::CommandFactory as _;
    let mut root = cli::Args::command();
    root.build();
    let help = root.render_long_help().to_string();
    assert!(
        help.contains("Exit codes:") && help.contains("Examples:"),
        "{help}"
    );
    let mut open = vec![root];
    while let Some(command) = open.pop() {
        for one in command.get_subcommands().filter(|c| c.get_name() != "help") {
            assert!(one.get_about().is_some(), "{}", one.get_name());
            for argument in one.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {argument}",
                    one.get_name()
                );
            }
            open.push(one.clone());
        }
    }
}
