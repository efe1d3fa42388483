"""Pods, the proxy and the control plane come and go; nobody loses a request."""

import time

from mesh import APP, Mesh, apply, client, get, kubectl, logs, server, until

# An application that ends at once when it is told to, as many do.
HASTY = ("command: [/bin/busybox, sh, -c, 'trap \"kill \\$p; exit 0\" TERM; "
         "/bin/outrigger-testapp http --listen [::]:8080 --name cart & p=$!; wait $p']")
JOB = f"""
apiVersion: batch/v1
kind: CronJob
metadata: {{name: nightly}}
spec:
  schedule: "0 0 1 1 *"
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          containers:
            - {{name: app, image: {APP}, command: [/bin/curl, -fsS, -m, "10", "http://cart/"]}}
"""


def hasty(manifest):
    return manifest.replace('args: [http, --listen, "[::]:8080", --name, cart]', HASTY)


class Pods(Mesh):
    def test_ku_03_a_job_completes(self):
        """Its only call is the first thing that it does (KU-04)."""
        shop = self.namespace("jobs")
        apply(shop, server("cart") + "---" + JOB)
        self.ready(shop, "cart")
        kubectl("-n", shop, "create", "job", "once", "--from=cronjob/nightly")
        kubectl("-n", shop, "wait", "--for=condition=Complete", "job/once", "--timeout=60s")
        pod = get(shop, "pods", labels="job-name=once")[0]
        ended = {one["name"]: one["state"]["terminated"]["exitCode"]
                 for key in ("initContainerStatuses", "containerStatuses") for one in pod["status"][key]}
        self.assertEqual(ended, {"outrigger-init": 0, "outrigger-proxy": 0, "app": 0})

    def test_ku_05_containers_that_prepare_have_the_network(self):
        shop = self.namespace("prepared")
        apply(shop, server("cart"))
        self.ready(shop, "cart")
        first = f'  initContainers: [{{name: first, image: {APP}, command: [/bin/curl, -fsS, -m, "10", "http://cart/first"]}}]'
        apply(shop, client("client", extra=first))
        self.ready(shop, pods=["client"])
        name = self.pod(shop, "cart")["metadata"]["name"]
        log = until(10, "it has called", lambda: [
            line for line in logs(shop, name, "outrigger-proxy") if "/first" in line])
        self.assertIn("spiffe://outrigger.local/ns/prepared/sa/default", log[0])

    def test_ku_01_an_application_that_ends_still_calls(self):
        shop = self.namespace("leaving")
        # When told to end it calls for five more seconds, each time over a new connection.
        script = ("trap 'leave=1' TERM; busybox sleep 86400 & while [ -z \\\"$leave\\\" ]; do busybox sleep 0.1; done; "
                  "n=0; while [ $n -lt 25 ]; do n=$((n+1)); "
                  "/bin/curl -sS -m 5 -o /dev/null -w 'call %{http_code}\\\\n' http://cart/; busybox sleep 0.2; done; echo gone")
        pod = client("client", command=f'[/bin/busybox, sh, -c, "{script}"]')
        pod = pod.replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 30")
        apply(shop, server("cart") + "---" + pod)
        self.ready(shop, "cart", pods=["client"])
        log = self.lines("kubectl", "-n", shop, "logs", "-f", "client", "-c", "app")
        kubectl("-n", shop, "delete", "pod", "client", "--wait=false")
        said = log.end(40)
        self.assertEqual(said, ["call 200"] * 25 + ["gone"])

    def test_a_proxy_that_ends_comes_back(self):
        shop = self.namespace("crash")
        apply(shop, server("cart") + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        self.assertEqual(self.call(shop, "http://cart/")[0], 200)
        self.call(shop, "http://127.0.0.1:15000/quitquitquit", "-XPOST")
        restarts = lambda: {one["name"]: one["restartCount"] for one in get(
            shop, "pods", "client")["status"]["initContainerStatuses"]}
        until(30, "the kubelet starts it again", lambda: restarts()["outrigger-proxy"] == 1)
        until(30, "calls go through again", lambda: self.call(shop, "http://cart/again")[0] == 200)
        # Never in clear text: who calls is proven.
        name = self.pod(shop, "cart")["metadata"]["name"]
        lines = [line for line in logs(shop, name, "outrigger-proxy") if "/again" in line]
        self.assertTrue(lines)
        for line in lines:
            self.assertIn("spiffe://outrigger.local/ns/crash/sa/default", line)


class Roll(Mesh):
    alone = True

    def test_ku_01_fifty_pods_come_and_go_without_a_failed_request(self):
        shop = self.namespace("rolling")
        apply(shop, hasty(server("cart", replicas=8)) + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        began = time.monotonic()
        kept = self.load(shop, "http://cart/kept", 250, 600, connections=32)
        fresh = self.load(shop, "http://cart/fresh", 250, 600, "--fresh", "1", connections=32)
        deleted = 0
        while deleted < 50:
            for load in (kept, fresh):
                self.assertIsNone(load.program.poll(), load.all)
            names = [pod["metadata"]["name"] for pod in get(shop, "pods", labels="app=cart")
                     if "deletionTimestamp" not in pod["metadata"]][:min(3, 50 - deleted)]
            kubectl("-n", shop, "delete", "pod", "--wait=false", *names)
            deleted += len(names)
            kubectl("-n", shop, "rollout", "status", "deployment/cart", "--timeout=60s")
        # A moment more, for the last of them.
        time.sleep(5)
        self.execute(shop, "/bin/busybox", "killall", "-TERM", "outrigger-testapp")
        took = time.monotonic() - began
        for name, load in (("kept", kept), ("fresh", fresh)):
            told = self.tally(load)
            self.say(f"{deleted} pods deleted in {took:.0f} s, {name} connections: {told['sent'] / took:.0f} requests/s; {told}")
            self.assertEqual(told["failed"], 0, told)
            # A machine that is busy with other things as well does not manage the whole rate.
            self.assertGreater(told["sent"] / took, 20)


class ControlPlane(Mesh):
    alone = True

    def scale(self, replicas):
        kubectl("-n", "outrigger-system", "scale", "deployment/outrigger-control", f"--replicas={replicas}")
        if replicas:
            kubectl("-n", "outrigger-system", "rollout", "status", "deployment/outrigger-control", "--timeout=120s")
        else:
            until(60, "it is away", lambda: not get(
                "outrigger-system", "pods", labels="app=outrigger-control"))

    def test_ku_11_while_the_control_plane_is_away(self):
        shop, other = self.namespace("alone"), self.namespace("alone-outside", mesh=False)
        apply(shop, server("cart") + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        load = self.load(shop, "http://cart/", 50, 600, connections=4)
        until(10, "it is called", lambda: self.call(shop, "http://cart/")[0] == 200)
        self.scale(0)
        try:
            # More of what is there already, and something new: both are held, and it is said why.
            kubectl("-n", shop, "scale", "deployment/cart", "--replicas=2")
            event = until(20, "an event says why", lambda: [
                event["message"] for event in get(shop, "events")
                if event["reason"] == "FailedCreate" and event["involvedObject"]["kind"] == "ReplicaSet"])
            self.say(event[0])
            self.assertIn('failed calling webhook "namespace.inject.outrigger.dev"', event[0])
            late = apply(shop, client("late"), check=False)
            self.assertNotEqual(late.returncode, 0, "a pod must not run unprotected")
            self.assertIn("namespace.inject.outrigger.dev", late.stderr)
            self.assertEqual(len(get(shop, "pods", labels="app=cart")), 1)
            # Others do not wait for the injector.
            apply(other, client("client"))
            self.ready(other, pods=["client"])
            self.assertEqual(self.call(other, "http://cart.alone/")[0], 200)
            self.assertEqual(self.call(shop, "http://cart/")[0], 200)
        finally:
            self.scale(2)
        self.execute(shop, "/bin/busybox", "killall", "-TERM", "outrigger-testapp")
        told = self.tally(load)
        self.assertEqual(told["failed"], 0, told)
        until(30, "pods are made again", lambda: apply(shop, client("late"), check=False).returncode == 0)
        self.ready(shop, "cart", pods=["late"])
        self.assertEqual(self.call(shop, "http://cart/", pod="late")[0], 200)
        self.assertEqual(len(get(shop, "pods", labels="app=cart")), 2)

    def test_a_new_version_of_the_control_plane_disturbs_nobody(self):
        shop = self.namespace("upgrade")
        apply(shop, server("cart", replicas=2) + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        load = self.load(shop, "http://cart/", 50, 600, connections=4)
        kubectl("-n", "outrigger-system", "rollout", "restart", "deployment/outrigger-control")
        kubectl("-n", "outrigger-system", "rollout", "status", "deployment/outrigger-control", "--timeout=120s")
        kubectl("-n", shop, "rollout", "restart", "deployment/cart")
        self.ready(shop, "cart")
        self.execute(shop, "/bin/busybox", "killall", "-TERM", "outrigger-testapp")
        told = self.tally(load)
        self.say(str(told))
        self.assertEqual(told["failed"], 0, told)
