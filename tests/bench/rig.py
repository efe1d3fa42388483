"""Namespaces, processes, and what they use, by the kernel's own account. Runs inside."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time

from layout import CLIENT, EDGE_CPU, PROXY_CPU, SERVER

TOOLS = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
TICK = os.sysconf("SC_CLK_TCK")
# The load runs before everything else on its CPU, or it would measure its own lateness.
REAL_TIME = ["chrt", "-f", "10"]


class Failed(RuntimeError):
    """A program did not do what it had to; the text has its last words."""


def sh(line, pod=None, check=True):
    enter = ["nsenter", f"--net=/run/netns/{pod.name}"] if pod else []
    done = subprocess.run(enter + ["sh", "-c", line], capture_output=True, text=True,
                          env=dict(os.environ, PATH=TOOLS))
    if check and done.returncode:
        raise Failed(f"{line}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def network():
    """The two pods. They go away with the process that this runs in."""
    sh("mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip link set lo up")
    for pod in (CLIENT, SERVER):
        sh(f"ip netns add {pod.name} && ip -n {pod.name} link set lo up")
        # A test must not run out of ports, nor of places in an accept queue.
        sh("cd /proc/sys/net && echo '10240 65000' > ipv4/ip_local_port_range &&"
           " echo 1 > ipv4/tcp_tw_reuse && echo 4096 > core/somaxconn", pod)
    sh(f"ip link add eth0 netns {CLIENT.name} type veth peer name eth0 netns {SERVER.name}")
    for pod in (CLIENT, SERVER):
        sh(f"ip -n {pod.name} addr add {pod.ip}/24 dev eth0 && ip -n {pod.name} link set eth0 up")
    sh(f"ip -n {CLIENT.name} route add default via {SERVER.ip}")
    # Endpoints and the control plane's address are all in the server pod.
    sh(f"ip -n {SERVER.name} route add local 10.128.0.0/9 dev lo")


def real_time_works():
    return subprocess.run([*REAL_TIME, "true"], capture_output=True).returncode == 0


def within(pod, cpu, argv, real_time=False):
    first = REAL_TIME if real_time else []
    return ["nsenter", f"--net=/run/netns/{pod.name}", "taskset", "-c", str(cpu), *first,
            *map(str, argv)]


def run(pod, argv, limit=120, real_time=False, check=True):
    """Runs a load or a question on the edges' CPU and returns what it printed."""
    done = subprocess.run(within(pod, EDGE_CPU, argv, real_time), capture_output=True, text=True,
                          errors="replace", timeout=limit, env=dict(os.environ, PATH=TOOLS))
    if check and done.returncode:
        raise Failed(f"{' '.join(map(str, argv))}: {(done.stderr or done.stdout)[-400:]}")
    return done.stdout


def read(path):
    with open(path, errors="replace") as file:
        return file.read()


class Process:
    """A running program with its children, which are known by their session."""

    def __init__(self, name, pod, argv, folder, cpu=PROXY_CPU, env=()):
        self.name, self.log = name, f"{folder}/{name}.log"
        self.began = time.monotonic()
        with open(self.log, "w") as log:
            # Every step of the command is an exec, so this is the program's own number.
            self.child = subprocess.Popen(
                within(pod, cpu, argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=dict(os.environ, PATH=TOOLS) | dict(env))

    def words(self):
        return read(self.log)[-600:].strip()

    def members(self):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError):
                if int(read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[3]) == self.child.pid:
                    yield pid

    def listening(self):
        ports = set()
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for row in read(f"/proc/{self.child.pid}/net/{table}").splitlines()[1:]:
                    fields = row.split()
                    if fields[3] == "0A":
                        ports.add(int(fields[1].rsplit(":", 1)[1], 16))
        return ports

    def ready(self, *ports, limit=60):
        """Waits until it listens; returns how long that took."""
        while time.monotonic() - self.began < limit and self.child.poll() is None:
            if set(ports) <= self.listening():
                return time.monotonic() - self.began
            time.sleep(0.005)
        words = self.words()
        self.stop()
        raise Failed(f"{self.name} does not listen on {ports}: {words}")

    def usage(self):
        """CPU seconds (user and kernel, from the scheduler, in nanoseconds), context switches, and
        memory in KiB."""
        use = dict.fromkeys(("cpu", "switches", "rss", "anonymous", "peak", "pss"), 0)
        for pid in self.members():
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    at = f"/proc/{pid}/task/{task}"
                    use["cpu"] += int(read(f"{at}/schedstat").split()[0]) / 1e9
                    switches = re.findall(r"ctxt_switches:\s+(\d+)", read(f"{at}/status"))
                    use["switches"] += sum(map(int, switches))
                status = dict(re.findall(r"(\w+):\s+(\d+)", read(f"/proc/{pid}/status")))
                for key, name in (("rss", "VmRSS"), ("anonymous", "RssAnon"), ("peak", "VmHWM")):
                    use[key] += int(status[name])
                pss = re.search(r"Pss:\s+(\d+)", read(f"/proc/{pid}/smaps_rollup"))
                use["pss"] += int(pss[1]) if pss else 0
        return use

    def stop(self, patience=1):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


@contextlib.contextmanager
def running(*processes):
    try:
        yield processes
    finally:
        for process in processes:
            process.stop()


def machine():
    """Seconds that all CPUs were busy, and that the hypervisor took."""
    fields = [int(field) / TICK for field in read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return user + nice + system + irq + softirq, steal


def own_seconds():
    """Of everything in this process's PID namespace, ended children included."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            fields = read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15])) / TICK
    return total


def measured(processes, work, scrape=None):
    """Runs `work` and adds to its result what the processes used meanwhile, and how quiet the
    machine was. `scrape` is called every two seconds, as a collector of metrics would."""
    done = threading.Event()
    def scraping():
        while not done.wait(2):
            scrape()
    scraper = threading.Thread(target=scraping)
    if scrape:
        scraper.start()
    before = [process.usage() for process in processes]
    (busy, stolen), own, began = machine(), own_seconds(), time.monotonic()
    try:
        result = work() or {}
    finally:
        done.set()
    took = time.monotonic() - began
    now_busy, now_stolen = machine()
    result |= {"window": took, "stolen": (now_stolen - stolen) / took,
               "foreign": max(0.0, now_busy - busy - (own_seconds() - own)) / took}
    if scrape:
        scraper.join()
    for process, then in zip(processes, before):
        now = process.usage()
        result[process.name] = now | {
            key: now[key] - then[key] for key in ("cpu", "switches")}
    return result


def raise_limits():
    """Files for two thousand connections and both their ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def missing_tools(*more):
    """Names the packages of programs that are not there; `more` are named like their packages."""
    need = {"nsenter": "util-linux", "unshare": "util-linux", "taskset": "util-linux",
            "chrt": "util-linux", "ip": "iproute2", "openssl": "openssl", "curl": "curl"} | {
                name: name for name in more}
    lacking = {package for tool, package in need.items() if not shutil.which(tool, path=TOOLS)}
    if not (shutil.which("nft", path=TOOLS) or shutil.which("iptables", path=TOOLS)):
        lacking.add("nftables")
    return sorted(lacking)
