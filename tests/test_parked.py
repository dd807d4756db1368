"""Instances that are made ahead of their requests."""

import contextlib
import os
import signal
import time

import pytest

from harness.node import wait_until
from harness.package import python, zipped

COUNTER = """
import threading, time
calls = 0
made = time.monotonic()
def handler(event, context):
    global calls
    calls += 1
    return {"calls": calls, "version": VERSION, "since_init": time.monotonic() - made}
"""


def package(version=1):
    return python(f"VERSION = {version}\n{COUNTER}")


@pytest.fixture(scope="module")
def node_settings():
    return {"parked_min": 2, "parked_max": 3}


def parked(function):
    return function.describe()["instances"]["parked"]


def wait_parked(function, least=2):
    """Calls the function until all its pages are in memory, and waits until so many instances are parked."""
    for _ in range(3):
        function.call({})
    return wait_until(lambda: parked(function) >= least, lambda: f"instances are parked: {function.describe()}")


def call_parked(function):
    """A request that nobody told how to boot. Now and then one is restored, so that what is prepared can be judged."""

    def reply():
        found = function.invoke({})
        assert found.status == 200 and found.error is None, found
        assert found.json["calls"] == 1, found
        return found if found.boot == "parked" else None

    return wait_until(reply, lambda: f"a request finds a parked instance: {function.describe()}")


def waiting(node):
    """Pids of parked instances: while no request runs, nothing else is a function in a pid namespace of its own."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cgroup") as groups, open(f"/proc/{name}/cmdline", "rb") as line:
                is_ours = f"/{node.cgroup}/" in groups.read() and b"python3" in line.read()
            with open(f"/proc/{name}/status") as status:
                ids = next(line for line in status if line.startswith("NSpid:")).split()[1:]
            if is_ours and len(ids) == 2 and ids[1] == "2":
                found.append(int(name))
        except OSError:
            continue
    return found


def test_a_request_finds_an_instance_and_another_takes_its_place(node):
    function = node.deploy(package()).ready()
    wait_parked(function)
    for _ in range(10):
        reply = call_parked(function)
        stages = [part.strip().split(";")[0] for part in reply.headers["server-timing"].split(",")]
        assert {"verify", "take", "run", "total"} <= set(stages), stages
        assert "map" not in stages, "what was done ahead is no stage of the request"
    wait_until(lambda: parked(function) >= 2, "the taken ones are replaced")
    assert parked(function) <= 3
    assert function.describe()["boots"]["parked"] >= 10
    function.delete()


def test_asking_for_one_makes_one(node):
    function = node.deploy(package()).ready()
    assert function.call({}, "parked")["calls"] == 1
    function.delete()


def test_a_dead_one_is_noticed_and_replaced(node):
    function = node.deploy(package()).ready()
    wait_parked(function)
    victims = wait_until(lambda: waiting(node), "the instances are found")
    for pid in victims:
        # That of the last request may end by itself at this moment.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # At once: what was killed is not handed out, whether the node has heard of it or not.
    for _ in range(5):
        assert function.call({})["calls"] == 1
    wait_until(lambda: parked(function) >= 2 and not set(victims) & set(waiting(node)), "the dead are replaced")
    call_parked(function)
    function.delete()
    wait_until(lambda: not waiting(node), "nothing waits for a function that is gone")


def test_they_go_with_the_code_that_they_run(node):
    function = node.deploy(package(1)).ready()
    wait_parked(function)
    assert call_parked(function).json["version"] == 1
    node.aws.update_function_code(FunctionName=function.name, ZipFile=zipped(package(2)))
    function.wait_active()
    assert function.call({})["version"] == 2
    function.ready()
    wait_parked(function)
    assert call_parked(function).json["version"] == 2
    function.delete()


def test_none_beyond_the_budget(own_node):
    node = own_node(parked_min=2, parked_max=2, memory_parked_bytes=0)
    function = node.deploy(package()).ready()
    for _ in range(4):
        assert function.call({})["calls"] == 1
    # Two looks at everything.
    time.sleep(1.5)
    assert parked(function) == 0
    assert function.describe()["boots"]["parked"] == 0
