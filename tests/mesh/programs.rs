//! Well-known programs, the real ones, on ports whose protocol nobody named, in a mesh that lets
//! nothing through in clear.

use std::{fmt::Write as _, fs, process::Command};

use outrigger_tests::{
    mesh_test,
    netns::{Mesh, Pod, until},
};

use crate::support::{
    PATIENCE, apply, background, control_plane, object, service, sidecar, succeeds,
};

const VIP: &str = "10.96.0.50";

/// A client and a server pod with one service on `ports`. The server takes mutual TLS only: what
/// gets through has gone through both proxies.
fn pair(mesh: &mut Mesh, ports: &[u16]) -> (Pod, Pod) {
    control_plane(mesh);
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let mut list = String::new();
    for port in ports {
        let _done = write!(list, "{{name: p{port}, port: {port}}}, ");
    }
    apply(mesh, &object("MutualTLS", "strict", "{mode: strict}"));
    apply(
        mesh,
        &service("app", VIP, &format!("[{list}]"), &[server.ip]),
    );
    sidecar(mesh, &server, "app", &[]);
    sidecar(mesh, &client, "client", &[]);
    (client, server)
}

/// Runs a shell line in a pod, which has to succeed: what it printed.
fn sh(pod: &Pod, line: &str) -> String {
    let (code, out, err) = pod.sh(line);
    assert_eq!(code, Some(0), "{}: {line}\n{out}{err}", pod.name);
    out.trim().to_owned()
}

/// Runs a shell line in a pod until it succeeds.
fn sh_in_time(pod: &Pod, what: &str, line: &str) -> String {
    until(what, PATIENCE, || {
        let (code, out, _) = pod.sh(line);
        (code == Some(0)).then(|| out.trim().to_owned())
    })
}

/// Starts a shell line in a pod.
fn start(mesh: &mut Mesh, pod: &Pod, name: &str, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]);
    mesh.spawn_in(pod, name, &command);
}

/// A certificate that the mesh does not know, in `app.pem` and `app.key`.
fn own_certificate(pod: &Pod, names: &str) {
    if pod.sh("test -e app.pem").0 == Some(0) {
        return;
    }
    sh(
        pod,
        &format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=application -addext subjectAltName={names} \
             -keyout app.key -out app.pem 2>&1 && chmod 600 app.key"
        ),
    );
}

/// Opens a connection and waits for the server's first byte, five times; none took 300 ms, the
/// first one, for which the proxy asked the control plane, included.
fn greets_at_once(mesh: &Mesh, client: &Pod, port: u16, greeting: &str) {
    let script = format!(
        "
import socket, time
took = []
for n in range(5):
    began = time.monotonic()
    s = socket.create_connection(('{VIP}', {port}), 10)
    first = s.recv(4096)
    took.append(round((time.monotonic() - began) * 1000, 1))
    assert b'{greeting}' in first, first
    s.close()
print('first bytes after', took, 'ms')
assert max(took) < 300, took
"
    );
    fs::write(mesh.dir.join("greets.py"), script).expect("written");
    println!("{}", sh(client, "python3 greets.py"));
}

mesh_test!(postgresql_sessions, mesh, {
    let (client, server) = pair(mesh, &[5432]);
    own_certificate(&server, &format!("IP:{VIP}"));
    // PostgreSQL refuses to be root, the only user here: another one, in one more namespace.
    let user = "unshare -U --map-user=1000 --map-group=1000";
    sh(
        &server,
        &format!(
            "echo secret > password && {user} initdb -D /run/data -U app -A scram-sha-256 \
             --pwfile=password --no-sync -E UTF8 --locale=C && \
             echo 'host all all all scram-sha-256' >> /run/data/pg_hba.conf"
        ),
    );
    let settings = "-c ssl=on -c ssl_cert_file=$PWD/app.pem -c ssl_key_file=$PWD/app.key";
    start(
        mesh,
        &server,
        "postgres",
        &format!("{user} postgres -D /run/data -h 0.0.0.0 -k /run -F {settings}"),
    );
    let login = |host: &str| {
        format!(
            "export PGPASSWORD=secret PGHOST={host} PGUSER=app PGDATABASE=postgres PGSSLMODE=disable;"
        )
    };
    let (there, here) = (login(VIP), login("127.0.0.1"));
    sh_in_time(
        &server,
        "PostgreSQL",
        &format!("{here} psql -qAtc 'select 1'"),
    );
    sh_in_time(
        &client,
        "a session",
        &format!("{there} psql -qAtc 'select 1'"),
    );
    // What is copied in and out is the same on both sides.
    let copied = sh(
        &client,
        &format!(
            "{there} psql -qAtc 'create table t (n int primary key, v text)' && \
             seq 1 200000 | sed 's/.*/&\\t&-value/' | psql -qAtc 'copy t from stdin' && \
             psql -qAtc 'copy (select * from t order by n) to stdout' | sha256sum"
        ),
    );
    let held =
        format!("{here} psql -qAtc 'copy (select * from t order by n) to stdout' | sha256sum");
    assert_eq!(copied, sh(&server, &held));
    assert_eq!(
        copied,
        sh(
            &client,
            "seq 1 200000 | sed 's/.*/&\\t&-value/' | sha256sum"
        )
    );
    // Eight sessions at once, with prepared statements.
    let bench = sh(
        &client,
        &format!("{there} pgbench -i -q 2>&1 && pgbench -n -M prepared -c 8 -t 50 2>&1"),
    );
    assert!(bench.contains("actually processed: 400/400"), "{bench}");
    // A query is cancelled over a second connection.
    let (_, _, err) = client.sh(&format!(
        "{there} timeout -s INT 1 psql -qAtc 'select pg_sleep(30)'"
    ));
    assert!(
        err.contains("canceling statement due to user request"),
        "{err}"
    );
    // Its own TLS, asked for in the middle of the stream, ends at the server and nowhere else.
    let ssl = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
    let own = format!("PGSSLMODE=verify-full PGSSLROOTCERT=app.pem psql -qAtc '{ssl}'");
    assert_eq!(sh(&client, &format!("{there} {own}")), "t|TLSv1.3");
});

mesh_test!(redis_sessions, mesh, {
    let (client, server) = pair(mesh, &[6379]);
    start(
        mesh,
        &server,
        "redis",
        "redis-server --bind 0.0.0.0 --protected-mode no --save '' --dir /run",
    );
    let redis = format!("redis-cli -h {VIP}");
    sh_in_time(&client, "a session", &format!("{redis} ping | grep PONG"));
    let piped = sh(
        &client,
        &format!("seq 1 100000 | sed 's/.*/SET key& value&/' | {redis} --pipe"),
    );
    assert!(piped.contains("errors: 0, replies: 100000"), "{piped}");
    assert_eq!(sh(&client, &format!("{redis} dbsize")), "100000");
    assert_eq!(sh(&client, &format!("{redis} get key77777")), "value77777");
    // One value of 20 MB, there and back.
    sh(
        &client,
        &format!(
            "head -c 20000000 /dev/urandom > blob && {redis} -x set blob < blob && \
             {redis} get blob | head -c 20000000 | cmp - blob"
        ),
    );
    let both = format!("printf 'MULTI\\nINCR n\\nINCR n\\nEXEC\\n' | {redis}");
    assert_eq!(sh(&client, &both), "OK\nQUEUED\nQUEUED\n1\n2");
    // A subscriber that only listens, and a call that the server holds back.
    start(
        mesh,
        &client,
        "subscriber",
        &format!("{redis} subscribe news"),
    );
    sh_in_time(
        &client,
        "the subscriber",
        &format!("{redis} publish news hello | grep 1"),
    );
    until("the message", PATIENCE, || {
        mesh.log("client-subscriber")
            .contains("hello")
            .then_some(())
    });
    let blocked = format!("(sleep 0.5; {redis} rpush queue job) > pushed & {redis} blpop queue 10");
    assert_eq!(sh(&client, &blocked), "queue\njob");
});

mesh_test!(mariadb_sessions, mesh, {
    let (client, server) = pair(mesh, &[3306]);
    own_certificate(&server, &format!("IP:{VIP}"));
    let accounts = "create user app identified by 'secret';\n\
                    create database shop;\n\
                    grant all on shop.* to app;\n";
    fs::write(mesh.dir.join("accounts.sql"), accounts).expect("written");
    sh(
        &server,
        "mariadb-install-db --no-defaults --datadir=/run/data --user=root --skip-test-db \
         --auth-root-authentication-method=normal",
    );
    start(
        mesh,
        &server,
        "mariadbd",
        "mariadbd --no-defaults --user=root --datadir=/run/data --socket=/run/sock \
         --bind-address=0.0.0.0 --skip-name-resolve --init-file=$PWD/accounts.sql \
         --ssl-cert=$PWD/app.pem --ssl-key=$PWD/app.key",
    );
    let there = format!("mariadb --no-defaults -h {VIP} -u app -psecret -BN shop");
    let here = "mariadb --no-defaults -S /run/sock -u root -BN shop";
    sh_in_time(&server, "MariaDB", &format!("{here} -e 'select 1'"));
    // It speaks first.
    greets_at_once(mesh, &client, 3306, "MariaDB");
    let filled = "create table t (n int primary key, v varchar(40)); \
                  insert into t select seq, md5(seq) from seq_1_to_100000;";
    sh_in_time(&client, "a session", &format!("{there} -e 'select 1'"));
    sh(&client, &format!("{there} -e '{filled}'"));
    let all = "-qe 'select * from t order by n' | sha256sum";
    assert_eq!(
        sh(&client, &format!("{there} {all}")),
        sh(&server, &format!("{here} {all}"))
    );
    let undone = "begin; delete from t; rollback; select count(*) from t";
    assert_eq!(sh(&client, &format!("{there} -e '{undone}'")), "100000");
    let prepared = "prepare s from 'select v from t where n = ?'; execute s using 7";
    assert_eq!(
        sh(&client, &format!("{there} -e \"{prepared}\"")),
        "8f14e45fceea167a5a36dedd4bea2543"
    );
    // Its own TLS, asked for after the server's greeting.
    let own = "--ssl-ca=app.pem --ssl-verify-server-cert -e \"show status like 'Ssl_version'\"";
    assert_eq!(
        sh(&client, &format!("{there} {own}")),
        "Ssl_version\tTLSv1.3"
    );
});

mesh_test!(websocket_echo, mesh, {
    let (client, server) = pair(mesh, &[8765]);
    background(
        mesh,
        &server,
        "ws-server",
        "
from websockets.sync.server import serve
def echo(socket):
    for message in socket: socket.send(message)
with serve(echo, '0.0.0.0', 8765, max_size=None) as server:
    print('ready'); server.serve_forever()
",
    );
    succeeds(
        mesh,
        &client,
        "converses",
        &format!(
            "
import os, time
from websockets.sync.client import connect
with connect('ws://{VIP}:8765/chat', max_size=None) as socket:
    assert socket.response.headers['Upgrade'] == 'websocket'
    for n in range(200):
        socket.send('message %d' % n)
        assert socket.recv(10) == 'message %d' % n
    big = os.urandom(4 << 20)
    socket.send(big)
    assert socket.recv(30) == big
    # In pieces, and with a ping answered while nothing else moves.
    socket.send(piece for piece in ['one ', 'two ', 'three'])
    assert socket.recv(10) == 'one two three'
    time.sleep(1)
    assert socket.ping().wait(10)
    socket.close(4001, 'enough')
assert (socket.close_code, socket.close_reason) == (4001, 'enough'), socket.close_code
"
        ),
    );
});

/// Every kind of call, without generated code: messages are bytes.
const GRPC_SERVER: &str = "
import grpc, threading
from concurrent import futures
cancelled = threading.Event()
def unary(request, context):
    if request == b'fail':
        context.set_trailing_metadata((('reason-bin', bytes(range(256))),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'not \\u00fcber 100 %')
    if request == b'slow': cancelled.wait(20)
    if request == b'cancelled?': return b'yes' if cancelled.is_set() else b'no'
    context.send_initial_metadata((('seen', dict(context.invocation_metadata()).get('sent', 'nothing')),))
    context.set_trailing_metadata((('after', 'all'),))
    return request[::-1]
def counts(request, context):
    for n in range(int(request)): yield b'%d' % n
def sums(requests, context):
    return b'%d' % sum(len(request) for request in requests)
def chats(requests, context):
    context.add_callback(lambda: None if context.code() else cancelled.set())
    for request in requests: yield request.upper()
calls = {
    'Unary': grpc.unary_unary_rpc_method_handler(unary),
    'Counts': grpc.unary_stream_rpc_method_handler(counts),
    'Sums': grpc.stream_unary_rpc_method_handler(sums),
    'Chats': grpc.stream_stream_rpc_method_handler(chats),
}
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('test.Test', calls),))
server.add_insecure_port('0.0.0.0:50051'); server.start()
print('ready'); server.wait_for_termination()
";

/// Calls all of them.
const GRPC_CLIENT: &str = "
import grpc, sys, threading, time
channel = grpc.insecure_channel(sys.argv[1])
unary = channel.unary_unary('/test.Test/Unary')
counts = channel.unary_stream('/test.Test/Counts')
sums = channel.stream_unary('/test.Test/Sums')
chats = channel.stream_stream('/test.Test/Chats')
sent = (('sent', 'this'),)
answer, call = unary.with_call(b'hello', metadata=sent, timeout=10)
assert answer == b'olleh', answer
assert dict(call.initial_metadata())['seen'] == 'this', call.initial_metadata()
assert dict(call.trailing_metadata())['after'] == 'all', call.trailing_metadata()
big = bytes(range(256)) * 8192
assert unary(big, metadata=sent, timeout=30) == big[::-1]
try: unary(b'fail', timeout=10)
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == 'not \\u00fcber 100 %', error.details()
    assert dict(error.trailing_metadata())['reason-bin'] == bytes(range(256))
else: raise SystemExit('no error')
assert list(counts(b'5000', timeout=30)) == [b'%d' % n for n in range(5000)]
assert sums(iter([b'x' * 1000] * 2000), timeout=30) == b'2000000'
# In turns: each answer is there before the next message goes.
heard = threading.Semaphore(0)
def speak():
    for n in range(100):
        yield b'word %d' % n
        assert heard.acquire(timeout=10)
words = []
for word in chats(speak(), timeout=30): words.append(word); heard.release()
assert words == [b'WORD %d' % n for n in range(100)], words
# A deadline that passes.
began = time.monotonic()
try: unary(b'slow', timeout=0.5)
except grpc.RpcError as error: assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
assert time.monotonic() - began < 3
# A call that its caller gives up: the server learns of it.
held = threading.Event()
def once(): yield b'first'; held.wait(20)
call = chats(once())
assert next(call) == b'FIRST'
call.cancel(); held.set()
for _ in range(100):
    if unary(b'cancelled?', timeout=10) == b'yes': break
    time.sleep(0.1)
else: raise SystemExit('the server has not heard of it')
";

mesh_test!(grpc_unary_and_all_streamings, mesh, {
    let (client, server) = pair(mesh, &[50051]);
    background(mesh, &server, "grpc-server", GRPC_SERVER);
    fs::write(mesh.dir.join("grpc-client.py"), GRPC_CLIENT).expect("written");
    let probe = format!(
        "timeout 5 python3 -c 'import grpc; grpc.channel_ready_future(grpc.insecure_channel(\"{VIP}:50051\")).result(3)'"
    );
    sh_in_time(&client, "a channel", &probe);
    sh(&client, &format!("python3 grpc-client.py {VIP}:50051"));
});

/// nginx with a folder of files that may be read and put, in clear on 8080, as HTTP/2 in clear on
/// 8081, and with its own TLS on 8443.
fn nginx(mesh: &mut Mesh, pod: &Pod, names: &str) {
    own_certificate(pod, names);
    let dir = mesh.dir.join(format!("www-{}", pod.name));
    fs::create_dir_all(dir.join("body")).expect("a folder");
    let dir = dir.display();
    let config = format!(
        "user root; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
         events {{}}
         http {{
           access_log {dir}/access.log; client_body_temp_path {dir}/body;
           proxy_temp_path {dir}/body; fastcgi_temp_path {dir}/body;
           uwsgi_temp_path {dir}/body; scgi_temp_path {dir}/body;
           client_max_body_size 0; keepalive_requests 100000;
           server {{
             listen 8080; listen 8081 http2; listen 8443 ssl http2;
             ssl_certificate app.pem; ssl_certificate_key app.key;
             root {dir}; dav_methods PUT;
             location = /who {{ return 200 '{} $server_protocol $ssl_server_name'; }}
           }}
         }}",
        pod.name
    );
    let file = mesh.dir.join(format!("nginx-{}.conf", pod.name));
    fs::write(&file, config).expect("written");
    let line = format!(
        "nginx -p {} -g 'daemon off;' -c {}",
        mesh.dir.display(),
        file.display()
    );
    start(mesh, pod, "nginx", &line);
}

mesh_test!(nginx_and_curl, mesh, {
    let (client, server) = pair(mesh, &[8080, 8081]);
    nginx(mesh, &server, &format!("IP:{VIP}"));
    let url = format!("http://{VIP}:8080");
    let who = sh_in_time(&client, "an answer", &format!("curl -sf {url}/who"));
    assert_eq!(who, "server HTTP/1.1");
    sh(
        &client,
        "mkdir -p www-server && head -c 5000000 /dev/urandom > www-server/file",
    );
    // One connection for three requests.
    let kept =
        format!("curl -sf -w '%{{num_connects}} ' {url}/file -o a {url}/file -o b {url}/file -o c");
    assert_eq!(sh(&client, &kept), "1 0 0");
    sh(&client, "cmp a www-server/file && cmp c www-server/file");
    let part = format!("curl -sf -r 1000000-1999999 {url}/file | sha256sum");
    let same = "tail -c +1000001 www-server/file | head -c 1000000 | sha256sum";
    assert_eq!(sh(&client, &part), sh(&client, same));
    let status = |more: &str| {
        sh(
            &client,
            &format!("curl -s -o out -w '%{{http_code}}' {more}"),
        )
    };
    assert_eq!(status(&format!("{url}/none")), "404");
    assert_eq!(status(&format!("-I {url}/file")), "200");
    let tag = sh(
        &client,
        &format!("curl -sI {url}/file | sed -n 's/^ETag: //p' | tr -d '\\r'"),
    );
    assert_eq!(
        status(&format!("-H 'If-None-Match: {tag}' {url}/file")),
        "304"
    );
    assert_eq!(status(&format!("-X BREW {url}/file")), "405");
    // Uploads, with and without a length, and one that asks before it sends.
    assert_eq!(status(&format!("-T www-server/file {url}/put-1")), "201");
    assert_eq!(
        status(&format!(
            "-H 'Transfer-Encoding: chunked' -T www-server/file {url}/put-2"
        )),
        "201"
    );
    let asks = format!("-H 'Expect: 100-continue' -T www-server/file {url}/put-3");
    assert_eq!(status(&asks), "201");
    for n in 1..=3 {
        sh(&client, &format!("cmp www-server/file www-server/put-{n}"));
    }
    // HTTP/2 in clear. (A second request to it is beyond this curl, with or without a mesh.)
    let (h2, url) = (
        "curl -sf --http2-prior-knowledge",
        format!("http://{VIP}:8081"),
    );
    assert_eq!(sh(&client, &format!("{h2} {url}/who")), "server HTTP/2.0");
    sh(&client, &format!("{h2} {url}/file -o d"));
    sh(&client, "cmp d www-server/file");
});

mesh_test!(a_gigabyte_arrives_whole, mesh, {
    let (client, server) = pair(mesh, &[8080]);
    nginx(mesh, &server, &format!("IP:{VIP}"));
    sh(
        &client,
        "mkdir -p www-server && head -c 1000000000 /dev/zero | \
         openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff -iv 00 > www-server/file",
    );
    let url = format!("http://{VIP}:8080");
    sh_in_time(&client, "an answer", &format!("curl -sf {url}/who"));
    let timed =
        format!("curl -sf {url}/file -w '%{{stderr}}%{{time_total}} s' | cmp - www-server/file");
    let (code, out, err) = client.sh(&timed);
    println!("1 GB of HTTP in {err}");
    assert_eq!(code, Some(0), "{out}{err}");
});

mesh_test!(tl_07_an_applications_own_tls_is_left_alone, mesh, {
    let (client, server) = pair(mesh, &[8443]);
    nginx(mesh, &server, "DNS:shop.example");
    let curl = format!("curl -sf --cacert app.pem --connect-to shop.example:8443:{VIP}:8443");
    let who = format!("{curl} https://shop.example:8443/who");
    assert_eq!(
        sh_in_time(&client, "an answer", &who),
        "server HTTP/2.0 shop.example"
    );
    let who = format!("{curl} --http1.1 https://shop.example:8443/who");
    assert_eq!(sh(&client, &who), "server HTTP/1.1 shop.example");
    // The certificate that the client sees is the application's.
    let seen = format!(
        "openssl s_client -connect {VIP}:8443 -servername shop.example </dev/null 2>/dev/null | \
         openssl x509 -noout -fingerprint"
    );
    assert_eq!(
        sh(&client, &seen),
        sh(&client, "openssl x509 -noout -fingerprint -in app.pem")
    );
});

mesh_test!(an_applications_own_tls_is_routed_by_server_name, mesh, {
    let (client, server) = pair(mesh, &[8443]);
    nginx(mesh, &server, "DNS:*.shop.example");
    let other = mesh.pod("other");
    apply(
        mesh,
        &service("other", "10.96.0.51", "[{port: 8443}]", &[other.ip]),
    );
    sidecar(mesh, &other, "other", &[]);
    nginx(mesh, &other, "DNS:*.shop.example");
    let rule = "{parentRefs: [{kind: Service, group: '', name: app}], hostnames: [other.shop.example], \
                rules: [{backendRefs: [{name: other, port: 8443}]}]}";
    apply(mesh, &object("TLSRoute", "by-name", rule));
    let who = |name: &str| {
        format!(
            "curl -sf --cacert app.pem --connect-to {name}:8443:{VIP}:8443 https://{name}:8443/who"
        )
    };
    until("the route", PATIENCE, || {
        client
            .sh(&who("other.shop.example"))
            .1
            .starts_with("other ")
            .then_some(())
    });
    assert!(sh(&client, &who("server.shop.example")).starts_with("server "));
});
