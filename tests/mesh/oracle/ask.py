"""Sends each request of the table, on a connection of its own, and prints what came back."""
import json
import socket
import sys


def ask(case):
    lines = case["request"]
    body = case.get("body", "")
    if body:
        lines = lines + [f"content-length: {len(body)}"]
    if not case.get("raw"):
        lines = lines + [f"x-case: {case['name']}", "connection: close"]
    with socket.create_connection(("127.0.0.1", case.get("port", 10000)), 10) as conn:
        conn.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1"))
        got = b""
        try:
            while piece := conn.recv(65536):
                got += piece
        except TimeoutError:
            return {"status": "none in time"}
        except ConnectionResetError:
            pass
    head, _, body = got.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = sorted([k.lower(), v.strip()] for k, _, v in (l.partition(":") for l in lines))
    chunked = ["transfer-encoding", "chunked"] in fields
    if chunked:
        whole = b""
        while body and (size := int(body.split(b"\r\n", 1)[0], 16)):
            body = body.split(b"\r\n", 1)[1]
            whole, body = whole + body[:size], body[size + 2 :]
        body = whole
    answer = {"status": first.split(" ")[1] if " " in first else "closed", "headers": fields}
    try:
        answer["seen"] = json.loads(body)
    except ValueError:
        answer["body"] = body.decode("latin-1")
    return answer


for case in json.load(open(sys.argv[1])):
    for n in range(case.get("times", 1)):
        print(json.dumps([f"{case['name']} #{n}" if n else case["name"], ask(case)]), flush=True)
