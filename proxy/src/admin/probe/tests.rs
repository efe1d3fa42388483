//! Applications that are asked.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

/// An application that answers every connection's first request with what `answer` makes of it.
async fn application(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut got = vec![0; 4096];
            let read = stream.read(&mut got).await.unwrap_or(0);
            let text = String::from_utf8_lossy(got.get(..read).unwrap_or_default()).into_owned();
            let _gone = stream.write_all(answer(&text).as_bytes()).await;
        }
    });
    port
}

async fn ask(probe: &str) -> (u16, String) {
    let probes = format!(r#"{{"app/readiness": {probe}}}"#)
        .parse()
        .expect("good");
    let prober = Prober::new(probes, Ipv4Addr::LOCALHOST.into());
    let answer = prober.answer("/probe/app/readiness").await.expect("a page");
    (answer.status.as_u16(), answer.body)
}

#[tokio::test]
async fn ku_10_the_application_decides() {
    let port = application(|asked| {
        let status = if asked.starts_with("GET /good?x=1 ") && asked.contains("x-probe: yes") {
            "204 No Content"
        } else {
            "500 Oh"
        };
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let headers = r#""headers": [["X-Probe", "yes"]]"#;
    let good = format!(r#"{{"http": {{"port": {port}, "path": "/good?x=1", {headers}}}}}"#);
    assert_eq!(ask(&good).await.0, 204);
    let bad = format!(r#"{{"http": {{"port": {port}, "path": "/bad"}}}}"#);
    let (status, text) = ask(&bad).await;
    assert_eq!(
        (status, text.as_str()),
        (500, "the application answered 500\n")
    );
}

#[tokio::test]
async fn ku_10_a_large_answer_is_not_waited_for() {
    let port = application(|_| {
        let body = "x".repeat(1 << 20);
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    })
    .await;
    assert_eq!(
        ask(&format!(r#"{{"http": {{"port": {port}}}}}"#)).await.0,
        200
    );
}

#[tokio::test]
async fn ku_10_redirects_to_itself_are_followed_and_others_pass() {
    let port = application(|asked| {
        let to = |location: &str| {
            format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
        };
        match asked.split(' ').nth(1) {
            Some("/a") => to("/b"),
            Some("/b") => "HTTP/1.1 418 I\r\ncontent-length: 0\r\n\r\n".into(),
            Some("/away") => to("https://login.example/"),
            _ => to("/loop"),
        }
    })
    .await;
    let at = |path: &str| format!(r#"{{"http": {{"port": {port}, "path": "{path}"}}}}"#);
    assert_eq!(ask(&at("/a")).await.0, 418);
    assert_eq!(ask(&at("/away")).await.0, 200);
    let (status, text) = ask(&at("/loop")).await;
    assert_eq!((status, text.contains("redirects")), (503, true), "{text}");
}

#[tokio::test]
async fn ku_10_a_tcp_probe_reaches_the_application_and_nobody_else() {
    let port = application(|_| String::new()).await;
    assert_eq!(
        ask(&format!(r#"{{"tcp": {{"port": {port}}}}}"#)).await.0,
        200
    );
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let closed = free.local_addr().expect("its address").port();
    drop(free);
    assert_eq!(
        ask(&format!(r#"{{"tcp": {{"port": {closed}}}}}"#)).await.0,
        503
    );
}

#[tokio::test(start_paused = true)]
async fn ku_10_an_application_that_hangs_is_not_ready() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let probe = format!(r#"{{"http": {{"port": {port}}}, "timeout": 2}}"#);
    let (status, text) = ask(&probe).await;
    assert_eq!((status, text.as_str()), (504, "no answer within 2s\n"));
}

#[tokio::test]
async fn a_probe_that_nobody_set_up_is_not_found() {
    let prober = Prober::new(Probes::default(), Ipv4Addr::LOCALHOST.into());
    let answer = prober.answer("/probe/app/readiness").await.expect("a page");
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(prober.answer("/healthz/ready").await.is_none());
}
