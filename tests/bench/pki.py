"""Certificates: one root, and P-256 leaves with SPIFFE IDs for client, server and a third."""

import os
import subprocess

from layout import OTHER, spiffe

NAMES = ("client", "server", OTHER)


def dns(name):
    """For proxies that cannot check a SPIFFE ID."""
    return f"{name}.bench"


def make(folder):
    """Makes what is not there yet. They are good for ten days: a bench is no place for old keys."""
    os.makedirs(folder, exist_ok=True)
    run = lambda *words: subprocess.run(
        ["openssl", *words], cwd=folder, check=True, capture_output=True)
    key = lambda to: run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
                         "-out", to)
    key("ca.key")
    run("req", "-x509", "-new", "-key", "ca.key", "-days", "10", "-subj", "/CN=bench",
        "-out", "ca.crt",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    for name in NAMES:
        key(f"{name}.key")
        run("req", "-new", "-key", f"{name}.key", "-subj", "/", "-out", f"{name}.csr")
        with open(f"{folder}/{name}.ext", "w") as out:
            out.write(f"subjectAltName=critical,URI:{spiffe(name)},DNS:{dns(name)}\n"
                      "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
                      "extendedKeyUsage=serverAuth,clientAuth\n")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "10", "-extfile", f"{name}.ext", "-out", f"{name}.crt")
        with open(f"{folder}/{name}.pem", "w") as both:
            for part in ("crt", "key"):
                with open(f"{folder}/{name}.{part}") as text:
                    both.write(text.read())
