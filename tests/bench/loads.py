"""The programs that put load on a target, each returning what it saw.

Closed loops (as many requests as it answers) are wrk and h2load, which cost the least CPU. Open
loops (a fixed rate whatever it answers) are our own generator: those two count a latency from when
they got round to sending, which hides the very stalls that matter.
"""

import json
import re

from layout import CLIENT
from rig import Failed, run

# Requests in flight in a closed loop: 64 connections, or 8 of 8 streams.
CONNECTIONS, STREAMS = 8, 8
HTTP1_CONNECTIONS = 64
# An open loop may use more streams, so that it is not its client that limits it.
OPEN_STREAMS = 64
# A message of 1,024 bytes and the five before it.
ANSWER_BYTES = 1029
GRPC_CALL = b"\0\0\0\0\x10\x0a\x0eping-ping-ping"


class Loads:
    def __init__(self, programs, folder):
        self.generator = programs.release("outrigger-bench-load")
        self.programs, self.folder = programs, folder
        with open(f"{folder}/call.grpc", "wb") as file:
            file.write(GRPC_CALL)

    def env(self, name):
        pairs = (f"{key}={value}" for key, value in self.programs.environment().items())
        return ["env", *pairs, self.programs.find(name)]

    def open_loop(self, to, protocol, rate, seconds, fresh=False, warm_up=0.0):
        shape = ["--connections", HTTP1_CONNECTIONS]
        if protocol != "http1":
            shape = ["--connections", CONNECTIONS, "--streams", OPEN_STREAMS]
        text = run(CLIENT, [self.generator, "send", "--to", to, "--protocol", protocol, *shape,
                            "--rate", rate, "--seconds", seconds, "--warm-up", warm_up,
                            *(["--fresh"] if fresh else [])], real_time=True)
        return json.loads(text)

    def closed_loop(self, to, protocol, seconds, fresh=False):
        found = self.wrk(to, seconds, fresh) if protocol == "http1" else self.h2load(
            to, seconds, protocol == "grpc")
        if not found["requests"]:
            raise Failed(f"{protocol} at {to}: not one answer")
        return found

    def wrk(self, to, seconds, fresh):
        close = ["-H", "Connection: close"] if fresh else []
        text = run(CLIENT, [*self.env("wrk"), "-t1", f"-c{HTTP1_CONNECTIONS}", f"-d{seconds}s",
                            "--timeout", "10s", "-H", "Host: server.bench", *close,
                            f"http://{to}/"])
        count, took, unit = re.search(r"(\d+) requests in ([\d.]+)(\w+),", text).groups()
        seconds = float(took) * {"ms": 0.001, "s": 1, "m": 60}[unit]
        bad = re.findall(r"(?:connect|read|write|timeout) (\d+)|Non-2xx.*: (\d+)", text)
        return {"requests": int(count), "per_second": int(count) / seconds,
                "errors": sum(int(number) for pair in bad for number in pair if number)}

    def h2load(self, to, seconds, grpc):
        path = "/bench.Echo/Ping" if grpc else "/"
        call = ["-d", f"{self.folder}/call.grpc", "-H", "content-type: application/grpc",
                "-H", "te: trailers"] if grpc else []
        text = run(CLIENT, [*self.env("h2load"), "-t1", f"-c{CONNECTIONS}", f"-m{STREAMS}",
                            "-D", seconds, *call, f"http://{to}{path}"])
        # Requests that are cut off at the end count there as failed; they are not.
        count = int(re.search(r"(\d+) 2xx", text)[1])
        bad = sum(map(int, re.search(r"(\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text).groups()))
        # An error of gRPC is a 200 without a message, which is all that h2load looks at.
        data = int(re.search(r"\((\d+)\) data", text)[1])
        empty = count - data // ANSWER_BYTES if grpc else 0
        return {"requests": count, "per_second": count / seconds, "errors": bad + max(0, empty)}

    def bulk(self, to, seconds):
        """One stream, from the application to the client."""
        host, port = to.split(":")
        text = run(CLIENT, [*self.env("iperf3"), "-c", host, "-p", port, "-t", seconds, "-R", "-J"])
        got = json.loads(text)["end"]["sum_received"]
        return {"bytes": got["bytes"], "per_second": got["bits_per_second"] / 1e9, "errors": 0}

    def hold(self, to, connections, silent=False):
        """The command that keeps connections open."""
        return [self.generator, "hold", "--to", to, "--connections", connections, "--seconds", 60,
                *(["--silent"] if silent else [])]
