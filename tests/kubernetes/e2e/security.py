"""Who may call whom, and what may not run at all."""

import json

from mesh import APP, STRICT, Mesh, apply, client, get, kubectl, proxied, server, until


class Security(Mesh):
    def test_strict_mutual_tls_refuses_who_is_outside(self):
        inside, outside = self.namespace("strict"), self.namespace("outside", mesh=False)
        apply(inside, server("cart") + "---" + client("client"))
        apply(outside, client("client"))
        self.ready(inside, "cart", pods=["client"])
        self.ready(outside, pods=["client"])
        url = "http://cart.strict/"
        pod = self.pod(inside, "cart")
        direct = f"http://{pod['status']['podIP']}:8080/"
        for to in (url, direct):
            self.assertEqual(self.call(inside, to)[0], 200)
            self.assertEqual(self.call(outside, to)[0], 200, "permissive is the default")
        apply(inside, STRICT)
        until(5, "the outsider is refused", lambda: self.call(outside, url)[0] == 0)
        self.assertEqual(self.call(outside, direct)[0], 0)
        self.assertEqual(self.call(outside, "https://cart.strict:80/", "-k")[0], 0)
        for to in (url, direct):
            self.assertEqual(self.call(inside, to)[0], 200)
        # Prometheus is outside of the mesh, and reads nevertheless.
        text = proxied(inside, f"pods/{pod['metadata']['name']}:15020", "metrics")
        self.assertRegex(text, r'(?m)^outrigger_requests_total\{[^}]*\} [1-9]')
        port = next(port for container in pod["spec"]["initContainers"] for port in container.get("ports", []))
        self.assertEqual((port["name"], port["containerPort"]), ("mesh-metrics", 15020))

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

    def test_ku_10_probes_work_where_mutual_tls_is_demanded(self):
        shop = self.namespace("probes")
        apply(shop, STRICT)
        probes = """
          startupProbe: {tcpSocket: {port: web}, periodSeconds: 1}
          readinessProbe: {grpc: {port: 8080}, periodSeconds: 1, failureThreshold: 1}
          livenessProbe: {httpGet: {path: /live, port: 8080, httpHeaders: [{name: X-Probe, value: "yes"}]}, periodSeconds: 1, failureThreshold: 4}
"""
        # Nobody listens where this one is asked: the proxy, which does, must not answer for it.
        deaf = server("deaf", extra="          readinessProbe: {tcpSocket: {port: 9999}, periodSeconds: 1}\n")
        apply(shop, server("cart", extra=probes) + "---" + deaf + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        pod = self.pod(shop, "cart")
        for kind in ("startup", "readiness", "liveness"):
            self.assertEqual(pod["spec"]["containers"][0][f"{kind}Probe"]["httpGet"],
                             {"path": f"/probe/app/{kind}", "port": 15021, "scheme": "HTTP"})
        # The application says that it is broken: the probes must tell the kubelet.
        self.assertEqual(self.call(shop, "http://cart/control/fail?status=503")[0], 200)
        state = lambda: get(shop, "pods", labels="app=cart")[0]["status"]["containerStatuses"][0]
        until(60, "it is not ready", lambda: not state()["ready"])
        until(60, "the kubelet restarts it", lambda: state()["restartCount"] > 0)
        self.ready(shop, "cart")
        until(20, "it is called again", lambda: self.call(shop, "http://cart/")[0] == 200)
        other = get(shop, "pods", labels="app=deaf")[0]["status"]
        self.assertTrue(other["containerStatuses"][0]["started"])
        self.assertFalse(other["containerStatuses"][0]["ready"])

    def test_ku_08_a_pod_that_cannot_be_protected_is_refused(self):
        shop = self.namespace("refused")
        for extra, why in (("  hostNetwork: true", "host's network"),
                           ("  securityContext: {runAsUser: 1337}", "user 1337")):
            done = apply(shop, client("bad", extra=extra), check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(why, done.stderr)
            self.assertIn('outrigger.dev/inject: "false"', done.stderr)
        apply(shop, client("out", annotations='outrigger.dev/inject: "false"'))
        self.ready(shop, pods=["out"])
        self.assertNotIn("initContainers", get(shop, "pods", "out")["spec"])

    def test_ku_06_without_a_redirect_the_application_does_not_start(self):
        shop = self.namespace("unprotected")
        # An image in which there is nothing to make rules with.
        apply(shop, client("late", annotations=f"outrigger.dev/proxy-image: {APP}"))
        init = lambda: next(iter(get(shop, "pods", "late")["status"].get("initContainerStatuses", [])), {})
        until(40, "the rules cannot be made", lambda: init().get("restartCount", 0) > 0)
        pod = get(shop, "pods", "late")
        self.assertEqual(init()["name"], "outrigger-init")
        self.assertIn("waiting", pod["status"]["containerStatuses"][0]["state"])
        self.assertEqual(pod["status"]["phase"], "Pending")

    def test_a_token_of_somebody_else_proves_nothing(self):
        """A service account's ordinary token is not for us: TokenReview says no."""
        shop = self.namespace("tokens")
        apply(shop, client("client"))
        self.ready(shop, pods=["client"])
        volume = next(volume for volume in get(shop, "pods", "client")["spec"]["volumes"]
                      if volume["name"] == "outrigger-identity")
        token = next(one["serviceAccountToken"] for one in volume["projected"]["sources"] if "serviceAccountToken" in one)
        self.assertEqual(token["audience"], "outrigger")
        pod = get(shop, "pods", "client")
        # The same pod, but with the token that is for the API server.
        for one in pod["spec"]["volumes"]:
            if one["name"] == "outrigger-identity":
                one["projected"]["sources"][0]["serviceAccountToken"]["audience"] = "https://kubernetes.default.svc.cluster.local"
        pod["metadata"] = {"name": "thief", "labels": pod["metadata"]["labels"], "annotations": pod["metadata"]["annotations"]}
        pod["spec"].pop("nodeName")
        pod.pop("status")
        apply(shop, json.dumps(pod))
        log = lambda: kubectl("-n", "outrigger-system", "logs", "-l", "app=outrigger-control", "--tail=200")
        address = lambda: get(shop, "pods", "thief")["status"].get("podIP", "not yet")
        until(40, "the control plane refuses it", lambda: [
            line for line in log().splitlines()
            if "certificate refused" in line and f"{address()}:" in line and "target audiences" in line])
        self.assertEqual(get(shop, "pods", "thief")["status"]["phase"], "Pending")
