"""Who stands where. Two pods joined by a veth pair, one CPU for the edges, one for the proxies.

    client pod                                      server pod
    load -> outbound proxy (127.0.0.1) == mTLS ==> inbound proxy (10.77.0.2) -> application

Every proxy does this same work with the same certificates. The two pods are network namespaces of
their own, so that the encrypted leg crosses an interface and no proxy can mistake it for loopback.
"""

from typing import NamedTuple


class Pod(NamedTuple):
    name: str
    ip: str


class Service(NamedTuple):
    name: str
    kind: str  # "http", or "tcp" for bytes that no proxy looks into
    outbound: int
    inbound: int
    app: int


CLIENT = Pod("client", "10.77.0.1")
SERVER = Pod("server", "10.77.0.2")

HTTP1 = Service("http1", "http", 2101, 2201, 8080)
HTTP2 = Service("http2", "http", 2102, 2202, 8081)
# The bytes are HTTP/1.1, but the proxies do not know: one mTLS session for each client connection.
STREAM = Service("stream", "tcp", 2103, 2203, 8080)
BULK = Service("bulk", "tcp", 2104, 2204, 8082)
SERVICES = (HTTP1, HTTP2, STREAM, BULK)

# Ports that redirected connections arrive at, and the mark that tells a proxy's own from others.
REDIRECT_OUT, REDIRECT_IN, MARK = 15001, 15006, 1337
ADMIN, TELEMETRY, HEALTH = 15000, 15020, 15021
# Stands in for an OpenTelemetry collector; in the server pod.
COLLECTOR = 8083
IPERF = BULK.app

# The load and the application share one CPU, both proxies the other. What a proxy carries is then
# what one CPU carries, and no load generator ever takes time from it.
EDGE_CPU, PROXY_CPU = 0, 1

TRUST_DOMAIN = "bench.local"


def spiffe(name):
    return f"spiffe://{TRUST_DOMAIN}/ns/bench/sa/{name}"


CLIENT_ID, SERVER_ID = spiffe("client"), spiffe("server")
# A member of the mesh that is neither: nobody here may accept it.
OTHER = "other"

# Of the scenario with many services: how many, with how many endpoints, how many of them called.
MANY, ENDPOINTS, IN_USE = 1000, 10, 20


def many_name(n):
    return f"svc-{n}"


def many_vip(n):
    return f"10.96.{n >> 8}.{n & 255}"


def many_endpoint(n, e):
    return f"10.{128 + (n >> 8)}.{n & 255}.{e + 1}"
