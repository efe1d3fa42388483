"""Traces in the demo: who collects them, and how one looks in a terminal."""

import json, socket, subprocess, threading, time, urllib.request


class Sink:
    """The test application as the collector: it prints each span as a line of JSON."""

    def __init__(self, mesh, address):
        self.log = mesh.dir / "collector.log"
        mesh.start("collector", [mesh.bin / "outrigger-testapp", "spans", "--listen", f"{address}:4317"])

    def ready(self):
        return self.log.exists()

    def trace(self, trace):
        spans = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [span for span in spans if span["trace"] == trace]

    def url(self, trace):
        return None


class Jaeger:
    """A real Jaeger, asked through its query API."""

    def __init__(self, mesh, binary, address, door):
        self.api = f"http://{address}:16686/api"
        self.port = door.getsockname()[1] if door else None
        mesh.start("jaeger", [binary, f"--collector.otlp.grpc.host-port={address}:4317",
                              "--collector.otlp.http.host-port=127.0.0.1:4318",
                              f"--query.http-server.host-port={address}:16686"])
        if door:
            threading.Thread(target=relay, args=(door, (address, 16686)), daemon=True).start()

    def get(self, what):
        with urllib.request.urlopen(f"{self.api}/{what}", timeout=5) as answer:
            return json.load(answer)

    def ready(self):
        try:
            return self.get("services") is not None
        except OSError:
            return False

    def trace(self, trace):
        try:
            data = self.get(f"traces/{trace}")["data"]
        except OSError:
            return []
        return [self.span(data[0]["processes"], span) for span in data[0]["spans"]] if data else []

    @staticmethod
    def span(processes, span):
        tags = {tag["key"]: str(tag["value"]) for tag in span["tags"]}
        above = [ref["spanID"] for ref in span["references"]]
        start = span["startTime"] * 1000
        return {"service": processes[span["processID"]]["serviceName"], "trace": span["traceID"], "id": span["spanID"],
                "parent": above[0] if above else "", "name": span["operationName"], "kind": tags.get("span.kind", ""),
                "start": start, "end": start + span["duration"] * 1000, "error": tags.get("error") == "True",
                "message": tags.get("otel.status_description", ""), "attributes": tags}

    def url(self, trace):
        return f"http://127.0.0.1:{self.port}/api/traces/{trace}?prettyPrint=true"


def door(port=16686):
    """A socket outside the demo's namespaces, through which a browser reaches what is inside them."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.set_inheritable(True)
    return listener


def relay(listener, target):
    """Joins each connection that comes to `listener` to one to `target`, until the process ends."""
    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    while True:
        outside, _ = listener.accept()
        try:
            inside = socket.create_connection(target, timeout=5)
        except OSError:
            outside.close()
            continue
        inside.settimeout(None)
        for pair in ((outside, inside), (inside, outside)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


def tree(spans, root):
    """The spans with their depth, each below its parent, in the order of their beginning."""
    below = {}
    for span in sorted(spans, key=lambda span: span["start"]):
        below.setdefault(span["parent"], []).append(span)

    def walk(parent, depth):
        for span in below.get(parent, []):
            yield depth, span
            yield from walk(span["id"], depth + 1)
    return list(walk(root, 0))


def waterfall(spans, root, width=40):
    """Lines that show who called whom and when."""
    rows = tree(spans, root)
    first = min(span["start"] for span in spans)
    whole = max(max(span["end"] for span in spans) - first, 1)
    lines = []
    for depth, span in rows:
        begin = (span["start"] - first) * width // whole
        length = max((span["end"] - span["start"]) * width // whole, 1)
        bar = (" " * min(begin, width - 1) + ("!" if span["error"] else "=") * length)[:width]
        attributes = span["attributes"]
        attempt = attributes.get("outrigger.attempt")
        what = f"try {attempt}" if attempt else {"server": "in ", "client": "out"}.get(span["kind"], "")
        peer = attributes.get("network.peer.address", "") if attempt else span["name"]
        said = attributes.get("outrigger.cause") or attributes.get("http.response.status_code", "")
        label = "  " * depth + f"{span['service']} {what} {peer}"
        lines.append(f"{label:<46.46} |{bar:<{width}}| {(span['end'] - span['start']) / 1e6:7.2f} ms  {said}")
    return lines


def collect(collector, trace, enough, limit=10.0):
    """The spans of a trace, once `enough` says that all are there: proxies send them in batches."""
    end = time.time() + limit
    while True:
        spans = collector.trace(trace)
        if enough(spans) or time.time() > end:
            return spans
        time.sleep(0.1)


def build_jaeger(root):
    """Where Jaeger is, built if need be. Needs Go and, the first time, a network and some minutes."""
    print("building Jaeger if it is not in the cache (some minutes the first time) ...", flush=True)
    built = subprocess.run([root / "tests/peers/jaeger/build"], stdout=subprocess.PIPE, text=True)
    return built.stdout.strip() if built.returncode == 0 else None
