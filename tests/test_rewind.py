"""Instances that are put back to their snapshot between two requests."""

from pathlib import Path

import pytest

from harness.node import wait_until
from harness.package import EXAMPLES, folder, python

COUNTER = """
import os, signal, tempfile, threading, time
calls = 0
kept = []
def handler(event, context):
    global calls
    calls += 1
    seen = {
        "calls": calls,
        "files": sorted(os.listdir("/tmp")),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "cwd": os.getcwd(),
        "variable": os.environ.get("LEFT"),
        "handler": str(signal.getsignal(signal.SIGUSR1)),
        "pid": os.getpid(),
        "started": open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19],
    }
    os.environ["LEFT"] = "behind"
    kept.append(bytearray(b"x" * (4 << 20)))
    kept.append(open("/tmp/left", "w"))
    os.chdir("/tmp")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if event.get("thread"):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    if event.get("child"):
        import subprocess
        kept.append(subprocess.Popen(["/bin/sleep", "1000"]))
    return seen
"""


@pytest.fixture(scope="module")
def node_settings():
    return {"rewind": "true"}


def rewound(function, event):
    """A request that is answered by an instance that was rewound."""

    def reply():
        found = function.invoke(event)
        assert found.status == 200 and found.error is None, found
        assert found.json["calls"] == 1, found
        return found if found.boot == "rewind" else None

    return wait_until(reply, lambda: f"a request finds a rewound instance: {function.describe()}")


def test_nothing_of_a_request_is_seen_by_the_next(node):
    function = node.deploy(python(COUNTER)).ready()
    first = function.call({})
    seen = []
    for number in range(20):
        found = rewound(function, {"thread": number % 2 == 0}).json
        seen.append(found.pop("started"))
        first.pop("started", None)
        assert found == first, number
    assert len(set(seen)) < len(seen), "the same process has answered more than once"
    assert function.describe()["boots"]["rewind"] >= 20
    function.delete()


def test_what_cannot_be_undone_is_replaced(node):
    function = node.deploy(python(COUNTER)).ready()
    rewound(function, {})
    for _ in range(5):
        answer = function.call({"child": True})
        assert answer["calls"] == 1 and answer["files"] == [], answer
    function.delete()


@pytest.mark.parametrize("language", ["python", "node"])
def test_rewound_instances_are_distinct(node, language):
    if language == "node" and "pku" in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("Node's memory is under protection keys here, with which nothing is rewound (docs/rewind.md)")
    runtime, handler = {"python": ("python3", "app.handler"), "node": ("nodejs", "index.handler")}[language]
    function = node.deploy(folder(EXAMPLES / f"canary-{language}"), runtime, handler).ready()
    answers = []

    def enough():
        found = function.invoke({})
        assert found.status == 200 and found.error is None, found
        answers.append(found.json)
        return function.describe()["boots"]["rewind"] >= 8

    wait_until(enough, lambda: f"eight requests find rewound instances: {function.describe()}")
    for name in answers[0]["unique"]:
        values = [str(answer["unique"][name]) for answer in answers]
        assert len(set(values)) == len(answers), (name, values)
    function.delete()
