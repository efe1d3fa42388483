"""What the tests share: the cluster as kubectl shows it, manifests, and the base of every test."""

import json
import subprocess
import threading
import time
import unittest
import urllib.parse
import urllib.request

APP = "localhost/testapp:test"
# Nobody is let in who is not in the mesh.
STRICT = """
apiVersion: outrigger.dev/v1
kind: MutualTLS
metadata: {name: all}
spec: {mode: strict}
"""


def run(*command, text=None, check=True, timeout=120):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def kubectl(*arguments, **options):
    return run("kubectl", *arguments, **options).stdout


class Api:
    """The API server by HTTP, through `kubectl proxy`: tests ask it often, and kubectl starts slowly."""

    GROUPS = {"httproutes": "gateway.networking.k8s.io/v1"}

    def __init__(self):
        self.proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
        self.address = self.proxy.stdout.readline().rsplit(" ", 1)[-1].strip()

    def read(self, path, **query):
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()

    def path(self, namespace, kind, name=""):
        plural, _, ours = kind.partition(".")
        group = f"{ours}/v1" if ours else self.GROUPS.get(plural)
        top = f"/apis/{group}" if group else "/api/v1"
        return f"{top}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")

    def end(self):
        self.proxy.terminate()
        self.proxy.wait()


API = None


def get(namespace, kind, name="", labels=""):
    """An object, or the list of all; kinds as the API has them, ours as trafficpolicies.outrigger.dev."""
    found = json.loads(API.read(API.path(namespace, kind, name), labelSelector=labels))
    return found if name else found["items"]


def proxied(namespace, what, path):
    """Asks a pod or a Service from outside of the mesh: the API server passes it on."""
    return API.read(f"/api/v1/namespaces/{namespace}/{what}/proxy/{path}")


def logs(namespace, pod, container):
    """What the container has said, line by line."""
    return API.read(API.path(namespace, "pods", pod) + "/log", container=container).splitlines()


def unusual(namespace, pod):
    """What a pod's proxy has said that is not a request which went well: why one did not."""
    try:
        lines = logs(namespace, pod, "outrigger-proxy")
    except Exception as error:  # A pod outside of the mesh, or one that has not begun.
        return f"{pod}: {error}"
    return "\n".join(f"{pod}: {line}" for line in lines if " 200 - " not in line)[-4000:]


def apply(namespace, manifest, check=True):
    return run("kubectl", "-n", namespace, "apply", "-f", "-", text=manifest, check=check)


def until(seconds, what, question):
    """Asks until the answer is true, and returns it."""
    end = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s still not: {what}; last answer: {answer!r}")
        time.sleep(0.1)


def server(name, arguments="", account="default", extra="", replicas=1, annotations="", labels=""):
    """A Deployment of the test application, with its Service and service account."""
    return f"""
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: web}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}{labels}}}, annotations: {{{annotations}}}}}
    spec:
      serviceAccountName: {account}
      terminationGracePeriodSeconds: 10
      containers:
        - name: app
          image: {APP}
          args: [http, --listen, "[::]:8080", --name, {name}{arguments}]
          ports: [{{name: web, containerPort: 8080}}]
{extra or '          readinessProbe: {httpGet: {path: /healthz, port: web}, periodSeconds: 1}'}
"""


def client(name, account="default", command='[/bin/busybox, sleep, "86400"]', extra="", annotations=""):
    """A pod to call from."""
    return f"""
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}, annotations: {{{annotations}}}}}
spec:
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
{extra}
  containers: [{{name: app, image: {APP}, command: {command}}}]
"""


class Lines:
    """What a program prints, line by line, with the moment at which each line came."""

    def __init__(self, *command):
        self.all = []
        self.program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.program.stdout:
            self.all.append((time.monotonic(), line.rstrip("\n")))

    def end(self, seconds=0):
        """All lines; the program is given this long to end by itself."""
        try:
            self.program.wait(seconds)
        except subprocess.TimeoutExpired:
            self.program.kill()
        self.reader.join(10)
        return [line for _, line in self.all]


class Mesh(unittest.TestCase):
    """Each test has namespaces of its own."""

    # Tests that take something from all others run by themselves.
    alone = False

    def setUp(self):
        self.namespaces, self.notes, self.programs = [], [], []
        self.failed = True

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        super().run(result)
        self.failed = len(result.failures) + len(result.errors) > before
        if self.failed:
            self.explain()
        for program in self.programs:
            program.end()
        for name in self.namespaces:
            kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found", check=False)

    def say(self, text):
        self.notes.append(text)

    def explain(self):
        """Before the namespaces are removed."""
        for name in self.namespaces:
            self.say(kubectl("-n", name, "get", "pods,services,endpointslices", "-o", "wide", check=False))
            self.say(kubectl("-n", name, "get", "events", "--sort-by=.lastTimestamp", check=False))
            for pod in get(name, "pods"):
                self.say(unusual(name, pod["metadata"]["name"]))
        self.say(kubectl("-n", "outrigger-system", "logs", "-l", "app=outrigger-control", "--tail=20",
                         "--prefix", check=False))

    def lines(self, *command):
        program = Lines(*command)
        self.programs.append(program)
        return program

    def namespace(self, name, mesh=True):
        self.namespaces.append(name)
        label = "enabled" if mesh else "disabled"
        apply("default", f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {name}, labels: {{outrigger.dev/inject: {label}}}}}
""")
        until(20, "the namespace has its account", lambda: run(
            "kubectl", "-n", name, "get", "serviceaccount", "default", check=False).returncode == 0)
        return name

    def ready(self, namespace, *deployments, pods=()):
        for name in deployments:
            kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=90s")
        for name in pods:
            kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")

    def pod(self, namespace, app):
        """One that is not about to end."""
        return next(pod for pod in get(namespace, "pods", labels=f"app={app}")
                    if "deletionTimestamp" not in pod["metadata"])

    def execute(self, namespace, *command, pod="client", **options):
        return run("kubectl", "-n", namespace, "exec", "-i", pod, "-c", "app", "--", *command, **options)

    def call(self, namespace, url, *arguments, pod="client"):
        """Calls from the application of a pod; status and what the other side said of the call."""
        done = self.execute(namespace, "/bin/curl", "-sS", "-m", "10", "-w", "\n%{http_code}", url, *arguments,
                            pod=pod, check=False)
        body, _, status = done.stdout.rpartition("\n")
        try:
            said = json.loads(body)
        except ValueError:
            said = {"text": body, "error": done.stderr}
        return int(status or 0), said

    def load(self, namespace, url, rate, seconds, *arguments, connections=32):
        """A client that calls at a fixed rate; `tally` says later what came of it."""
        return self.lines(
            "kubectl", "-n", namespace, "exec", "client", "-c", "app", "--", "/bin/outrigger-testapp", "load",
            "--url", url, "--rate", str(rate), "--seconds", str(seconds), "--connections", str(connections),
            "--skip-late", "1", *arguments)

    @staticmethod
    def tally(load, seconds=120):
        said = load.end(seconds)
        assert said and said[-1].startswith("{"), said
        return json.loads(said[-1])
