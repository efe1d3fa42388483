"""The application behind both proxies: says what reached it, and fails as the request asks.

x-fail: N        the first N tries of the case (x-case) are answered with x-fail-status (503)
x-delay: S       answers after S seconds
x-close: N       closes the connection at the first N tries of the case instead of answering
x-answer: text   is sent back as header "x-answer"
"""
import json
import socket
import threading
import time

tries = {}
lock = threading.Lock()


def serve(conn, name):
    file = conn.makefile("rb")
    while True:
        first = file.readline()
        if not first:
            return
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers = []
        while (line := file.readline().decode("latin-1").rstrip("\r\n")) != "":
            key, value = line.split(":", 1)
            headers.append([key.lower(), value.strip()])
        fields = dict(headers)
        body = b""
        if "content-length" in fields:
            body = file.read(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(file.readline(), 16):
                body += file.read(size)
                file.readline()
            file.readline()
        case = fields.get("x-case", "")
        with lock:
            tries[case] = tries.get(case, 0) + 1
            nth = tries[case]
        if nth <= int(fields.get("x-close", 0)):
            conn.close()
            return
        time.sleep(float(fields.get("x-delay", 0)))
        failing = nth <= int(fields.get("x-fail", 0))
        status = int(fields.get("x-fail-status", 503)) if failing else 200
        said = {"by": name, "method": method, "target": target, "headers": headers}
        said |= {"body": body.decode("latin-1"), "try": nth}
        said = json.dumps(said).encode()
        head = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(said)}"]
        head += ["x-from: application", "x-dropped: by the proxy"]
        if "x-answer" in fields:
            head.append(f"x-answer: {fields['x-answer']}")
        out = "\r\n".join(head).encode() + b"\r\n\r\n"
        conn.sendall(out if method == "HEAD" else out + said)


def guarded(conn, name):
    try:
        serve(conn, name)
    except OSError:
        pass
    finally:
        conn.close()


def accept(port, name):
    listen = socket.create_server(("127.0.0.1", port))
    while True:
        conn = listen.accept()[0]
        threading.Thread(target=guarded, args=(conn, name), daemon=True).start()


for port, name in [(9001, "one"), (9002, "two")]:
    threading.Thread(target=accept, args=(port, name)).start()
print("ready", flush=True)
