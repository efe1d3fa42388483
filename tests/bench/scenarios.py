"""What is measured. Every scenario lets the proxies take turns, round by round, with fresh
processes, and adds rows of raw figures; medians are the report's business."""

import contextlib
import re
import shutil
import subprocess
import time

import xds
from layout import (
    BULK, CLIENT, COLLECTOR, EDGE_CPU, HEALTH, HTTP1, HTTP2, IN_USE, MANY, MARK, OTHER, SERVER,
    STREAM, many_vip)
from peers import PODS, SIDES, address
from programs import say
from rig import TOOLS, Failed, Process, measured, read, run, running, sh, within

# Name: service, protocol, new connection for each request, rate that every proxy carries, whether
# half of the slowest's maximum is measured too.
LOADS = {
    "http1": (HTTP1, "http1", False, 2000, True),
    "http2": (HTTP2, "http2", False, 2000, True),
    "grpc": (HTTP2, "grpc", False, 2000, True),
    "newconn": (HTTP1, "http1", True, 1000, False),
    "handshake": (STREAM, "http1", True, 200, False),
}
EXPLAINED = {
    "identity": "does each side refuse every certificate but the other's?",
    "http1": "64 connections, GET, 1 KiB of answer",
    "http2": "8 connections of 8 streams, 1 KiB",
    "grpc": "the same as unary calls",
    "newconn": "a new connection from the client for each request",
    "handshake": "a full mutual TLS handshake for each request (the proxies see opaque bytes)",
    "bulk": "one opaque TCP stream over mutual TLS",
    "idle": "1,000 connections that do nothing, HTTP and opaque",
    "memory": "at start, and with 1,000 services of 10 endpoints: all pushed; on demand, 20 in use",
    "transparent": "http1 and grpc by redirect in both pods, nothing configured in the client",
}
ALL = tuple(EXPLAINED)
IDLE = 1000
# Where telemetry is measured on as well as off.
TELEMETRY_IN = ("http1", "grpc")


class Durations:
    """Seconds of each measurement."""

    def __init__(self, quick, scale):
        self.closed = max(1, round((1 if quick else 3) * scale))
        self.rate = max(0.5, (1.5 if quick else 3) * scale)
        self.settle = max(0.2, (1 if quick else 2) * scale)


class Bench:
    def __init__(self, files, peers, loads, rounds, quick, scale):
        self.files, self.peers, self.loads = files, peers, loads
        self.rounds, self.quick = rounds, quick
        self.seconds = Durations(quick, scale)
        self.rows, self.failures, self.identities = [], [], {}

    def run(self, names):
        for name in names:
            began = time.monotonic()
            say(f"== {name}: {EXPLAINED[name]}")
            if name in LOADS:
                self.load(name, name)
            else:
                getattr(self, name)()
            say(f"   {time.monotonic() - began:.0f} s")

    # -- parts ---------------------------------------------------------------------------------

    def taking_part(self, scenario):
        for peer in self.peers.values():
            if peer.observed and scenario not in TELEMETRY_IN:
                continue
            if scenario == "transparent" and not peer.transparent:
                continue
            yield peer

    def guarded(self, scenario, peer, work):
        """One proxy that fails does not end the others' measurements."""
        try:
            work()
        except (Failed, OSError, KeyError, ValueError, TypeError,
                subprocess.SubprocessError) as error:
            self.failures.append(f"{scenario}, {peer}: {type(error).__name__}: {error}")
            say(f"   FAILED {self.failures[-1]}")

    def add(self, scenario, phase, peer, row, **more):
        row |= {"scenario": scenario, "phase": phase, "peer": peer.name} | more
        self.rows.append(row)
        cpu = " + ".join(f"{row[side]['cpu']:.2f}" for side in SIDES if side in row)
        rate = f"{row['per_second']:,.1f}/s " if "per_second" in row else ""
        tail = f"p99 {row['latency']['p99_us']:,.0f} us " if "latency" in row else ""
        errors = f"{row['errors']} ERRORS {row.get('last_error', '')} " if row.get("errors") else ""
        say(f"   {phase:12} {peer.name:22} {rate}{tail}{errors}cpu {cpu or '-'} s")

    @contextlib.contextmanager
    def pair(self, peer, kind="plain"):
        """Both proxies of a peer, ready; nothing for `direct`."""
        with contextlib.ExitStack() as started:
            found = []
            for side in ("in", "out") if peer.is_proxy else ():
                process = peer.start(side, kind)
                started.callback(process.stop)
                process.ready(*peer.ports(side, kind))
                found.append(process)
            yield found

    def warm(self, to, protocol, fresh, rate):
        found = self.loads.open_loop(to, protocol, min(rate, 200), 0.3, fresh)
        # A few errors are counted where it is measured; a path that does not work is no result.
        if found["errors"] > found["requests"] / 20:
            raise Failed(f"it does not work: {found}")

    # -- requests ------------------------------------------------------------------------------

    def load(self, label, name, transparent=False):
        service, protocol, fresh, rate, with_half = LOADS[name]
        peers = list(self.taking_part("transparent" if transparent else name))
        kind = "transparent" if transparent else "plain"

        def closed(peer, processes, to):
            row = measured(processes, lambda: self.loads.closed_loop(
                to, protocol, self.seconds.closed, fresh), self.scraper(peer))
            self.add(label, "most", peer, row)

        def fixed(peer, processes, to, phase, wanted):
            row = measured(processes, lambda: self.loads.open_loop(
                to, protocol, wanted, self.seconds.rate, fresh), self.scraper(peer))
            self.add(label, phase, peer, row, rate=wanted)

        def turn(peer, *steps):
            def work():
                with self.pair(peer, kind) as processes, redirect(
                        self.files, transparent and peer.is_proxy):
                    to = address(peer, service, transparent)
                    self.warm(to, protocol, fresh, rate)
                    for step in steps:
                        step(peer, processes, to)
            self.guarded(label, peer.name, work)

        steady = lambda *about: fixed(*about, "steady", rate)
        if self.quick or not with_half or transparent:
            self.turns(peers, lambda peer: turn(peer, closed, steady))
            return
        self.turns(peers, lambda peer: turn(peer, closed))
        most = [row["per_second"] for row in self.rows
                if (row["scenario"], row["phase"]) == (label, "most") and "out" in row]
        half = int(min(most) / 200) * 100 if most else 0
        halved = [lambda *about: fixed(*about, "half", half)] if half else []
        self.turns(peers, lambda peer: turn(peer, steady, *halved))

    def turns(self, peers, work):
        for _ in range(self.rounds):
            for peer in peers:
                work(peer)

    def scraper(self, peer):
        return peer.scrape if peer.observed else None

    def transparent(self):
        for name in ("http1", "grpc"):
            self.load(f"{name} transparent", name, transparent=True)

    def bulk(self):
        def turn(peer):
            with self.pair(peer) as processes:
                to = address(peer, BULK)
                row = measured(processes, lambda: self.loads.bulk(to, self.seconds.closed))
                self.add("bulk", "most", peer, row)
        peers = list(self.taking_part("bulk"))
        self.turns(peers, lambda peer: self.guarded("bulk", peer.name, lambda: turn(peer)))

    # -- memory --------------------------------------------------------------------------------

    def resting(self, processes):
        time.sleep(self.seconds.settle)
        return measured(processes, lambda: time.sleep(self.seconds.settle))

    def idle(self):
        def turn(peer, phase, service):
            with self.pair(peer) as processes:
                to = address(peer, service)
                self.warm(to, "http1", False, 200)
                before = {process.name: process.usage()["rss"] for process in processes}
                client = Process("idle", CLIENT, self.loads.hold(to, IDLE), self.files.folder,
                                 EDGE_CPU)
                with running(client):
                    while "held" not in read(client.log):
                        if client.child.poll() is not None:
                            raise Failed(client.words())
                        time.sleep(0.05)
                    row = self.resting(processes)
                for process in processes:
                    use = row[process.name]
                    use["each"] = (use["rss"] - before[process.name]) / IDLE
                self.add("idle", phase, peer, row)
        for peer in self.taking_part("idle"):
            if peer.is_proxy:
                for phase, service in (("HTTP", HTTP1), ("opaque", STREAM)):
                    self.guarded("idle", peer.name, lambda: turn(peer, phase, service))

    def memory(self):
        def turn(peer, phase, side, kind):
            process = peer.start(side, kind)
            with running(process):
                ready = process.ready(*peer.ports(side, kind))
                began = process.usage()["cpu"]
                row = self.resting([process])
                self.add("memory", phase, peer, row, ready=ready, start_cpu=began)
        phases = (("outbound at start", "out", "plain"), ("inbound at start", "in", "plain"),
                  ("1,000 services", "out", "many"))
        for peer in self.taking_part("memory"):
            if not peer.is_proxy:
                continue
            for phase in phases:
                self.guarded("memory", peer.name, lambda: turn(peer, *phase))
            if hasattr(peer, "doors"):
                for phase, more in ((f"{IN_USE} of 1,000 in use", []),
                                    (f"1,000 from xDS, {IN_USE} in use", ["--xds-sotw"])):
                    self.guarded("memory", peer.name, lambda: self.demand(peer, phase, more))

    def demand(self, peer, phase, more):
        """The real control plane knows a thousand services; the pod calls some of them."""
        with mesh(self.files, peer, more) as processes, redirect(self.files, True):
            outbound = processes[0]
            # Pushed in one piece, it takes a while to arrive.
            until_200(f"http://{many_vip(MANY - 1 if more else 0)}:80/", CLIENT)
            for n in range(IN_USE):
                self.warm(f"{many_vip(n)}:80", "http1", False, 200)
            row = self.resting([outbound])
            self.add("memory", phase, peer, row)

    # -- identity ------------------------------------------------------------------------------

    def identity(self):
        for peer in self.taking_part("identity"):
            if peer.is_proxy:
                self.guarded("identity", peer.name, lambda: self.check(peer))

    def check(self, peer):
        found = {}
        with running(peer.start("in")) as (process,):
            process.ready(*peer.ports("in"))
            for who in ("client", OTHER, None):
                found[f"inbound, {who or 'no'} certificate"] = self.ask_inbound(who)
        for who in ("server", OTHER):
            found[f"outbound, {who} certificate"] = self.ask_outbound(peer, who)
        envoy = self.peers.get("envoy")
        if envoy:
            found["inbound to Envoy's outbound"] = self.negotiated(envoy, peer, "out")
            found["outbound to Envoy's inbound"] = self.negotiated(peer, envoy, "in")
        self.identities[peer.name] = found
        say(f"   {peer.name:22} {found}")
        wrong = [case for case, answer in found.items() if answer.startswith(
            "accepted" if OTHER in case or "no certificate" in case else "refused")]
        if not peer.checks_identity:
            # They check the chain, and outbound the DNS name; the table shows it.
            wrong = [case for case in wrong if OTHER not in case or "outbound" in case]
        if wrong:
            raise Failed(f"the identity is not checked: {wrong}")

    def negotiated(self, client, server, envoy_side):
        """A mixed pair, and what Envoy says of its handshake."""
        with contextlib.ExitStack() as started:
            for side, peer in (("in", server), ("out", client)):
                process = peer.start(side)
                started.callback(process.stop)
                process.ready(*peer.ports(side))
            code = self.ask(HTTP1)
            shown = self.peers["envoy"].handshake(envoy_side)
        return shown if code == "200" else f"refused ({code})"

    @staticmethod
    def ask(service):
        """The status of one request by way of the outbound proxy."""
        return run(CLIENT, ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-H",
                            "host: server.bench", f"http://127.0.0.1:{service.outbound}/"],
                   check=False)

    def pair_of(self, who):
        certificates = self.files.certificates
        return ["-CAfile", f"{certificates}/ca.crt", *(
            ["-cert", f"{certificates}/{who}.crt", "-key", f"{certificates}/{who}.key"]
            if who else [])]

    def ask_inbound(self, who):
        """A client of our own, with this certificate, at the inbound proxy."""
        argv = ["timeout", "3", "openssl", "s_client", "-ign_eof", "-connect",
                f"{SERVER.ip}:{HTTP1.inbound}", *self.pair_of(who)]
        ask = "GET / HTTP/1.1\r\nhost: server.bench\r\nconnection: close\r\n\r\n"
        done = subprocess.run(within(CLIENT, EDGE_CPU, argv), input=ask, capture_output=True,
                              text=True, errors="replace")
        suite = re.search(r"New, (TLSv1\.\d), Cipher is (\S+)", done.stdout)
        if "HTTP/1.1 200" in done.stdout and suite:
            return f"accepted ({suite[1]}, {suite[2]})"
        return "refused"

    def ask_outbound(self, peer, who):
        """A server of our own, with this certificate, where the outbound proxy goes."""
        server = Process("impostor", SERVER, [
            "openssl", "s_server", "-www", "-accept", HTTP1.inbound, "-Verify", "2",
            *self.pair_of(who)], self.files.folder, EDGE_CPU)
        with running(server):
            server.ready(HTTP1.inbound)
            with running(peer.start("out")) as (process,):
                process.ready(*peer.ports("out"))
                code = self.ask(HTTP1)
        return "accepted" if code == "200" else f"refused ({code})"


@contextlib.contextmanager
def redirect(files, on):
    """What the mesh's init container does in both pods; the same rules for every proxy."""
    # The control plane and the collector stand in the server pod, but not in its mesh.
    backend = "nft" if shutil.which("nft", path=TOOLS) else "iptables"
    init = (f"{files.init} init --proxy-mark {MARK} --backend {backend}"
            f" --exclude-inbound-ports {COLLECTOR},15010-15014")
    if on:
        for pod in PODS.values():
            sh(init, pod)
    try:
        yield
    finally:
        if on:
            for pod in PODS.values():
                sh(f"{init} --remove", pod)


def until_200(url, pod, patience=60):
    """The proxy has what it needs to serve `url`."""
    ask = ["curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", url]
    end = time.monotonic() + patience
    while run(pod, ask, check=False) != "200":
        if time.monotonic() > end:
            raise Failed(f"{url} is not served in the {pod.name} pod after {patience} s")
        time.sleep(0.1)


@contextlib.contextmanager
def mesh(files, peer, more):
    """Our control plane in the server pod with the thousand services, and a proxy on each side that
    gets everything from it."""
    at, folder = SERVER.ip, files.folder
    state = f"{folder}/control"
    sh(f"rm -rf {state}")
    with contextlib.ExitStack() as started:
        def start(name, pod, argv, cpu, *ports):
            process = Process(name, pod, argv, folder, cpu)
            started.callback(process.stop)
            process.ready(*ports)
            return process
        start("control", SERVER, [files.control, "run", "--state-dir", state, "--trust-domain",
                                  "bench.local", "--xds-addr", f"{at}:15012", "--api-addr",
                                  f"{at}:15010", "--telemetry-addr", f"{at}:15014",
                                  "--api-insecure", "--log-level", "warn"], EDGE_CPU, 15010, 15012)
        cli = f"{files.cli} --server {at}:15010"
        with open(f"{folder}/services.yaml", "w") as file:
            file.write(xds.manifest())
        sh(f"{cli} apply -f {folder}/services.yaml", SERVER)
        proxies = []
        for side in ("in", "out"):
            name = "client" if side == "out" else "server"
            sh(f"{cli} token create --namespace bench --service-account {name} > "
               f"{folder}/{name}.token", SERVER)
            argv = [peer.binary, "run", "--workers", 1, "--namespace", "bench", "--service-account",
                    name, "--workload", name, "--trust-domain", "bench.local", "--pod-ip",
                    PODS[side].ip, "--mark", MARK, "--control-plane", f"{at}:15012",
                    "--trust-bundle", f"{state}/ca/root.pem", "--token-file",
                    f"{folder}/{name}.token", "--log-level", "error", "--access-log", "off",
                    *peer.doors(side), *(more if side == "out" else [])]
            process = Process(side, PODS[side], argv, folder)
            started.callback(process.stop)
            process.ready(*peer.ports(side, "transparent"))
            until_200(f"http://127.0.0.1:{HEALTH}/healthz/ready", PODS[side])
            proxies.insert(0, process)
        yield proxies
