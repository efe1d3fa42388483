"""The mesh in a real Kubernetes, seen from applications and from people who steer it.

    python3 tests/kubernetes/e2e [WORD...]

Runs against the cluster of KUBECONFIG, in which the mesh is installed and the images
localhost/testapp:test, localhost/outrigger-proxy:test and localhost/jaeger:test are there. Words
choose tests by their names. Some tests run beside each other: most of a test is waiting for pods.
Namespaces that a test makes are removed at its end.
"""

import concurrent.futures
import sys
import time
import unittest

import lifecycle
import mesh
import policies
import security
import traces
import traffic

# A pod that starts keeps a whole core busy.
AT_ONCE = 2


def one(test):
    """Runs a test, and says what came of it when it has ended."""
    result = unittest.TestResult()
    began = time.monotonic()
    test.run(result)
    name = test.id().split(".")[-1].removeprefix("test_")
    good = result.wasSuccessful()
    lines = [f"{'ok    ' if good else 'FAILED'} {name}  [{time.monotonic() - began:.0f} s]"]
    lines += [f"       {line}" for note in test.notes for line in note.splitlines()]
    lines += [text for _, text in result.failures + result.errors]
    print("\n".join(lines), flush=True)
    return good


def main(words):
    loader = unittest.TestLoader()
    suites = [loader.loadTestsFromModule(module) for module in (traffic, policies, security, traces, lifecycle)]
    tests = [test for suite in suites for group in suite for test in group]
    chosen = [test for test in tests if not words or any(word in test.id() for word in words)]
    if not chosen:
        sys.exit(f"no test has {' or '.join(words)} in its name: {' '.join(test.id() for test in tests)}")
    mesh.API = mesh.Api()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        good = list(pool.map(one, [test for test in chosen if not test.alone]))
    good += [one(test) for test in chosen if test.alone]
    mesh.API.end()
    print(f"{sum(good)} of {len(good)} tests passed")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
