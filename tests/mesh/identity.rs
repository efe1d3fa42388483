//! Who answers at an address has to be who the service says; anybody else hears nothing.

use std::fs;

use outrigger_tests::{
    mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{PATIENCE, apply, background, control_plane, proxy, service, sidecar, token};

const VIP: &str = "10.96.0.70";

/// Answers requests, and says of each connection and byte that it came.
const LISTENER: &str = "
import socket, threading
listen = socket.create_server(('0.0.0.0', 8080)); print('ready')
def serve(c):
    print('connection')
    head = b''
    while piece := c.recv(65536):
        print('bytes', len(piece))
        head += piece
        if b'\\r\\n\\r\\n' in head:
            c.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok'); head = b''
while True:
    threading.Thread(target=serve, args=(listen.accept()[0],), daemon=True).start()
";

/// A client and a pod that is the only endpoint of the service `web`, on a port for requests and
/// on one for bytes; the pod's account is `account`.
fn rig(mesh: &mut Mesh, account: &str) -> (Pod, Pod) {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    background(mesh, &server, "listener", LISTENER);
    let ports = "[{name: http, port: 80, targetPort: 8080, appProtocol: http}, \
                 {name: raw, port: 90, targetPort: 8080, appProtocol: tcp}]";
    apply(mesh, &service("web", VIP, ports, &[server.ip]));
    sidecar(mesh, &server, account, &[]);
    sidecar(mesh, &client, "client", &[]);
    (client, server)
}

/// The head of the answer to a POST.
fn post(client: &Pod) -> String {
    let line = format!("curl -s -m 5 -D - -o /dev/null -d secret http://{VIP}/");
    client.sh(&line).1
}

/// Nothing but an end or a reset comes back for bytes sent to the opaque port.
fn raw_gets_nothing(mesh: &Mesh, client: &Pod) {
    let script = format!(
        "
import socket
got = b''
try:
    s = socket.create_connection(('{VIP}', 90), 5)
    s.sendall(b'POST / HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: 0\\r\\n\\r\\n')
    while piece := s.recv(65536): got += piece
except (ConnectionResetError, BrokenPipeError): pass
assert got == b'', got
"
    );
    fs::write(mesh.dir.join("raw.py"), script).expect("written");
    let (code, _, err) = client.sh("python3 raw.py");
    assert_eq!(code, Some(0), "{err}");
}

mesh_test!(tl_09_another_identity_gets_no_byte_of_a_request, mesh, {
    let (client, _server) = rig(mesh, "impostor");
    let head = until("a refusal", PATIENCE, || {
        let head = post(&client);
        head.contains("PeerIdentityMismatch").then_some(head)
    });
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    for _ in 0..5 {
        assert!(post(&client).contains("PeerIdentityMismatch"));
        raw_gets_nothing(mesh, &client);
    }
    assert_eq!(mesh.log("server-listener").trim(), "ready");
});

mesh_test!(lb_01_an_address_used_again_by_another_workload, mesh, {
    let (client, server) = rig(mesh, "web");
    until("an answer", PATIENCE, || {
        post(&client).starts_with("HTTP/1.1 200").then_some(())
    });
    // Another workload comes to the address; the endpoint list has not heard of it.
    drop(mesh.signal("server-proxy", "KILL"));
    fs::remove_file(mesh.dir.join("server.token")).expect("the token");
    fs::remove_dir_all(mesh.dir.join("state-server")).expect("what it saved");
    token(mesh, &server.name, "impostor");
    let before = mesh.log("server-listener");
    proxy(mesh, &server, "impostor", &[]);
    until("a refusal", PATIENCE, || {
        post(&client).contains("PeerIdentityMismatch").then_some(())
    });
    raw_gets_nothing(mesh, &client);
    assert_eq!(mesh.log("server-listener"), before);
});
