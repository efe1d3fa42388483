"""Configurations of HAProxy, nginx, and the application (which is nginx too).

HAProxy and nginx cannot check a SPIFFE ID: outbound they check the server's DNS name, inbound only
the chain. Their OpenSSL has no X25519MLKEM768. nginx sends HTTP/2 on as HTTP/1.1 and gRPC without
multiplexing. They bound what is possible; they are no drop-in for a mesh's proxy.
"""

from layout import (
    COLLECTOR, ENDPOINTS, HTTP1, HTTP2, MANY, SERVER, SERVICES, many_endpoint, many_name)
from pki import dns

BODY_BYTES = 1024


def application(folder):
    """1,024 bytes for every request; a message of that length with its trailer for gRPC calls;
    OK to every export of traces. Bytes, since a gRPC message starts with some that are no text."""
    body = b"x" * BODY_BYTES
    # Field 1, length-delimited: two bytes of tag and length more than the 1,021 of content.
    message = b"\x0a\xfd\x07" + b"x" * (BODY_BYTES - 3)
    grpc = lambda inner: b"\0" + len(inner).to_bytes(4, "big") + inner
    text = f"""user root; daemon off; worker_processes 1; worker_rlimit_nofile 16000;
pid {folder}/app.pid; error_log {folder}/app.err error;
events {{ worker_connections 8000; }}
http {{
  access_log off; server_tokens off; tcp_nodelay on; default_type text/plain; root {folder};
  keepalive_requests 1000000000; keepalive_timeout 1h; http2_max_concurrent_streams 4096;
  {temporary(f"{folder}/application")}
  server {{ listen {HTTP1.app} backlog=4096; location / {{ return 200 "BODY"; }} }}
  server {{
    listen {HTTP2.app} http2 backlog=4096;
    location / {{ return 200 "BODY"; }}
    location /bench.Echo/ {{
      default_type application/grpc; add_trailer grpc-status 0; return 200 "MESSAGE";
    }}
  }}
  server {{
    listen {COLLECTOR} http2;
    location / {{ default_type application/grpc; add_trailer grpc-status 0; return 200 "EMPTY"; }}
  }}
}}
""".encode()
    filled = text.replace(b"BODY", body).replace(b"MESSAGE", grpc(message))
    return filled.replace(b"EMPTY", grpc(b""))


def temporary(prefix):
    """nginx makes these folders at the start, wherever it was built to have them."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {prefix}-{kind};" for kind in kinds)


def haproxy(side, certificates, many=False):
    own = "client" if side == "out" else "server"
    parts = ["""global
  nbthread 1
  maxconn 5000
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-curves X25519
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
  tune.h2.max-concurrent-streams 4096
  tune.ssl.cachesize 0
defaults
  mode http
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  option http-keep-alive
  http-reuse always
  retries 2
  retry-on conn-failure 503
  default-server pool-max-conn 1000 observe layer4 error-limit 100 on-error mark-down"""]
    identity = f"crt {certificates}/{own}.pem ca-file {certificates}/ca.crt"
    upstream = f"ssl verify required verifyhost {dns('server')} sni str({dns('server')}) {identity}"
    upstream += " no-ssl-reuse"
    for service in SERVICES:
        h2 = service is HTTP2
        if side == "out":
            bind = f"127.0.0.1:{service.outbound}" + (" proto h2" if h2 else "")
            server = f"{SERVER.ip}:{service.inbound} {upstream}" + (" alpn h2" if h2 else "")
        else:
            bind = f"{SERVER.ip}:{service.inbound} ssl verify required {identity}"
            bind += " alpn h2" if h2 else ""
            server = f"127.0.0.1:{service.app}" + (" proto h2" if h2 else "")
        many_here = many and service is HTTP1
        rules = [f"  use_backend {many_name(n)} if {{ hdr(host) -i {many_name(n)}.bench }}"
                 for n in range(MANY if many_here else 0)]
        parts += [f"frontend {service.name}-front\n  mode {service.kind}\n  bind {bind}", *rules,
                  f"  default_backend {service.name}",
                  f"backend {service.name}\n  mode {service.kind}\n"
                  f"  server one {server} check inter 10s"]
    for n in range(MANY if many else 0):
        servers = (f"  server e{e} {many_endpoint(n, e)}:8080 {upstream}" for e in range(ENDPOINTS))
        parts.append(f"backend {many_name(n)}\n" + "\n".join(servers))
    return "\n".join(parts) + "\n"


def nginx(side, certificates, folder, module, many=False):
    own = "client" if side == "out" else "server"
    out = side == "out"
    pair = (f"{certificates}/{own}.crt", f"{certificates}/{own}.key")
    def dialled(what):
        return f"""{what}_ssl_certificate {pair[0]}; {what}_ssl_certificate_key {pair[1]};
  {what}_ssl_trusted_certificate {certificates}/ca.crt; {what}_ssl_verify on;
  {what}_ssl_verify_depth 2; {what}_ssl_name {dns('server')}; {what}_ssl_server_name on;
  {what}_ssl_session_reuse off; {what}_ssl_protocols TLSv1.3;
  {what}_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;"""
    accepted = f"""ssl_certificate {pair[0]}; ssl_certificate_key {pair[1]};
  ssl_client_certificate {certificates}/ca.crt; ssl_verify_client on; ssl_protocols TLSv1.3;
  ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_ecdh_curve X25519;
  ssl_session_cache off; ssl_session_tickets off;"""
    front = lambda s: f"127.0.0.1:{s.outbound}" if out else f"{SERVER.ip}:{s.inbound} ssl"
    back = lambda s: f"{SERVER.ip}:{s.inbound}" if out else f"127.0.0.1:{s.app}"
    secure = "s" if out else ""
    keep = "keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h;"
    pools = [f"upstream {s.name} {{ server {back(s)} max_fails=5 fail_timeout=30s; {keep} }}"
             for s in (HTTP1, HTTP2)]
    hosts = []
    for n in range(MANY if many else 0):
        name = many_name(n)
        servers = " ".join(f"server {many_endpoint(n, e)}:8080 max_fails=5 fail_timeout=30s;"
                           for e in range(ENDPOINTS))
        pools.append(f"upstream {name} {{ {servers} keepalive 64; }}")
        hosts.append(f"server {{ listen {front(HTTP1)}; server_name {name} {name}.bench "
                     f"{name}.bench.svc.cluster.local; "
                     f"location / {{ proxy_pass https://{name}; }} }}")
    # What comes as HTTP/2 is sent on as HTTP/1.1, which is what the other side's first port speaks.
    plain = f"location / {{ proxy_pass http{secure}://{HTTP1.name}; }}"
    grpc = f"location /bench.Echo/ {{ grpc_pass grpc{secure}://{HTTP2.name}; }}"
    streams = [f"server {{ listen {front(s)} backlog=4096; proxy_pass {back(s)}; }}"
               for s in SERVICES if s.kind == "tcp"]
    new = "\n  "
    return f"""load_module {module};
user root; daemon off; worker_processes 1; worker_rlimit_nofile 16000;
pid {folder}/nginx-{side}.pid; error_log {folder}/nginx-{side}.err error;
events {{ worker_connections 8000; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 1h;
  http2_max_concurrent_streams 4096;
  server_names_hash_max_size 16384; server_names_hash_bucket_size 128;
  {temporary(f"{folder}/nginx-{side}")}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
  proxy_buffering off; proxy_next_upstream error timeout http_503; proxy_next_upstream_tries 3;
  grpc_next_upstream error timeout; grpc_next_upstream_tries 3;
  {dialled("proxy") + new + dialled("grpc") if out else accepted}
  {new.join(pools)}
  server {{ listen {front(HTTP1)} backlog=4096 default_server; {plain} }}
  server {{ listen {front(HTTP2)} http2 backlog=4096; {plain} {grpc} }}
  {new.join(hosts)}
}}
stream {{
  {dialled("proxy") + " proxy_ssl on;" if out else accepted}
  {new.join(streams)}
}}
"""
