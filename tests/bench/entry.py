"""From the outside to the inside: folders, and starting a script once more in namespaces of its
own. Whatever it starts there ends with it, however it ends."""

import os
import subprocess
import sys

import programs
import rig

INSIDE = "OUTRIGGER_BENCH"


def folders():
    """The cache, and cargo's target folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = os.environ.get("OUTRIGGER_CACHE") or f"{home}/outrigger"
    return cache, os.environ.get("CARGO_TARGET_DIR") or f"{cache}/target"


def is_inside():
    return os.environ.get(INSIDE) == "1"


def check_tools(*more):
    lacking = rig.missing_tools(*more)
    if lacking:
        raise programs.Missing(f"install {' '.join(lacking)}")
    if os.cpu_count() < 2:
        raise programs.Missing("two CPUs are needed: one for the load, one for the proxies")


def enter():
    """Runs this very command inside; returns its exit code."""
    flags = ["-nmpf", "--mount-proc", "--kill-child"]
    try_it = ["unshare", *flags, "true"]
    if os.geteuid() != 0 or subprocess.run(try_it, capture_output=True).returncode:
        flags = ["-Ur", *flags]
    argv = ["unshare", *flags, sys.executable, *sys.argv]
    child = subprocess.Popen(argv, env=dict(os.environ, **{INSIDE: "1"}))
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.kill()
        return 130
