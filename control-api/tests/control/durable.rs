//! What was answered is kept, whenever and however the process ends.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use outrigger_proto::outrigger::control::v1::{
    self as pb, control_service_client::ControlServiceClient,
};
use tonic::transport::{Channel, Endpoint};

/// The server in a process of its own.
struct Server {
    process: Child,
    client: ControlServiceClient<Channel>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    fn start(dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_outrigger-control"))
            .arg("run")
            .arg("--state-dir")
            .arg(dir)
            .args(["--xds-addr", "127.0.0.1:0"])
            .args(["--api-addr", "127.0.0.1:0"])
            .args(["--telemetry-addr", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // After the address nobody reads what it logs: that must not disturb it.
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut api = lines.map(Result::unwrap).filter_map(|line| {
            let (_, rest) = line.split_once("api=")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        let api = api.next().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{api}")).unwrap();
        Self {
            process,
            client: ControlServiceClient::new(endpoint.connect_lazy()),
        }
    }

    /// As the kernel does it when memory runs out: nothing is written any more.
    fn kill(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }

    async fn list(&mut self) -> pb::ListResponse {
        let all = self.client.list(pb::ListRequest::default()).await;
        all.unwrap().into_inner()
    }
}

/// Two services that must come and go together.
fn pair(round: usize, i: usize) -> String {
    let service = |name: &str| {
        format!(
            "{{apiVersion: outrigger.dev/v1, kind: Service, metadata: {{name: {name}-{round}-{i}}}, \
             spec: {{ports: [{{port: 80}}]}}}}\n"
        )
    };
    format!("{}---\n{}", service("a"), service("b"))
}

#[tokio::test]
async fn what_was_answered_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered = (0, 0);
    for round in 0..4 {
        let mut server = Server::start(dir.path());
        let before = server.list().await;
        assert!(
            before.revision >= answered.0,
            "{} < {}",
            before.revision,
            answered.0
        );
        assert!(before.objects.len() >= answered.1, "round {round}");
        // All or none, also of the change that was not answered.
        assert_eq!(before.objects.len() % 2, 0, "round {round}");
        let mut client = server.client.clone();
        let applying = tokio::spawn(async move {
            let mut last = None;
            for i in 0..10_000 {
                let request = pb::ApplyRequest {
                    manifest: pair(round, i),
                    ..pb::ApplyRequest::default()
                };
                match client.apply(request).await {
                    Ok(answer) => last = Some((answer.into_inner().revision, 2 * (i + 1))),
                    Err(_) => break,
                }
            }
            last
        });
        tokio::time::sleep(Duration::from_millis(150 + 70 * round as u64)).await;
        server.kill();
        let (revision, made) = applying.await.unwrap().unwrap_or((before.revision, 0));
        answered = (revision, before.objects.len() + made);
    }
    let mut server = Server::start(dir.path());
    let last = server.list().await;
    assert!(last.objects.len() >= answered.1 && last.revision >= answered.0);
    assert!(answered.1 > 0, "nothing was applied at all");
}

#[tokio::test]
async fn revisions_count_on_after_a_restart_and_say_who_wrote_what() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let apply = async |server: &mut Server, manifest: &str| {
        let request = pb::ApplyRequest {
            manifest: manifest.into(),
            ..pb::ApplyRequest::default()
        };
        server
            .client
            .apply(request)
            .await
            .unwrap()
            .into_inner()
            .revision
    };
    assert_eq!(apply(&mut server, &pair(0, 0)).await, 1);
    assert_eq!(apply(&mut server, &pair(0, 0)).await, 1, "nothing changed");
    assert_eq!(apply(&mut server, &pair(0, 1)).await, 2);
    server.kill();
    let mut server = Server::start(dir.path());
    assert_eq!(server.list().await.revision, 2);
    let revisions: Vec<_> = server
        .list()
        .await
        .objects
        .iter()
        .map(|o| o.revision)
        .collect();
    assert_eq!(revisions, [1, 2, 1, 2]);
    assert_eq!(apply(&mut server, &pair(0, 2)).await, 3);
}
