"""Routes and policies as objects of the cluster: when they are in force, and what is said of them."""

import time

from mesh import Mesh, apply, client, get, run, server, until


def route(backend, value="yes", kind="Exact"):
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: cart}}
spec:
  parentRefs: [{{group: "", kind: Service, name: cart, port: 80}}]
  rules:
    - matches: [{{headers: [{{name: x-canary, type: {kind}, value: "{value}"}}]}}]
      backendRefs: [{{name: {backend}, port: 80}}]
    - backendRefs: [{{name: cart, port: 80}}]
"""


class Policies(Mesh):
    def conditions(self, namespace, kind, name="cart"):
        found = get(namespace, kind, name)
        status = found.get("status", {})
        ours = status.get("conditions") or (status.get("parents") or [{}])[0].get("conditions") or []
        newest = found["metadata"]["generation"]
        return {one["type"]: (one["status"], one["reason"], one["message"])
                for one in ours if one["observedGeneration"] == newest}

    def shop(self, name):
        shop = self.namespace(name)
        apply(shop, server("cart") + "---" + server("cart-v2") + "---" + client("client"))
        self.ready(shop, "cart", "cart-v2", pods=["client"])
        return shop

    def canary(self, shop):
        return self.call(shop, "http://cart/", "-H", "x-canary: yes")[1].get("instance")

    def test_a_route_is_effective_within_a_second(self):
        shop = self.shop("routes")
        script = "while :; do /bin/curl -sS -m 5 -H 'x-canary: yes' http://cart/; echo; busybox usleep 10000; done"
        answers = self.lines("kubectl", "-n", shop, "exec", "client", "-c", "app", "--", "/bin/busybox", "sh", "-c", script)
        until(20, "it is called", lambda: answers.all)
        for turn in range(3):
            for backend in ("cart-v2", "cart"):
                apply(shop, route(backend))
                written, seen = time.monotonic(), len(answers.all)
                of_new = f'"instance":"{backend}"'
                first = until(5, f"{backend} is called", lambda: next(
                    (at for at, line in answers.all[seen:] if of_new in line), None))
                took = first - written
                self.say(f"route to {backend}: in force {took:.2f} s after it was written")
                self.assertLess(took, 1)
                said = until(5, "its status", lambda: self.conditions(shop, "httproutes"))
                self.assertEqual(said["Accepted"][:2], ("True", "Accepted"))
                self.assertEqual(said["ResolvedRefs"][:2], ("True", "ResolvedRefs"))
        self.assertEqual(self.call(shop, "http://cart/")[1].get("instance"), "cart")

    def test_an_invalid_route_leaves_the_last_good_one_in_force(self):
        shop = self.shop("last-good")
        apply(shop, route("cart-v2"))
        until(3, "the route is in force", lambda: self.canary(shop) == "cart-v2")
        # To the API server it is a text; that it is no regular expression is for the mesh to say: at
        # admission, or, where it could not be asked then, in the status.
        bad = apply(shop, route("cart", value="(", kind="RegularExpression"), check=False)
        why = bad.stderr
        if bad.returncode == 0:
            said = until(5, "its status", lambda: self.conditions(shop, "httproutes"))
            self.assertEqual(said["Accepted"][:2], ("False", "UnsupportedValue"))
            why = said["Accepted"][2]
        self.assertIn("spec.rules[0].matches[0].headers[0]", why)
        self.assertEqual(self.canary(shop), "cart-v2", "the last good one stays in force")
        apply(shop, route("cart"))
        until(3, "the next good one is in force", lambda: self.canary(shop) == "cart")
        until(5, "its status", lambda: self.conditions(shop, "httproutes").get("Accepted", [""])[0] == "True")

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
        # What a schema cannot say, the control plane does.
        bad = apply(shop, """
apiVersion: outrigger.dev/v1
kind: TrafficPolicy
metadata: {name: cart}
spec: {targetRefs: [{name: cart}], retries: {"on": [nonsense]}}
""", check=False)
        self.assertNotEqual(bad.returncode, 0)
        self.assertIn("spec.retries.on", bad.stderr)
        apply(shop, """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart, port: 80}]
  rules: [{backendRefs: [{name: nobody, port: 80}]}]
""")
        said = until(5, "the route has a status", lambda: self.conditions(shop, "httproutes"))
        self.assertEqual(said["Accepted"][:2], ("False", "NoMatchingParent"))
        apply(shop, server("cart"))
        until(5, "the parent is there", lambda: self.conditions(shop, "httproutes")["Accepted"][:2] == ("True", "Accepted"))
        self.assertEqual(self.conditions(shop, "httproutes")["ResolvedRefs"][:2], ("False", "BackendNotFound"))

    def test_every_policy_of_the_example_is_taken(self):
        shop, web = self.namespace("shop-example"), self.namespace("web-example", mesh=False)
        with open("control-api/examples/shop.yaml", encoding="utf-8") as file:
            text = file.read()
        for document in text.split("\n---\n"):
            if "\nkind: Service\n" in document:
                continue
            document = document.replace("namespace: shop", f"namespace: {shop}").replace("namespace: web", f"namespace: {web}")
            run("kubectl", "apply", "-f", "-", text=document)
        for kind in ("trafficpolicies", "authorizationpolicies", "mutualtlses", "faultinjections", "ratelimits", "telemetries"):
            one = lambda: [
                (item["metadata"]["name"], condition["message"])
                for item in get(shop, f"{kind}.outrigger.dev")
                for condition in item.get("status", {}).get("conditions", [])
                if condition["type"] == "Accepted"]
            said = until(5, f"{kind} have a status", one)
            for name, message in said:
                self.assertNotIn("spec.spec", message, name)
                wrong = [] if "does not exist" in message or message == "The mesh has taken it" else [message]
                self.assertEqual(wrong, [], f"{kind} {name}")
