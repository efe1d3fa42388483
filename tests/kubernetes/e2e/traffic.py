"""What applications see of the mesh."""

import struct

from mesh import STRICT, Mesh, apply, client, get, logs, server, until


class Traffic(Mesh):
    def test_a_pod_of_the_namespace_is_in_the_mesh(self):
        shop = self.namespace("shop")
        apply(shop, server("cart", account="cart") + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        pod = self.pod(shop, "cart")
        names = [one["name"] for one in pod["spec"]["initContainers"]]
        self.assertEqual(names, ["outrigger-init", "outrigger-proxy"])
        self.assertEqual(pod["metadata"]["labels"]["outrigger.dev/mesh"], "sidecar")
        status, said = self.call(shop, "http://cart/hello?a=b")
        self.assertEqual((status, said.get("path"), said.get("instance")), (200, "/hello", "cart"), said)
        # Who calls is proven to the server's proxy: that is mutual TLS.
        self.logged(shop, pod, "/hello", "spiffe://outrigger.local/ns/shop/sa/default")

    def logged(self, namespace, pod, word, wanted):
        name = pod["metadata"]["name"]
        log = until(10, "the request is in the access log", lambda: [
            line for line in logs(namespace, name, "outrigger-proxy") if word in line and "inbound" in line])
        self.assertIn(wanted, log[0])

    def test_ku_13_a_pod_calls_itself_by_its_service(self):
        shop = self.namespace("itself")
        apply(shop, STRICT + "---" + server("cart"))
        self.ready(shop, "cart")
        pod = self.pod(shop, "cart")
        name, address = pod["metadata"]["name"], pod["status"]["podIP"]
        for url in ("http://cart/by-name", f"http://{address}:8080/by-address", "http://localhost:8080/by-loopback"):
            status, said = self.call(shop, url, pod=name)
            self.assertEqual((status, said.get("instance")), (200, "cart"), f"{url}: {said}")

    def test_ku_12_dns_and_the_api_server_are_reached(self):
        shop = self.namespace("elsewhere")
        apply(shop, client("client"))
        self.ready(shop, pods=["client"])
        address = get("default", "services", "kubernetes")["spec"]["clusterIP"]
        name = "kubernetes.default.svc.cluster.local"
        self.assertIn(address, self.execute(shop, "/bin/busybox", "nslookup", name).stdout)
        # The same question over TCP, which is redirected: RFC 1035, section 4.2.2.
        question = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0)
        question += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
        question += struct.pack(">HH", 1, 1)
        octal = "".join(f"\\0{byte:03o}" for byte in struct.pack(">H", len(question)) + question)
        script = f"server=$(busybox awk '/^nameserver/ {{ print $2 }}' /etc/resolv.conf); " \
                 f"(printf '%b' '{octal}'; busybox sleep 1) | busybox nc -w 5 $server 53 | busybox hexdump -v -e '/1 \"%02x\"'"
        answer = self.execute(shop, "/bin/busybox", "sh", "-c", script).stdout
        self.assertIn(bytes(int(part) for part in address.split(".")).hex(), answer)
        status, said = self.call(shop, "https://kubernetes.default/version", "-k")
        self.assertIn(status, (200, 401), said)

    def test_headless_services_and_single_pods(self):
        shop = self.namespace("headless")
        manifest = server("cart", replicas=2).replace("spec:\n  selector", "spec:\n  clusterIP: None\n  selector", 1)
        apply(shop, manifest + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        # Not the Service's port: a headless Service has no address, and names lead to pods.
        status, said = self.call(shop, "http://cart:8080/headless")
        self.assertEqual((status, said.get("instance")), (200, "cart"), said)
        for pod in get(shop, "pods", labels="app=cart"):
            path = f"/direct-{pod['metadata']['name']}"
            status, said = self.call(shop, f"http://{pod['status']['podIP']}:8080{path}")
            self.assertEqual(status, 200, said)
            self.logged(shop, pod, path, "spiffe://outrigger.local/ns/headless/sa/default")

    def test_ku_09_what_is_excluded_passes_by_the_mesh(self):
        shop, outside = self.namespace("excluded"), self.namespace("excluded-from", mesh=False)
        ports = 'outrigger.dev/exclude-inbound-ports: "8080"'
        apply(shop, server("cart", annotations=ports) + "---" + server("safe") + "---" + STRICT)
        apply(outside, client("client"))
        self.ready(shop, "cart", "safe")
        self.ready(outside, pods=["client"])
        self.assertEqual(self.call(outside, "http://cart.excluded/")[0], 200)
        until(5, "the other is refused", lambda: self.call(outside, "http://safe.excluded/")[0] == 0)
        bad = client("bad", annotations='outrigger.dev/exclude-inbound-ports: "80-70"')
        done = apply(shop, bad, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("80-70", done.stderr)

    def test_ku_07_the_redirect_holds_in_every_pod(self):
        shop = self.namespace("redirect")
        apply(shop, server("cart") + "---" + client("client"))
        self.ready(shop, "cart", pods=["client"])
        for name in ("client", self.pod(shop, "cart")["metadata"]["name"]):
            # As the application's user, whose connections are redirected: the proxy's own are not.
            done = self.execute(shop, "/bin/outrigger-proxy", "check", "--proxy-uid", "1337", pod=name, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertRegex(done.stdout, r"ok +IPv4 traffic: a connection to \S+ was taken")
