"""What a function holds when it is stopped works on every boot path: from nothing, from the snapshot, and as a clone.

Each file below `functions/` is one function. Its handler looks at everything it made at init and answers "ok".
"""

import time

import pytest

from harness.node import PATHS
from harness.package import FUNCTIONS

KINDS = [
    "threads",
    "system_calls",
    "busy_thread",
    "deep_stacks",
    "pipes",
    "event_descriptors",
    "sockets",
    "shared_memory",
    "mappings",
    "files",
    "deleted_file",
    "high_descriptors",
    "process",
    "timers",
    "subprocesses",
    "event_loop",
]


@pytest.fixture(scope="module")
def deployed(node):
    """Functions by kind, each deployed once."""
    functions = {}

    def get(kind):
        if kind not in functions:
            functions[kind] = node.deploy({"app.py": (FUNCTIONS / f"{kind}.py").read_text()})
        return functions[kind]

    return get


def snapshotted(function, path):
    """Waits for the snapshot, which must be fit for a boot path."""
    snapshot = function.snapshot()
    if path != "cold":
        assert snapshot["state"] == "ready", snapshot
    if path == "fork":
        assert snapshot.get("fork_problem") is None, snapshot
    return function


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_state_survives(deployed, kind, path):
    function = snapshotted(deployed(kind), path)
    event = "fresh" if path == "cold" else "restored"
    # Twice from the snapshot: what one instance does must not reach the next.
    for _ in range(1 if path == "cold" else 2):
        assert function.call(event, path) == "ok"


@pytest.mark.parametrize("path", PATHS)
def test_clocks_go_on(deployed, path):
    function = snapshotted(deployed("clocks"), path)
    before = time.time()
    seen = function.call(None, path)
    assert before <= seen <= time.time()
