//! Who may call the control API, and how it is reached where it is not on the loopback.

use std::{fs, path::Path, process::ExitCode};

use clap::Parser as _;
use outrigger_control::{
    app::{self, Running, Settings},
    cli,
    clock::Clock,
};
use tokio::net::TcpStream;

use crate::common::{apply, settings};

/// Everywhere, so not on the loopback alone.
fn everywhere(dir: &Path) -> Settings {
    Settings {
        api_addr: "0.0.0.0:0".parse().unwrap(),
        ..settings(dir)
    }
}

async fn run(running: &Running, words: &[&str]) -> Result<String, String> {
    let server = format!("127.0.0.1:{}", running.api_addr.port());
    let all = ["outrigger", "--server", &server];
    let mut out = Vec::new();
    let args = cli::Args::parse_from(all.into_iter().chain(words.iter().copied()));
    match Box::pin(cli::run(args, &mut out)).await {
        Ok(code) => {
            assert_eq!(code, ExitCode::SUCCESS);
            Ok(String::from_utf8(out).unwrap())
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

#[tokio::test]
async fn off_the_loopback_the_api_wants_tls_and_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let running = app::start(everywhere(dir.path()), Clock::system())
        .await
        .unwrap();
    let (ca, secret) = (dir.path().join("ca/root.pem"), dir.path().join("api.token"));
    let (ca, secret) = (ca.to_str().unwrap(), secret.to_str().unwrap());
    let good = ["--ca", ca, "--token-file", secret];

    let list = run(&running, &[&good[..], &["list"]].concat()).await;
    assert_eq!(list, Ok("none\n".to_owned()));
    let inline = fs::read_to_string(secret).unwrap();
    let list = run(&running, &["--ca", ca, "--token", inline.trim(), "list"]).await;
    assert_eq!(list, Ok("none\n".to_owned()));

    let none = run(&running, &["--ca", ca, "list"]).await.unwrap_err();
    assert!(none.contains("wants a token: give --token-file"), "{none}");
    let wrong = run(
        &running,
        &["--ca", ca, "--token", "ora_0123456789abcdef", "list"],
    )
    .await;
    assert_eq!(
        wrong.unwrap_err(),
        "the token is not that of this control plane"
    );
    let clear = run(&running, &["list"]).await.unwrap_err();
    assert!(clear.contains("cannot reach the control plane"), "{clear}");

    // The root of somebody else: the token is not shown to whoever is there.
    let other = tempfile::tempdir().unwrap();
    let imposter = app::start(everywhere(other.path()), Clock::system())
        .await
        .unwrap();
    let refused = run(&imposter, &[&good[..], &["list"]].concat())
        .await
        .unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    imposter.stop().await;

    // The certificate is renewed and the token kept over a restart.
    running.stop().await;
    let running = app::start(everywhere(dir.path()), Clock::system())
        .await
        .unwrap();
    let list = run(&running, &[&good[..], &["list"]].concat()).await;
    assert_eq!(list, Ok("none\n".to_owned()));
    running.stop().await;
}

#[tokio::test]
async fn being_insecure_has_to_be_said() {
    let dir = tempfile::tempdir().unwrap();
    let insecure = Settings {
        api_insecure: true,
        ..everywhere(dir.path())
    };
    let running = app::start(insecure, Clock::system()).await.unwrap();
    assert_eq!(run(&running, &["list"]).await, Ok("none\n".to_owned()));
    assert!(!dir.path().join("api.token").exists());
    running.stop().await;
}

#[tokio::test]
async fn a_secret_of_ones_own_guards_the_loopback_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine");
    let guarded = || Settings {
        api_token_file: Some(file.clone()),
        ..settings(dir.path())
    };
    fs::write(&file, "short").unwrap();
    let error = app::start(guarded(), Clock::system()).await.unwrap_err();
    assert!(
        error.to_string().contains("fewer than 16 characters"),
        "{error}"
    );
    fs::write(&file, "a secret that nobody guesses\n").unwrap();
    let running = app::start(guarded(), Clock::system()).await.unwrap();
    let words = ["--token-file", file.to_str().unwrap(), "list"];
    assert_eq!(run(&running, &words).await, Ok("none\n".to_owned()));
    assert!(run(&running, &["list"]).await.is_err());
    let refused = apply(&running, "kind: Service").await.unwrap_err();
    assert_eq!(
        refused.code(),
        tonic::Code::Unauthenticated,
        "every call is guarded"
    );
    running.stop().await;
}

#[test]
fn the_token_does_not_go_out_in_clear() {
    let words = [
        "outrigger",
        "--server",
        "192.0.2.1:15010",
        "--token",
        "secret",
        "list",
    ];
    let args = cli::Args::parse_from(words);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut out = Vec::new();
    let error = runtime
        .block_on(Box::pin(cli::run(args, &mut out)))
        .unwrap_err();
    assert!(error.to_string().contains("in clear; give --ca"), "{error}");
}

#[tokio::test]
async fn half_a_handshake_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let running = app::start(everywhere(dir.path()), Clock::system())
        .await
        .unwrap();
    let address = ("127.0.0.1", running.api_addr.port());
    let silent = TcpStream::connect(address).await.unwrap();
    let (ca, secret) = (dir.path().join("ca/root.pem"), dir.path().join("api.token"));
    let words = [
        "--ca",
        ca.to_str().unwrap(),
        "--token-file",
        secret.to_str().unwrap(),
        "list",
    ];
    assert_eq!(run(&running, &words).await, Ok("none\n".to_owned()));
    drop(silent);
    running.stop().await;
}
