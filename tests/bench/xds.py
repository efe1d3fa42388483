"""The resources that Envoy and Outrigger run, as one bootstrap file for both.

They are what a mesh sends: retries, outlier detection, circuit breakers, SPIFFE IDs checked on both
sides, certificates by SDS name. Outrigger takes `default` and `ROOTCA` from its own identity (the
same files, on its command line); Envoy from the secrets in the file.
"""

from layout import (
    ADMIN, CLIENT_ID, COLLECTOR, ENDPOINTS, MANY, MARK, REDIRECT_IN, REDIRECT_OUT, SERVER,
    SERVER_ID, SERVICES, many_endpoint, many_name, many_vip)

TYPE = "type.googleapis.com/envoy."
NO_LIMIT = 100_000


def typed(name, kind, **fields):
    return {"name": name, "typed_config": {"@type": TYPE + kind, **fields}}


def data(folder, file):
    with open(f"{folder}/{file}") as text:
        return {"inline_string": text.read()}


def secrets(folder, name):
    pair = {"certificate_chain": data(folder, f"{name}.crt"),
            "private_key": data(folder, f"{name}.key")}
    return [{"name": "default", "tls_certificate": pair},
            {"name": "ROOTCA", "validation_context": {"trusted_ca": data(folder, "ca.crt")}}]


def tls(side):
    """TLS 1.3 alone, mutual, the peer's SPIFFE ID checked, no resumption: a mesh client meets many
    endpoints, so the full handshake is the cost that counts."""
    peer = SERVER_ID if side == "out" else CLIENT_ID
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                       "tls_maximum_protocol_version": "TLSv1_3",
                       "ecdh_curves": ["X25519MLKEM768", "X25519"]},
        "tls_certificate_sds_secret_configs": [{"name": "default"}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": peer}}]},
            "validation_context_sds_secret_config": {"name": "ROOTCA"}}}
    kind = "extensions.transport_sockets.tls.v3."
    if side == "out":
        return typed("envoy.transport_sockets.tls", kind + "UpstreamTlsContext",
                     common_tls_context=common, sni="server.bench", max_session_keys=0)
    return typed("envoy.transport_sockets.tls", kind + "DownstreamTlsContext",
                 common_tls_context=common, require_client_certificate=True,
                 disable_stateless_session_resumption=True,
                 disable_stateful_session_resumption=True)


def address(ip, port):
    return {"socket_address": {"address": ip, "port_value": port}}


def cluster(name, kind, targets=(), secure=False, marked=False):
    found = {
        "name": name, "connect_timeout": "10s", "type": "STATIC", "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": address(*target)}} for target in targets]}]},
        "circuit_breakers": {"thresholds": [{
            "max_connections": NO_LIMIT, "max_pending_requests": NO_LIMIT,
            "max_requests": NO_LIMIT, "max_retries": 1000, "track_remaining": True}]}}
    if not targets:
        found |= {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
        del found["load_assignment"]
    if marked:
        # SOL_SOCKET, SO_MARK: the redirect rules let the proxy's own connections pass.
        found["upstream_bind_config"] = {
            "source_address": {"address": "0.0.0.0", "port_value": 0},
            "socket_options": [{"level": 1, "name": 36, "int_value": MARK,
                                "state": "STATE_PREBIND"}]}
    if secure:
        found["transport_socket"] = tls("out")
        found["outlier_detection"] = {"consecutive_5xx": 5, "interval": "10s",
                                      "base_ejection_time": "30s", "max_ejection_percent": 10}
    if kind == "http":
        options = TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions"
        found["typed_extension_protocol_options"] = {options.removeprefix("type.googleapis.com/"): {
            "@type": options, "use_downstream_protocol_config": {
                "http_protocol_options": {},
                "http2_protocol_options": {"max_concurrent_streams": 4096}}}}
    return found


def collector():
    found = cluster("collector", "tcp", [(SERVER.ip, COLLECTOR)], marked=True)
    options = TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions"
    found["typed_extension_protocol_options"] = {options.removeprefix("type.googleapis.com/"): {
        "@type": options, "explicit_http_config": {"http2_protocol_options": {}}}}
    return found


RETRY = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
    "num_retries": 2, "retriable_status_codes": [503], "host_selection_retry_max_attempts": "5",
    "retry_host_predicate": [typed(
        "envoy.retry_host_predicates.previous_hosts",
        "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")]}


def http_manager(side, hosts, log=None):
    """`hosts`: name, domains and cluster of each virtual host. `log`: a file, which turns access
    log and traces on."""
    def route(target):
        action = {"cluster": target, "timeout": "0s"}
        if side == "out":
            action["retry_policy"] = RETRY
        return {"match": {"prefix": "/"}, "route": action}
    virtual = [{"name": name, "domains": domains, "routes": [route(target)]}
               for name, domains, target in hosts]
    fields = {
        "stat_prefix": side + "bound", "codec_type": "AUTO", "normalize_path": True,
        "stream_idle_timeout": "0s", "http2_protocol_options": {"max_concurrent_streams": 4096},
        "route_config": {"name": "routes", "virtual_hosts": virtual},
        "http_filters": [typed("envoy.filters.http.router",
                               "extensions.filters.http.router.v3.Router")]}
    if side == "in":
        fields |= {"forward_client_cert_details": "APPEND_FORWARD",
                   "set_current_client_cert_details": {"subject": True, "dns": True, "uri": True}}
    if log:
        fields["tracing"] = {"random_sampling": {"value": 1.0}, "provider": typed(
            "envoy.tracers.opentelemetry", "config.trace.v3.OpenTelemetryConfig",
            service_name=side + "bound",
            grpc_service={"envoy_grpc": {"cluster_name": "collector"}, "timeout": "1s"})}
        fields["access_log"] = [typed("envoy.access_loggers.file",
                                      "extensions.access_loggers.file.v3.FileAccessLog", path=log)]
    return typed("envoy.filters.network.http_connection_manager",
                 "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                 **fields)


def tcp_proxy(target):
    return typed("envoy.filters.network.tcp_proxy",
                 "extensions.filters.network.tcp_proxy.v3.TcpProxy",
                 stat_prefix=target, cluster=target)


def listener(name, at, chains, inspectors=(), **more):
    kinds = {"original_dst": "OriginalDst", "tls_inspector": "TlsInspector"}
    return {"name": name, "address": address(*at), "filter_chains": chains, "listener_filters": [
        typed(f"envoy.filters.listener.{kind}",
              f"extensions.filters.listener.{kind}.v3.{kinds[kind]}")
        for kind in inspectors], **more}


def bootstrap(side, listeners, clusters, certificates, log=None):
    name = "client" if side == "out" else "server"
    limit = typed("envoy.resource_monitors.global_downstream_max_connections",
                  "extensions.resource_monitors.downstream_connections.v3."
                  "DownstreamConnectionsConfig", max_active_downstream_connections=str(NO_LIMIT))
    return {"node": {"id": name, "cluster": name},
            "admin": {"address": address("127.0.0.1", ADMIN)},
            "overload_manager": {"resource_monitors": [limit]},
            "static_resources": {"listeners": listeners,
                                 "clusters": clusters + ([collector()] if log else []),
                                 "secrets": secrets(certificates, name)}}


def explicit(side, certificates, log=None, many=False):
    """One listener and one cluster for each service; `many` adds a thousand clusters more, and as
    many virtual hosts to the first listener."""
    out = side == "out"
    clusters, listeners, hosts = [], [], []
    for n in range(MANY if many else 0):
        name = many_name(n)
        targets = [(many_endpoint(n, e), 8080) for e in range(ENDPOINTS)]
        clusters.append(cluster(name, "http", targets, secure=True))
        hosts.append((name, [name, f"{name}.bench", f"{name}.bench.svc.cluster.local"], name))
    for service in SERVICES:
        target = (SERVER.ip, service.inbound) if out else ("127.0.0.1", service.app)
        clusters.append(cluster(service.name, service.kind, [target], secure=out))
        if service.kind == "http":
            last = http_manager(side, [*hosts, ("any", ["*"], service.name)], log)
            hosts = []
        else:
            last = tcp_proxy(service.name)
        chain = {"filters": [last]}
        if not out:
            chain["transport_socket"] = tls("in")
        at = ("127.0.0.1", service.outbound) if out else (SERVER.ip, service.inbound)
        direction = "OUTBOUND" if out else "INBOUND"
        listeners.append(listener(service.name, at, [chain], traffic_direction=direction))
    return bootstrap(side, listeners, clusters, certificates, log)


def transparent(side, certificates):
    """One listener takes all that the kernel redirects; where a connection was going picks its
    filter chain."""
    out = side == "out"
    clusters, chains = [], []
    for service in SERVICES[:2]:
        name = service.name if out else "application"
        chain = {"name": service.name, "filter_chain_match": {"destination_port": service.app},
                 "filters": [http_manager(side, [("any", ["*"], name)])]}
        if out:
            target = (SERVER.ip, service.app)
            clusters.append(cluster(name, "http", [target], secure=True, marked=True))
        else:
            chain["filter_chain_match"]["transport_protocol"] = "tls"
            chain["transport_socket"] = tls("in")
        chains.append(chain)
    if out:
        one = listener("outbound", ("0.0.0.0", REDIRECT_OUT), chains, ["original_dst"],
                       use_original_dst=True, traffic_direction="OUTBOUND")
    else:
        clusters = [cluster("application", "http", marked=True)]
        one = listener("inbound", ("0.0.0.0", REDIRECT_IN), chains,
                       ["original_dst", "tls_inspector"],
                       use_original_dst=True, traffic_direction="INBOUND")
    return bootstrap(side, [one], clusters, certificates)


def manifest():
    """The many services as objects of the control plane."""
    text = []
    for n in range(MANY):
        endpoints = ", ".join(f"{{address: {many_endpoint(n, e)}}}" for e in range(ENDPOINTS))
        text.append(
            "apiVersion: outrigger.dev/v1\nkind: Service\n"
            f"metadata: {{name: {many_name(n)}, namespace: bench}}\n"
            "spec:\n  serviceAccount: server\n"
            f"  addresses: [{many_vip(n)}]\n"
            "  ports: [{port: 80, targetPort: 8080, appProtocol: http}]\n"
            f"  endpoints: [{endpoints}]\n")
    return "---\n".join(text)
