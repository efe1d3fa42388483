//! A mesh with the real control plane, ready to have pods added.

use std::{fmt::Write as _, fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use outrigger_tests::{
    bin,
    netns::{MARK, Mesh, NODE, Pod, until},
};

/// Long enough for a debug build on a busy machine; reached only on failure.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const NAMESPACE: &str = "shop";

/// Starts the control plane on the node and waits until it answers.
pub fn control_plane(mesh: &mut Mesh) {
    let mut control = Command::new(bin("outrigger-control"));
    control
        .arg("run")
        .arg("--state-dir")
        .arg(mesh.dir.join("control"));
    control.args(["--xds-addr", &format!("{NODE}:15012")]);
    // Not on the loopback, so over TLS and with a token.
    control.args(["--api-addr", &format!("{NODE}:15010")]);
    control.args(["--telemetry-addr", &format!("{NODE}:15014")]);
    mesh.spawn("control", control);
    until("the control plane", PATIENCE, || {
        let (ok, ..) = cli(mesh, &["list"]);
        ok.then_some(())
    });
}

/// Runs `outrigger` on the node: success, standard output, standard error.
pub fn cli(mesh: &Mesh, args: &[&str]) -> (bool, String, String) {
    let output = Command::new(bin("outrigger"))
        .args(["--server", &format!("{NODE}:15010")])
        .args(["--ca", "control/ca/root.pem"])
        .args(["--token-file", "control/api.token"])
        .args(args)
        .current_dir(&mesh.dir)
        .output()
        .expect("outrigger");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Applies objects.
pub fn apply(mesh: &Mesh, yaml: &str) {
    let file = mesh.dir.join("apply.yaml");
    fs::write(&file, yaml).expect("written");
    let (ok, out, err) = cli(mesh, &["apply", "-f", "apply.yaml"]);
    assert!(ok, "apply: {out}{err}\n{yaml}");
}

/// A `Service` whose endpoints all listen on `target`.
pub fn service(name: &str, vip: &str, ports: &str, endpoints: &[Ipv4Addr]) -> String {
    let mut yaml = format!(
        "apiVersion: outrigger.dev/v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec:\n  serviceAccount: {name}\n  addresses: [{vip}]\n  ports: {ports}\n  endpoints:\n"
    );
    for (n, address) in endpoints.iter().enumerate() {
        let _done = writeln!(yaml, "  - {{address: {address}, workload: {name}-{n}}}");
    }
    yaml
}

/// A policy object of this name, with a specification.
pub fn object(kind: &str, name: &str, spec: &str) -> String {
    let group = match kind {
        "HTTPRoute" | "TLSRoute" | "TCPRoute" => "gateway.networking.k8s.io",
        _ => "outrigger.dev",
    };
    format!(
        "apiVersion: {group}/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec: {spec}\n"
    )
}

/// The file with the join token of a pod of this name and account.
pub fn token(mesh: &Mesh, pod: &str, account: &str) -> PathBuf {
    let token = mesh.dir.join(format!("{pod}.token"));
    if !token.exists() {
        let args = [
            "token",
            "create",
            "--namespace",
            NAMESPACE,
            "--service-account",
            account,
        ];
        let (ok, out, err) = cli(mesh, &args);
        assert!(ok, "token: {out}{err}");
        fs::write(&token, out.trim()).expect("written");
    }
    token
}

/// Starts a sidecar in a pod, with its redirect rules.
pub fn sidecar(mesh: &mut Mesh, pod: &Pod, account: &str, more: &[&str]) {
    token(mesh, &pod.name, account);
    let mut init = Command::new(bin("outrigger-proxy"));
    init.args(["init", "--proxy-mark", &MARK.to_string()]);
    let output = pod.output(&init);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "init in {}: {text}", pod.name);
    proxy(mesh, pod, account, more);
}

/// Starts a sidecar's process alone.
pub fn proxy(mesh: &mut Mesh, pod: &Pod, account: &str, more: &[&str]) {
    let mut proxy = Command::new(bin("outrigger-proxy"));
    proxy.args(["run", "--workers", "1", "--namespace", NAMESPACE]);
    proxy.args(["--service-account", account, "--workload", &pod.name]);
    proxy.args(["--pod-ip", &pod.ip.to_string(), "--mark", &MARK.to_string()]);
    proxy.args([
        "--control-plane",
        &format!("{NODE}:15012"),
        "--trust-bundle",
    ]);
    proxy.arg(mesh.dir.join("control/ca/root.pem"));
    proxy
        .arg("--token-file")
        .arg(mesh.dir.join(format!("{}.token", pod.name)));
    proxy
        .arg("--state-dir")
        .arg(mesh.dir.join(format!("state-{}", pod.name)));
    proxy.args(more);
    mesh.spawn_in(pod, "proxy", &proxy);
}

/// Starts the test application in a pod.
pub fn app(mesh: &mut Mesh, pod: &Pod, port: u16, more: &[&str]) {
    let mut app = Command::new(bin("outrigger-testapp"));
    app.args([
        "http",
        "--listen",
        &format!("0.0.0.0:{port}"),
        "--name",
        &pod.name,
    ]);
    app.args(more);
    mesh.spawn_in(pod, "app", &app);
}

/// Starts a load in the client's pod.
pub fn load(
    mesh: &mut Mesh,
    client: &Pod,
    name: &str,
    (method, vip): (&str, &str),
    rate: u32,
    seconds: u32,
) {
    let mut load = Command::new(bin("outrigger-testapp"));
    load.args([
        "load",
        "--url",
        &format!("http://{vip}/"),
        "--method",
        method,
    ]);
    load.args([
        "--rate",
        &rate.to_string(),
        "--seconds",
        &seconds.to_string(),
    ]);
    mesh.spawn_in(client, name, &load);
}

/// Waits for a load's summary.
pub fn summary(mesh: &Mesh, name: &str, limit: Duration) -> serde_json::Value {
    until(name, limit, || {
        let log = mesh.log(&format!("client-{name}"));
        let line = log.lines().find(|line| line.starts_with('{'))?;
        Some(serde_json::from_str(line).expect("JSON"))
    })
}

/// Runs a Python script in a pod in the background.
pub fn background(mesh: &mut Mesh, pod: &Pod, name: &str, script: &str) {
    let file = mesh.dir.join(format!("{name}.py"));
    fs::write(&file, script).expect("written");
    let mut python = Command::new("python3");
    python.arg("-u").arg(file);
    mesh.spawn_in(pod, name, &python);
    let log = format!("{}-{name}", pod.name);
    until(name, PATIENCE, || {
        mesh.log(&log).contains("ready").then_some(())
    });
}

/// Runs a Python script in a pod until it succeeds, which it has to in the end.
pub fn succeeds(mesh: &Mesh, pod: &Pod, name: &str, script: &str) -> String {
    let file = mesh.dir.join(format!("{name}.py"));
    fs::write(&file, script).expect("written");
    let mut last = String::new();
    let line = format!("timeout 60 python3 {}", file.display());
    until(name, PATIENCE * 3, || {
        let (code, out, err) = pod.sh(&line);
        last = format!("{out}{err}");
        if code == Some(0) {
            return Some(out);
        }
        eprintln!("{name}: {last}");
        None
    })
}

/// Writes every frame of an interface into a file, one after the other. tcpdump wants to become
/// another user, which a user namespace does not have.
const CAPTURE: &str = "
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind((sys.argv[1], 0))
out = open(sys.argv[2], 'wb', buffering=0)
print('listening', flush=True)
while True:
    out.write(wire.recv(65536))
";

/// Begins to record what the first pod sends and receives, into `wire.bin`.
pub fn capture(mesh: &mut Mesh) {
    let mut python = Command::new("python3");
    python
        .args(["-c", CAPTURE, "v1"])
        .arg(mesh.dir.join("wire.bin"));
    mesh.spawn("capture", python);
    until("the capture", PATIENCE, || {
        mesh.log("capture").contains("listening").then_some(())
    });
}

/// What was recorded.
pub fn wire(mesh: &Mesh) -> Vec<u8> {
    std::thread::sleep(Duration::from_millis(300));
    fs::read(mesh.dir.join("wire.bin")).expect("a capture")
}
