"""A call over several services is one trace, in a Jaeger that runs in the cluster."""

import json

from mesh import Mesh, apply, client, proxied, server, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
JAEGER = """
apiVersion: v1
kind: Service
metadata: {name: jaeger}
spec:
  selector: {app: jaeger}
  ports: [{name: otlp, port: 4317}, {name: query, port: 16686}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: jaeger}
spec:
  selector: {matchLabels: {app: jaeger}}
  template:
    metadata: {labels: {app: jaeger}}
    spec:
      containers:
        - name: jaeger
          image: localhost/jaeger:test
          args: ["--collector.otlp.grpc.host-port=:4317", "--query.http-server.host-port=:16686"]
          env: [{name: SPAN_STORAGE_TYPE, value: memory}]
          readinessProbe: {httpGet: {path: /, port: 16686}, periodSeconds: 1}
"""


class Traces(Mesh):
    def test_a_call_over_three_services_is_one_trace(self):
        shop = self.namespace("traced")
        self.namespace("tracing", mesh=False)
        apply("tracing", JAEGER)
        below = lambda name: f', --calls, "http://{name}/"'
        apply(shop, "---".join([
            server("front", below("cart")), server("cart", below("stock")), server("stock"), client("client")]))
        self.ready("tracing", "jaeger")
        self.ready(shop, "front", "cart", "stock", pods=["client"])
        status, said = self.call(shop, "http://front/order", "-H", f"traceparent: 00-{TRACE}-{SPAN}-01")
        self.assertEqual(status, 200, said)

        def trace():
            try:
                found = json.loads(proxied("tracing", "services/jaeger:query", f"api/traces/{TRACE}"))["data"][0]
            except (OSError, IndexError):
                return {}
            spans = {}
            for span in found["spans"]:
                kind = next(tag["value"] for tag in span["tags"] if tag["key"] == "span.kind")
                service = found["processes"][span["processID"]]["serviceName"]
                spans[service, kind] = span
            return spans

        chain = [("client", "client"), ("front", "server"), ("front", "client"),
                 ("cart", "server"), ("cart", "client"), ("stock", "server")]
        spans = until(20, "all spans are there", lambda: trace() if all(one in trace() for one in chain) else None)
        parent = SPAN
        for one in chain:
            span = spans[one]
            self.assertEqual(span["traceID"], TRACE)
            self.assertEqual([reference["spanID"] for reference in span["references"]], [parent], one)
            parent = span["spanID"]
        self.say(" > ".join(f"{service} {kind} {spans[service, kind]['duration']} us" for service, kind in chain))
