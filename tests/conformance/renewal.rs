//! Group E: certificates from the real control plane, and a proxy that was asleep.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use outrigger_tests::{
    bin,
    loopback::{PATIENCE, Proxy, Setup, raw},
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// A control plane on loopback whose certificates live five seconds; killed when dropped.
struct Control {
    child: Child,
    ip: Ipv4Addr,
}

impl Control {
    async fn start(dir: &Path) -> Self {
        let [.., b, c, d] = rand::random::<[u8; 4]>();
        let ip = Ipv4Addr::new(127, b.max(1), c, d.clamp(1, 254));
        let log = fs::File::create(dir.join("control.log")).expect("a log file");
        let child = Command::new(bin("outrigger-control"))
            .args(["run", "--certificate-ttl", "5s", "--state-dir"])
            .arg(dir.join("control"))
            .args(["--xds-addr", &format!("{ip}:15012")])
            .args(["--api-addr", &format!("{ip}:15010")])
            .args(["--telemetry-addr", &format!("{ip}:15014")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the control plane starts");
        let control = Self { child, ip };
        let end = Instant::now() + PATIENCE;
        while control.cli(&["list"]).is_none() {
            assert!(Instant::now() < end, "the control plane does not answer");
            sleep(Duration::from_millis(100)).await;
        }
        control
    }

    /// What `outrigger` prints, when it succeeds.
    fn cli(&self, args: &[&str]) -> Option<String> {
        let output = Command::new(bin("outrigger"))
            .args(["--server", &format!("{}:15010", self.ip)])
            .args(args)
            .output()
            .expect("outrigger");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The serial number of the certificate in force.
async fn serial(proxy: &Proxy) -> Option<String> {
    let page: Value = serde_json::from_str(&proxy.admin("/certs").await).ok()?;
    let leaf = &page["certificates"][0]["cert_chain"][0];
    Some(leaf["serial_number"].as_str()?.to_owned())
}

/// Waits until the proxy is ready with a certificate other than `old`.
async fn renewed(proxy: &Proxy, old: Option<&String>) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(new) = serial(proxy).await
            && Some(&new) != old
            && proxy.health("/healthz/ready").await == 200
        {
            return new;
        }
        assert!(Instant::now() < end, "no new certificate");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_03_a_proxy_that_slept_past_its_certificates_end_gets_a_new_one_by_its_token() {
    let dir = tempfile::tempdir().expect("a folder");
    let control = Control::start(dir.path()).await;
    let args = "token create --namespace shop --service-account web";
    let token = control.cli(&args.split(' ').collect::<Vec<_>>());
    let token_file = dir.path().join("token");
    fs::write(&token_file, token.expect("a token").trim()).expect("written");
    let app = raw::serve(|_, _| std::future::ready(())).await;
    let root = dir.path().join("control/ca/root.pem");
    let proxy = Setup::http(app)
        .flags(&["--namespace", "shop", "--service-account", "web"])
        .flags(&["--control-plane", &format!("{}:15012", control.ip)])
        .flags(&["--trust-bundle", root.to_str().expect("a path")])
        .flags(&["--token-file", token_file.to_str().expect("a path")])
        .start()
        .await;
    let first = renewed(&proxy, None).await;
    // Awake, it renews with the certificate that it has.
    let mut last = renewed(&proxy, Some(&first)).await;
    for _ in 0..2 {
        proxy.signal("STOP");
        sleep(Duration::from_secs(8)).await;
        proxy.signal("CONT");
        // The one that expired meanwhile proves nothing, and would end the handshake if shown.
        last = renewed(&proxy, Some(&last)).await;
    }
}
