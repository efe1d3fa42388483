"""What is measured: a pair of proxies each, or none."""

import json
import re

import others
import xds
from layout import (
    ADMIN, BULK, CLIENT, COLLECTOR, EDGE_CPU, HEALTH, HTTP1, HTTP2, MARK, REDIRECT_IN,
    REDIRECT_OUT, SERVER, SERVICES, TELEMETRY)
from rig import Process, run

SIDES = ("out", "in")
PODS = {"out": CLIENT, "in": SERVER}


class Peer:
    """`start` starts one side of a pair; `kind` is one of:

    ``plain``        each service on a port of its own
    ``many``         the same and a thousand services more (outbound only)
    ``transparent``  all on the port that the kernel redirects to
    """

    # Envoy is what ratios are taken to, so it is the name that matters.
    is_proxy, observed, transparent = True, False, False
    # Both sides have to refuse every identity but the one they were told.
    checks_identity = True

    def __init__(self, name, files):
        self.name, self.files = name, files

    def ports(self, side, kind="plain"):
        if kind == "transparent":
            return [REDIRECT_OUT if side == "out" else REDIRECT_IN]
        return [service.outbound if side == "out" else service.inbound for service in SERVICES]

    def launch(self, side, argv, env=()):
        return Process(side, PODS[side], argv, self.files.folder, env=env)

    def write(self, name, text):
        path = f"{self.files.folder}/{self.name}-{name}"
        with open(path, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
        return path


class Direct(Peer):
    """No proxy at all."""

    is_proxy = False
    checks_identity = False
    transparent = True


class Envoy(Peer):
    transparent = True

    def start(self, side, kind="plain"):
        log = f"{self.files.folder}/{self.name}-{side}.access" if self.observed else None
        if kind == "transparent":
            config = xds.transparent(side, self.files.certificates)
        else:
            config = xds.explicit(side, self.files.certificates, log, kind == "many")
        path = self.write(f"{kind}-{side}.json", json.dumps(config, indent=1))
        return self.launch(side, [self.files.programs.envoy(), "-c", path, "--concurrency", "1",
                                  "--disable-hot-restart", "-l", "warn"])

    def scrape(self):
        for pod in PODS.values():
            run(pod, ["curl", "-s", "-o", "/dev/null", "-m", "2",
                      f"http://127.0.0.1:{ADMIN}/stats/prometheus"], check=False)

    def handshake(self, side):
        """What was negotiated on the encrypted leg, by this side's own counters."""
        text = run(PODS[side], ["curl", "-s", "-m", "5",
                                f"http://127.0.0.1:{ADMIN}/stats?usedonly&filter=ssl"])
        found = {kind: re.findall(rf"\.ssl\.{kind}\.([^:\s]+): [1-9]", text)
                 for kind in ("versions", "ciphers", "curves", "sigalgs")}
        return " ".join(sorted({name for names in found.values() for name in names}))

    def version(self):
        text = self.files.programs.version([self.files.programs.envoy(), "--version"])
        # A hash, the version, the state of its sources, the kind of build, and the TLS library.
        return text.rpartition("version:")[2].strip().partition("/")[2]


class Outrigger(Peer):
    """Ours, one worker, the same resources as Envoy's."""

    transparent = True

    def __init__(self, name, files, binary):
        super().__init__(name, files)
        self.binary = binary

    def flags(self, side):
        name = "client" if side == "out" else "server"
        own = f"{self.files.certificates}/{name}"
        return ["--workers", 1, "--namespace", "bench", "--service-account", name,
                "--workload", name, "--trust-domain", "bench.local", "--pod-ip", PODS[side].ip,
                "--cert-file", f"{own}.crt", "--key-file", f"{own}.key",
                "--ca-file", f"{self.files.certificates}/ca.crt",
                "--admin-addr", f"127.0.0.1:{ADMIN}", "--telemetry-addr", f"127.0.0.1:{TELEMETRY}",
                "--health-addr", f"127.0.0.1:{HEALTH}", "--log-level", "error",
                "--drain-delay", "0s", "--drain-timeout", "1s",
                "--access-log", "text" if self.observed else "off"]

    def start(self, side, kind="plain"):
        if kind == "transparent":
            config = xds.transparent(side, self.files.certificates)
            doors = ["--mark", MARK, *self.doors(side)]
        else:
            log = "-" if self.observed else None
            config = xds.explicit(side, self.files.certificates, log, kind == "many")
            doors = ["--outbound-port", 0, "--inbound-port", 0]
        path = self.write(f"{kind}-{side}.json", json.dumps(config, indent=1))
        more = ["--otlp-endpoint", f"http://{SERVER.ip}:{COLLECTOR}"] if self.observed else []
        return self.launch(side, [*self.wrapper(side), self.binary, "run", "--config", path, *doors,
                                  *self.flags(side), *more])

    @staticmethod
    def wrapper(_side):
        """What it runs under."""
        return []

    @staticmethod
    def doors(side):
        off = "--inbound-port" if side == "out" else "--outbound-port"
        return [off, 0]

    def scrape(self):
        for pod in PODS.values():
            run(pod, ["curl", "-s", "-o", "/dev/null", "-m", "2",
                      f"http://127.0.0.1:{TELEMETRY}/metrics"], check=False)

    def version(self):
        return self.files.programs.version([self.binary, "--version"])


class Haproxy(Peer):
    checks_identity = False

    def start(self, side, kind="plain"):
        text = others.haproxy(side, self.files.certificates, kind == "many")
        path = self.write(f"{kind}-{side}.cfg", text)
        programs = self.files.programs
        return self.launch(side, [programs.find("haproxy"), "-db", "-f", path],
                           programs.environment())

    def version(self):
        return self.files.programs.version([self.files.programs.find("haproxy"), "-v"])


class Nginx(Peer):
    checks_identity = False

    def start(self, side, kind="plain"):
        programs, folder = self.files.programs, self.files.folder
        text = others.nginx(side, self.files.certificates, folder, programs.nginx_stream(),
                            kind == "many")
        path = self.write(f"{kind}-{side}.conf", text)
        return self.launch(side, [programs.find("nginx"), "-e", f"{folder}/nginx-{side}.err",
                                  "-c", path], programs.environment())

    def version(self):
        return self.files.programs.version([self.files.programs.find("nginx"), "-v"])


def observed(peer):
    """The same with access log, metrics scraped every two seconds, and traces of 1 %."""
    peer.observed, peer.name = True, peer.name + "+telemetry"
    return peer


def all_peers(files, builds):
    """By name, in the order of the table. `builds`: name and path of each build of ours."""
    peers = [Direct("direct", files), Envoy("envoy", files), observed(Envoy("envoy", files)),
             Haproxy("haproxy", files), Nginx("nginx", files)]
    for name, path in builds.items():
        peers += [Outrigger(name, files, path), observed(Outrigger(name, files, path))]
    return {peer.name: peer for peer in peers}


class Application:
    """nginx, and iperf3 for bulk."""

    def __init__(self, files):
        path = f"{files.folder}/application.conf"
        with open(path, "wb") as file:
            file.write(others.application(files.folder))
        programs, env = files.programs, files.programs.environment()
        self.processes = (
            Process("application", SERVER, [programs.find("nginx"), "-e", f"{files.folder}/app.err",
                                            "-c", path], files.folder, EDGE_CPU, env),
            Process("iperf3", SERVER, [programs.find("iperf3"), "-s", "-p", BULK.app], files.folder,
                    EDGE_CPU, env))
        self.processes[0].ready(HTTP1.app, HTTP2.app, COLLECTOR)
        self.processes[1].ready(BULK.app)


def address(peer, service, transparent=False):
    """Where a client of the service goes."""
    if peer.is_proxy and not transparent:
        return f"127.0.0.1:{service.outbound}"
    return f"{SERVER.ip}:{service.app}"

