//! Programs that know nothing of the mesh, over ports whose protocol nobody named.

use outrigger_tests::{
    bin, mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{PATIENCE, apply, background, control_plane, service, sidecar, succeeds};

const VIP: &str = "10.96.0.20";

/// A client and a server pod, both in the mesh, with one service on port 7000.
fn pair(mesh: &mut Mesh) -> (Pod, Pod) {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    apply(mesh, &service("tcp", VIP, "[{port: 7000}]", &[server.ip]));
    sidecar(mesh, &server, "tcp", &[]);
    sidecar(mesh, &client, "client", &[]);
    (client, server)
}

fn testapp(mesh: &mut Mesh, pod: &Pod, command: &str) {
    let mut app = std::process::Command::new(bin("outrigger-testapp"));
    app.args([command, "--listen", "0.0.0.0:7000"]);
    mesh.spawn_in(pod, "app", &app);
}

mesh_test!(tc_01_half_close_both_ways, mesh, {
    let (client, server) = pair(mesh);
    background(
        mesh,
        &server,
        "late",
        "
import hashlib, socket, threading, time
listen = socket.create_server(('0.0.0.0', 7000)); print('ready')
def serve(c):
    # The client ends first; the answer comes a second later.
    data = b''
    while piece := c.recv(65536): data += piece
    time.sleep(1)
    c.sendall(hashlib.sha256(data).hexdigest().encode() + b'y' * 1000000)
    c.close()
while True:
    threading.Thread(target=serve, args=(listen.accept()[0],), daemon=True).start()
",
    );
    succeeds(
        mesh,
        &client,
        "ends-first",
        &format!(
            "
import hashlib, os, socket
body = os.urandom(1000000)
s = socket.create_connection(('{VIP}', 7000), 10)
s.sendall(body); s.shutdown(socket.SHUT_WR)
got = b''
while piece := s.recv(65536): got += piece
assert len(got) == 1000064, len(got)
assert got[:64].decode() == hashlib.sha256(body).hexdigest()
"
        ),
    );
});

mesh_test!(tc_01_the_server_ends_first, mesh, {
    let (client, server) = pair(mesh);
    background(
        mesh,
        &server,
        "early",
        "
import hashlib, socket, threading
listen = socket.create_server(('0.0.0.0', 7000)); print('ready')
def serve(c):
    c.sendall(b'bye'); c.shutdown(socket.SHUT_WR)
    n = 0
    while piece := c.recv(65536): n += len(piece)
    print('received', n)
while True:
    threading.Thread(target=serve, args=(listen.accept()[0],), daemon=True).start()
",
    );
    succeeds(
        mesh,
        &client,
        "goes-on",
        &format!(
            "
import socket, time
s = socket.create_connection(('{VIP}', 7000), 10)
assert s.recv(3) == b'bye' and s.recv(1) == b''
for n in range(100): s.sendall(b'x' * 100000); time.sleep(0.002)
s.shutdown(socket.SHUT_WR); s.close()
"
        ),
    );
    until("all of it", PATIENCE, || {
        mesh.log("server-early")
            .contains("received 10000000")
            .then_some(())
    });
});

mesh_test!(tc_02_a_reset_arrives_as_a_reset, mesh, {
    let (client, server) = pair(mesh);
    background(
        mesh,
        &server,
        "resets",
        "
import socket, struct, time
listen = socket.create_server(('0.0.0.0', 7000)); print('ready')
while True:
    c = listen.accept()[0]
    c.recv(1)
    c.sendall(b'z' * 10000); time.sleep(0.3)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()
",
    );
    succeeds(
        mesh,
        &client,
        "wants-reset",
        &format!(
            "
import socket
s = socket.create_connection(('{VIP}', 7000), 10)
s.sendall(b'?')
n = 0
try:
    while piece := s.recv(65536): n += len(piece)
except ConnectionResetError:
    assert n == 10000, n
else:
    raise SystemExit('a clean end after %d bytes' % n)
"
        ),
    );
});

mesh_test!(tc_03_a_server_that_speaks_first_is_heard_at_once, mesh, {
    let (client, server) = pair(mesh);
    testapp(mesh, &server, "greet");
    succeeds(
        mesh,
        &client,
        "listens",
        &format!(
            "
import socket, time
for n in range(3):
    began = time.time()
    s = socket.create_connection(('{VIP}', 7000), 10)
    s.settimeout(10)
    assert s.recv(100) == b'220 ready\\r\\n'
    took = time.time() - began
    s.sendall(b'EHLO x\\r\\n')
    assert s.recv(100) == b'EHLO x\\r\\n'
    s.close()
assert took < 0.3, took
"
        ),
    );
});

mesh_test!(tc_09_a_large_transfer_arrives_whole, mesh, {
    let (client, server) = pair(mesh);
    testapp(mesh, &server, "echo");
    succeeds(
        mesh,
        &client,
        "large",
        &format!(
            "
import hashlib, os, socket, threading
s = socket.create_connection(('{VIP}', 7000), 30)
block = os.urandom(1 << 20); blocks = 200
sent = hashlib.sha256(); got = hashlib.sha256(); n = 0
def push():
    for _ in range(blocks): sent.update(block); s.sendall(block)
    s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=push); t.start()
while piece := s.recv(1 << 20): got.update(piece); n += len(piece)
t.join()
assert n == blocks << 20, n
assert got.digest() == sent.digest()
"
        ),
    );
});

mesh_test!(ht_08_a_web_socket_is_switched_and_carried, mesh, {
    let (client, server) = pair(mesh);
    background(
        mesh,
        &server,
        "upgrade",
        "
import socket, threading
listen = socket.create_server(('0.0.0.0', 7000)); print('ready')
def serve(c):
    head = b''
    while b'\\r\\n\\r\\n' not in head: head += c.recv(65536)
    assert b'pgrade: websocket' in head, head
    rest = head.split(b'\\r\\n\\r\\n', 1)[1]
    c.sendall(b'HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\nhello')
    if rest: c.sendall(rest)
    while piece := c.recv(65536): c.sendall(piece)
    c.close()
while True:
    threading.Thread(target=serve, args=(listen.accept()[0],), daemon=True).start()
",
    );
    succeeds(
        mesh,
        &client,
        "switches",
        &format!(
            "
import socket
s = socket.create_connection(('{VIP}', 7000), 10)
s.sendall(b'GET /chat HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n')
got = b''
while not got.endswith(b'hello'): got += s.recv(65536)
assert got.startswith(b'HTTP/1.1 101'), got
body = bytes(range(256)) * 4096
s.sendall(body); s.shutdown(socket.SHUT_WR)
back = b''
while piece := s.recv(65536): back += piece
assert back == body, len(back)
"
        ),
    );
});
