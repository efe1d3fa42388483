#!/usr/bin/env python3
"""The mesh in a real Kubernetes, seen from applications and from people who steer it.

Runs against the cluster of KUBECONFIG, in which the mesh is installed and the images
localhost/testapp:test and localhost/outrigger-proxy:test are there. Arguments choose tests by words
of their names. Namespaces that a test makes are removed at its end.
"""

import json
import subprocess
import sys
import time
import unittest

APP = "localhost/testapp:test"


def run(*command, text=None, check=True, timeout=120):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def kubectl(*arguments, **options):
    return run("kubectl", *arguments, **options).stdout


def get(*arguments):
    return json.loads(kubectl("get", "-o", "json", *arguments))


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


def server(name, labels="", arguments="", account="default", extra="", image=APP, spec=""):
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
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}{labels}}}}}
    spec:
      serviceAccountName: {account}
      terminationGracePeriodSeconds: 10
{spec}
      containers:
        - name: app
          image: {image}
          args: [http, --listen, "[::]:8080", --name, {name}{arguments}]
          ports: [{{name: web, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /healthz, port: web}}, periodSeconds: 1}}
{extra}
"""


def client(name, account="default"):
    """A pod to call from."""
    return f"""
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
  containers: [{{name: app, image: {APP}, command: [/bin/busybox, sleep, "86400"]}}]
"""


class Mesh(unittest.TestCase):
    """Each test has namespaces of its own."""

    def setUp(self):
        self.namespaces = []

    def tearDown(self):
        failed = self._outcome.result.failures + self._outcome.result.errors
        if any(test is self for test, _ in failed):
            self.explain()
        for name in self.namespaces:
            kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")

    def explain(self):
        for name in self.namespaces:
            print(kubectl("-n", name, "get", "pods,services,endpointslices", "-o", "wide", check=False))
            print(kubectl("-n", name, "get", "events", "--sort-by=.lastTimestamp", check=False))
        print(kubectl("-n", "outrigger-system", "logs", "-l", "app=outrigger-control", "--tail=40",
                      "--prefix", check=False))

    def namespace(self, name, mesh=True):
        self.namespaces.append(name)
        label = "enabled" if mesh else "disabled"
        apply("default", f"""
apiVersion: v1
kind: Namespace
metadata: {{name: {name}, labels: {{outrigger.dev/inject: {label}}}}}
""")
        until(20, "the namespace has its account",
              lambda: run("kubectl", "-n", name, "get", "serviceaccount", "default", check=False).returncode == 0)
        return name

    def ready(self, namespace, *deployments, pods=()):
        for name in deployments:
            kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=90s")
        for name in pods:
            kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")

    def call(self, namespace, url, *arguments, pod="client"):
        """Calls from the application of a pod; status and what the other side said of the call."""
        done = run("kubectl", "-n", namespace, "exec", pod, "-c", "app", "--", "/bin/curl", "-sS", "-m", "10",
                   "-w", "\n%{http_code}", url, *arguments, check=False)
        body, _, status = done.stdout.rpartition("\n")
        try:
            said = json.loads(body)
        except ValueError:
            said = {"text": body, "error": done.stderr}
        return int(status or 0), said

    def test_a_pod_of_the_namespace_is_in_the_mesh(self):
        shop = self.namespace("shop")
        apply(shop, server("cart", account="cart") + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        pod = get("-n", shop, "pods", "-l", "app=cart")["items"][0]
        names = [one["name"] for one in pod["spec"]["initContainers"]]
        self.assertEqual(names, ["outrigger-init", "outrigger-proxy"])
        self.assertEqual(pod["metadata"]["labels"]["outrigger.dev/mesh"], "sidecar")
        status, said = self.call(shop, "http://cart/hello?a=b")
        self.assertEqual((status, said.get("path"), said.get("instance")), (200, "/hello", "cart"), said)
        # Who calls is proven to the server's proxy: that is mutual TLS.
        log = until(10, "the request is in the server's access log", lambda: [
            line for line in kubectl("-n", shop, "logs", pod["metadata"]["name"], "-c", "outrigger-proxy").splitlines()
            if "/hello" in line])
        self.assertIn("spiffe://outrigger.local/ns/shop/sa/default", log[0])

    def test_strict_mutual_tls_refuses_who_is_outside(self):
        inside, outside = self.namespace("strict"), self.namespace("outside", mesh=False)
        apply(inside, server("cart") + "---" + client("client"))
        apply(outside, client("client"))
        self.ready(inside, "cart", pods=["client"])
        self.ready(outside, pods=["client"])
        url = "http://cart.strict/"
        self.assertEqual(self.call(inside, url)[0], 200)
        self.assertEqual(self.call(outside, url)[0], 200, "permissive is the default")
        apply(inside, """
apiVersion: outrigger.dev/v1
kind: MutualTLS
metadata: {name: all}
spec: {mode: strict}
""")
        until(5, "the outsider is refused", lambda: self.call(outside, url)[0] == 0)
        self.assertEqual(self.call(inside, url)[0], 200)

    def test_identity_decides(self):
        shop, web = self.namespace("authz"), self.namespace("authz-web")
        apply(shop, server("cart"))
        apply(web, client("client", account="frontend") + "---" + client("other", account="other"))
        self.ready(shop, "cart")
        self.ready(web, pods=["client", "other"])
        apply(shop, """
apiVersion: outrigger.dev/v1
kind: AuthorizationPolicy
metadata: {name: cart}
spec:
  action: allow
  targetRefs: [{name: cart}]
  rules: [{from: [{identities: [authz-web/frontend]}], to: [{methods: [GET]}]}]
""")
        url = "http://cart.authz/"
        until(5, "another is refused", lambda: self.call(web, url, pod="other")[0] == 403)
        self.assertEqual(self.call(web, url)[0], 200)
        self.assertEqual(self.call(web, url, "-XPOST")[0], 403)

    def test_a_route_is_effective_within_a_second(self):
        shop = self.namespace("routes")
        apply(shop, server("cart") + "---" + server("cart-v2") + "---" + client("client"))
        self.ready(shop, "cart", "cart-v2", pods=["client"])
        self.assertEqual(self.call(shop, "http://cart/")[1].get("instance"), "cart")

        def route(backend):
            apply(shop, f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: cart}}
spec:
  parentRefs: [{{group: "", kind: Service, name: cart, port: 80}}]
  rules:
    - matches: [{{headers: [{{name: x-canary, value: "yes"}}]}}]
      backendRefs: [{{name: {backend}, port: 80}}]
    - backendRefs: [{{name: cart, port: 80}}]
""")
            return time.monotonic()

        canary = lambda: self.call(shop, "http://cart/", "-H", "x-canary: yes")[1].get("instance")
        self.assertEqual(canary(), "cart")
        changed = route("cart-v2")
        until(3, "the route is in force", lambda: canary() == "cart-v2")
        print(f"a new route: in force {time.monotonic() - changed:.2f} s after kubectl, a call included")
        self.assertEqual(self.call(shop, "http://cart/")[1].get("instance"), "cart")
        changed = route("cart")
        until(3, "the changed route is in force", lambda: canary() == "cart")
        took = time.monotonic() - changed
        print(f"a changed route: in force {took:.2f} s after kubectl, a call included")
        self.assertLess(took, 1.5)

    def test_a_pod_that_cannot_be_protected_is_refused(self):
        shop = self.namespace("refused")
        pod = client("host").replace("spec:\n", "spec:\n  hostNetwork: true\n", 1)
        done = apply(shop, pod, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("host's network", done.stderr)
        out = client("out").replace("labels:", 'annotations: {outrigger.dev/inject: "false"}, labels:', 1)
        apply(shop, out)
        self.ready(shop, pods=["out"])
        self.assertNotIn("initContainers", get("-n", shop, "pod", "out")["spec"])

    def test_a_job_completes(self):
        shop = self.namespace("jobs")
        apply(shop, server("cart"))
        self.ready(shop, "cart")
        apply(shop, f"""
apiVersion: batch/v1
kind: Job
metadata: {{name: once}}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
        - {{name: app, image: {APP}, command: [/bin/curl, -fsS, -m, "10", "http://cart/"]}}
""")
        kubectl("-n", shop, "wait", "--for=condition=Complete", "job/once", "--timeout=60s")
        pod = get("-n", shop, "pods", "-l", "job-name=once")["items"][0]
        ended = {one["name"]: one["state"]["terminated"]["exitCode"]
                 for key in ("initContainerStatuses", "containerStatuses") for one in pod["status"][key]}
        self.assertEqual(ended, {"outrigger-init": 0, "outrigger-proxy": 0, "app": 0})

    def test_dns_and_the_api_server_are_reached(self):
        shop = self.namespace("elsewhere")
        apply(shop, client("client"))
        self.ready(shop, pods=["client"])
        done = run("kubectl", "-n", shop, "exec", "client", "-c", "app", "--", "/bin/busybox", "nslookup",
                   "kubernetes.default.svc.cluster.local")
        self.assertIn("10.123.2.1", done.stdout)
        status, said = self.call(shop, "https://kubernetes.default/version", "-k")
        self.assertIn(status, (200, 401), said)


    def test_probes_work_where_mutual_tls_is_demanded(self):
        shop = self.namespace("probes")
        apply(shop, """
apiVersion: outrigger.dev/v1
kind: MutualTLS
metadata: {name: all}
spec: {mode: strict}
""")
        probes = """
          livenessProbe: {httpGet: {path: /live, port: 8080, httpHeaders: [{name: X-Probe, value: "yes"}]}, periodSeconds: 1, failureThreshold: 2}
          startupProbe: {tcpSocket: {port: web}, periodSeconds: 1}
"""
        apply(shop, server("cart", extra=probes) + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        pod = get("-n", shop, "pods", "-l", "app=cart")["items"][0]
        self.assertEqual(pod["spec"]["containers"][0]["livenessProbe"]["httpGet"],
                         {"path": "/probe/app/liveness", "port": 15021, "scheme": "HTTP"})
        # The application says that it is broken: the probes must tell the kubelet.
        self.assertEqual(self.call(shop, "http://cart/control/fail?status=503")[0], 200)
        restarts = lambda: get("-n", shop, "pods", "-l", "app=cart")["items"][0]["status"]["containerStatuses"][0]["restartCount"]
        until(60, "the kubelet restarts it", lambda: restarts() > 0)
        self.ready(shop, "cart")
        until(10, "it is called again", lambda: self.call(shop, "http://cart/")[0] == 200)

    def test_pods_come_and_go_without_a_failed_request(self):
        shop = self.namespace("rolling")
        rate, rounds = 200, 10
        manifest = server("cart").replace("replicas: 1", "replicas: 4")
        # An application that ends at once when it is told to, as many do.
        manifest = manifest.replace(
            'args: [http, --listen, "[::]:8080", --name, cart]',
            "command: [/bin/busybox, sh, -c, 'trap \"kill \\$p; exit 0\" TERM; "
            "/bin/outrigger-testapp http --listen [::]:8080 --name cart & p=$!; wait $p']")
        apply(shop, manifest + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        load = subprocess.Popen(
            ["kubectl", "-n", shop, "exec", "client", "-c", "app", "--", "/bin/outrigger-testapp", "load",
             "--url", "http://cart/", "--rate", str(rate), "--seconds", str(rounds * 7), "--connections", "32"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deleted = 0
        while load.poll() is None and deleted < rounds * 2:
            names = [pod["metadata"]["name"] for pod in get("-n", shop, "pods", "-l", "app=cart")["items"]
                     if "deletionTimestamp" not in pod["metadata"]][:2]
            kubectl("-n", shop, "delete", "pod", "--wait=false", *names)
            deleted += len(names)
            kubectl("-n", shop, "rollout", "status", "deployment/cart", "--timeout=60s")
        out, _ = load.communicate(timeout=180)
        told = json.loads(out.strip().splitlines()[-1])
        print(f"{deleted} pods deleted under {rate} requests/s: {told}")
        self.assertGreater(deleted, 4)
        self.assertEqual(told["failed"], 0, told)

    def test_while_the_control_plane_is_away(self):
        shop = self.namespace("alone")
        apply(shop, server("cart") + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        self.assertEqual(self.call(shop, "http://cart/")[0], 200)
        kubectl("-n", "outrigger-system", "scale", "deployment/outrigger-control", "--replicas=0")
        try:
            until(60, "it is away", lambda: not get("-n", "outrigger-system", "pods", "-l", "app=outrigger-control")["items"])
            for _ in range(5):
                self.assertEqual(self.call(shop, "http://cart/")[0], 200)
            late = apply(shop, client("late"), check=False)
            self.assertNotEqual(late.returncode, 0, "a pod must not run unprotected")
            self.assertIn("namespace.inject.outrigger.dev", late.stderr)
        finally:
            kubectl("-n", "outrigger-system", "scale", "deployment/outrigger-control", "--replicas=2")
            kubectl("-n", "outrigger-system", "rollout", "status", "deployment/outrigger-control", "--timeout=120s")
        until(30, "pods are made again", lambda: apply(shop, client("late"), check=False).returncode == 0)
        self.ready(shop, pods=["late"])
        self.assertEqual(self.call(shop, "http://cart/", pod="late")[0], 200)

    def test_what_is_wrong_is_said(self):
        shop = self.namespace("wrong")
        bad = apply(shop, """
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {name: cart}
spec: {targetRefs: [{name: cart}], loadBalancer: {policy: ringHash}}
""", check=False)
        self.assertNotEqual(bad.returncode, 0)
        self.assertIn("hash goes with policy ringHash", bad.stderr)
        apply(shop, """
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {name: cart}
spec: {targetRefs: [{name: cart}], retries: {"on": [nonsense]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart, port: 80}]
  rules: [{backendRefs: [{name: nobody, port: 80}]}]
""")

        def conditions(kind):
            status = get("-n", shop, kind, "cart").get("status", {})
            ours = status.get("conditions") or (status.get("parents") or [{}])[0].get("conditions") or []
            return {one["type"]: (one["status"], one["reason"], one["message"]) for one in ours}

        policy = until(5, "the policy has a status", lambda: conditions("trafficpolicy.outrigger.dev"))
        self.assertEqual(policy["Accepted"][:2], ("False", "UnsupportedValue"))
        self.assertIn("spec.retries.on", policy["Accepted"][2])
        route = until(5, "the route has a status", lambda: conditions("httproute"))
        self.assertEqual(route["Accepted"][:2], ("False", "NoMatchingParent"))
        apply(shop, server("cart"))
        until(5, "the parent is there", lambda: conditions("httproute")["Accepted"][:2] == ("True", "Accepted"))
        self.assertEqual(conditions("httproute")["ResolvedRefs"][:2], ("False", "BackendNotFound"))

    def test_every_policy_of_the_example_is_taken(self):
        shop, web = self.namespace("shop-example"), self.namespace("web-example", mesh=False)
        text = open("control-api/examples/shop.yaml", encoding="utf-8").read()
        for document in text.split("\n---\n"):
            if "\nkind: Service\n" in document:
                continue
            document = document.replace("namespace: shop", f"namespace: {shop}").replace("namespace: web", f"namespace: {web}")
            run("kubectl", "apply", "-f", "-", text=document)
        for kind in ("trafficpolicies", "authorizationpolicies", "mutualtlses", "faultinjections", "ratelimits", "telemetries"):
            one = lambda: [
                (item["metadata"]["name"], condition["message"])
                for item in get("-n", shop, f"{kind}.outrigger.dev")["items"]
                for condition in item.get("status", {}).get("conditions", [])
                if condition["type"] == "Accepted"]
            said = until(5, f"{kind} have a status", one)
            for name, message in said:
                self.assertNotIn("spec.spec", message, name)
                wrong = [] if "does not exist" in message or message == "The mesh has taken it" else [message]
                self.assertEqual(wrong, [], f"{kind} {name}")


if __name__ == "__main__":
    words = sys.argv[1:]
    loader = unittest.TestLoader()
    names = loader.getTestCaseNames(Mesh)
    chosen = [name for name in names if not words or any(word in name for word in words)]
    if not chosen:
        sys.exit(f"no test has {' or '.join(words)} in its name: {' '.join(names)}")
    suite = unittest.TestSuite(Mesh(name) for name in chosen)
    result = unittest.TextTestRunner(verbosity=2, failfast=False).run(suite)
    sys.exit(0 if result.wasSuccessful() else 1)
