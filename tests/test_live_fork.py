"""Copies of an instance that lives: what they have from it, that they part ways, and that nothing is left of them."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from harness import leaks, victims
from harness.node import PATIENCE, wait_until
from harness.package import EXAMPLES, folder, python

COUNTER = """
import os, threading
calls = 0
log = open("/tmp/calls", "w+")
wanted, done = threading.Event(), threading.Event()

def work():
    global calls
    while True:
        wanted.wait()
        wanted.clear()
        calls += 1
        done.set()

threading.Thread(target=work, daemon=True).start()

def handler(event, context):
    wanted.set()
    done.wait()
    done.clear()
    log.write("%d\\n" % calls)
    log.flush()
    return {"calls": calls, "log": open("/tmp/calls").read().split(), "offset": log.tell(), "pid": os.getpid(),
            "threads": threading.active_count(), "random": os.urandom(8).hex()}
"""

DATA = """
import threading, time
SIZE = 64 << 20
data = None
def handler(event, context):
    global data
    if event.get("fill"):
        data = bytearray(SIZE)
        for at in range(0, SIZE, 4096):
            data[at:at + 8] = at.to_bytes(8, "little")
    if "write" in event:
        data[event["write"]] = 255
    if "sleep" in event:
        time.sleep(event["sleep"])
    return all(data[at:at + 8] == at.to_bytes(8, "little") for at in range(0, SIZE, 4096))
"""


def start(function, count=1, **members):
    response = requests.post(
        f"{function.node.endpoint}/rouse/v1/functions/{function.name}/instances",
        json={"count": count, **members},
        timeout=PATIENCE,
    )
    assert response.status_code == 200, response.text
    return [one["id"] for one in response.json()["instances"]]


def try_fork(node, instance, count=1, **members):
    path = f"{node.endpoint}/rouse/v1/instances/{instance}/fork"
    return requests.post(path, json={"count": count, **members}, timeout=PATIENCE)


def fork(node, instance, count=1, **members):
    response = try_fork(node, instance, count, **members)
    assert response.status_code == 200, response.text
    made = response.json()
    assert made["from"] == instance and len(made["instances"]) == count, made
    assert all(one["from"] == instance for one in made["instances"])
    return [one["id"] for one in made["instances"]]


def ask(function, instance, event=None):
    reply = function.invoke(event or {}, x_rouse_instance=instance, x_amz_log_type="Tail")
    assert reply.status == 200 and reply.error is None, reply
    assert reply.boot == "warm", reply
    return reply.json


def listed(node):
    response = requests.get(f"{node.endpoint}/rouse/v1/instances", timeout=PATIENCE)
    return {one["id"]: one for one in response.json()["instances"]}


def end(node, *instances):
    for instance in instances:
        response = requests.delete(f"{node.endpoint}/rouse/v1/instances/{instance}", timeout=PATIENCE)
        assert response.status_code == 204, response.text


def refused(response, status, words):
    assert response.status_code == status, response.text
    assert words in response.json()["Message"], response.text


def pids(node):
    return victims.by_kind(node)["instance"]


def pss_kib(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@pytest.fixture
def counter(node):
    function = node.deploy(python(COUNTER)).ready()
    yield function
    function.delete()
    wait_until(lambda: not listed(node), "the instances of a function that is gone have ended")


def test_copies_go_on_from_where_the_original_is(node, counter):
    (original,) = start(counter)
    for calls in (1, 2, 3):
        assert ask(counter, original)["calls"] == calls
    first, second = fork(node, original, 2)
    # In any order, and each by itself.
    assert ask(counter, second)["calls"] == 4
    assert ask(counter, second)["calls"] == 5
    seen = ask(counter, first)
    assert (seen["calls"], seen["threads"]) == (4, 2)
    # The file is a copy with its contents, and the descriptor stands where it stood.
    assert (seen["log"], seen["offset"]) == (["1", "2", "3", "4"], 8)
    assert ask(counter, original)["log"] == ["1", "2", "3", "4"]
    assert {one["kind"] for one in listed(node).values()} == {"held"}
    assert listed(node)[second]["answered"] == 2
    end(node, original, first, second)
    assert not listed(node)


def test_copies_of_copies(node, counter):
    (at,) = start(counter)
    generations = []
    # More than a snapshot can have parents.
    for calls in range(1, 13):
        assert ask(counter, at)["calls"] == calls
        generations.append(at)
        (at,) = fork(node, at)
    assert ask(counter, at)["log"] == [str(n) for n in range(1, 14)]
    # What lies between is not needed any more.
    end(node, *generations[1:])
    assert ask(counter, at)["calls"] == 14
    (last,) = fork(node, at)
    assert ask(counter, last)["calls"] == 15
    assert ask(counter, generations[0])["calls"] == 2


def test_requests_that_name_nobody_never_meet_them(node, counter):
    (original,) = start(counter)
    assert ask(counter, original)["calls"] == 1
    fork(node, original, 3)
    for _ in range(5):
        assert counter.call({})["calls"] == 1


@pytest.mark.parametrize("count", [10, 100])
def test_many(node, counter, count):
    (original,) = start(counter)
    ask(counter, original)
    copies = fork(node, original, count)
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda one: ask(counter, one), copies))
    assert [one["calls"] for one in seen] == [2] * count
    assert len({one["random"] for one in seen}) == count
    assert ask(counter, original)["calls"] == 2


def test_memory_is_shared_until_it_is_written(node):
    function = node.deploy(python(DATA), MemorySize=512).ready()
    (original,) = start(function)
    assert ask(function, original, {"fill": True})
    before = set(pids(node))
    copies = fork(node, original, 10)
    # Each reads all of it.
    assert all(ask(function, one) for one in copies)
    made = set(pids(node)) - before
    assert len(made) == 10
    # 64 MiB are there once for all copies; alone they would be 640.
    assert sum(map(pss_kib, made)) < 3 * (64 << 10), [pss_kib(pid) for pid in made]
    assert ask(function, copies[0], {"write": 0}) is False
    assert ask(function, copies[1]) and ask(function, original)
    function.delete()


def test_randomness_and_ids_differ(node):
    for language, runtime, handler in (("python", "python3", "app.handler"), ("node", "nodejs", "index.handler")):
        function = node.deploy(folder(EXAMPLES / f"canary-{language}"), runtime, handler).ready()
        (original,) = start(function)
        ask(function, original)
        copies = fork(node, original, 8)
        answers = [ask(function, one) for one in [*copies, original]]
        for name in answers[0]["unique"]:
            values = [str(answer["unique"][name]) for answer in answers]
            assert len(set(values)) == len(values), (name, values)
        function.delete()


def test_what_cannot_be_copied_is_named_and_goes_on(node):
    function = node.deploy(
        python(
            """
            import os, select, socket, subprocess
            calls, kept = 0, []
            def handler(event, context):
                global calls
                calls += 1
                if event.get("child"):
                    kept.append(subprocess.Popen(["sleep", "1000"]))
                if event.get("end"):
                    kept.pop().kill()
                return calls
            """
        )
    ).ready()
    (original,) = start(function)
    assert ask(function, original, {"child": True}) == 1
    refused(try_fork(node, original), 409, "child processes cannot be snapshotted")
    assert ask(function, original) == 2
    assert list(listed(node)) == [original]
    function.delete()


def test_names_that_are_wrong(node, counter):
    (original,) = start(counter)
    other = node.deploy(python("def handler(event, context): return 1")).ready()
    refused(try_fork(node, "i-0123456789abcdef"), 404, "Instance not found: i-0123456789abcdef")
    refused(try_fork(node, "nonsense"), 400, "16 hexadecimal digits")
    refused(try_fork(node, original, 0), 400, "from 1 to 1000")
    refused(try_fork(node, original, 1, unknown=1), 400, "unknown field")
    reply = other.invoke({}, x_rouse_instance=original)
    assert reply.status == 400 and b"is one of" in reply.body, reply
    reply = counter.invoke({}, boot="restore", x_rouse_instance=original)
    assert reply.status == 400, reply
    reply = counter.invoke({}, x_rouse_instance=original, x_amz_invocation_type="Event")
    assert reply.status == 400, reply
    end(node, original)
    refused(try_fork(node, original), 404, "It has ended")
    assert counter.invoke({}, x_rouse_instance=original).status == 404
    other.delete()


def test_one_that_answers_is_not_copied(node):
    function = node.deploy(python(DATA), MemorySize=512).ready()
    (original,) = start(function)
    ask(function, original, {"fill": True})
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, function, original, {"sleep": 3})
        wait_until(lambda: listed(node)[original]["state"] == "answering", "the request runs")
        refused(try_fork(node, original), 409, "answering a request")
        reply = function.invoke({}, x_rouse_instance=original)
        assert reply.status == 409 and b"answering a request" in reply.body, reply
        assert slow.result() is True
    assert len(fork(node, original)) == 1
    function.delete()


def test_one_that_has_died_is_gone(node, counter):
    before = set(pids(node))
    (original,) = start(counter)
    (pid,) = wait_until(lambda: set(pids(node)) - before, "the instance is found")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not listed(node), "it is not listed any more")
    refused(try_fork(node, original), 404, "Instance not found")


def test_kept_instances_can_be_copied_too(node):
    function = node.deploy(python(COUNTER)).ready()
    requests.put(
        f"{node.endpoint}/rouse/v1/functions/{function.name}/serving", json={"isolation": "instance"}, timeout=PATIENCE
    ).raise_for_status()
    assert function.call({})["calls"] == 1
    (kept,) = listed(node).values()
    assert (kept["kind"], kept["state"]) == ("kept", "waiting")
    (copy,) = fork(node, kept["id"])
    assert ask(function, copy)["calls"] == 2
    # The original is where it was, for any request.
    assert function.call({}, "warm")["calls"] == 2
    assert ask(function, kept["id"])["calls"] == 3
    end(node, kept["id"])
    assert list(listed(node)) == [copy]
    function.delete()


def test_one_whose_pages_come_when_they_are_touched(own_node):
    node = own_node()
    function = node.deploy(python(COUNTER)).ready()
    requests.put(
        f"{node.endpoint}/rouse/v1/functions/{function.name}/serving", json={"isolation": "instance"}, timeout=PATIENCE
    ).raise_for_status()
    # Afterwards nothing of the snapshot is in memory, and the pager watches whoever is restored.
    node.stop()
    node.start()
    reply = function.invoke({})
    assert (reply.boot, reply.json["calls"]) == ("restore", 1), reply
    (kept,) = listed(node)
    assert [ask(function, one)["calls"] for one in fork(node, kept, 3)] == [2, 2, 2]
    assert ask(function, kept)["calls"] == 2


def test_limits(own_node):
    node = own_node(held_max=3)
    function = node.deploy(python(COUNTER)).ready()
    (original,) = start(function)
    refused(try_fork(node, original, 3), 429, "held_max is 3")
    fork(node, original, 2)
    refused(try_fork(node, original), 429, "held_max is 3")
    end(node, *(one for one in listed(node) if one != original))
    requests.put(
        f"{node.endpoint}/rouse/v1/functions/{function.name}/serving", json={"max_instances": 2}, timeout=PATIENCE
    ).raise_for_status()
    refused(try_fork(node, original, 2), 429, "max_instances is 2")
    assert len(fork(node, original)) == 1


def test_memory_is_admitted(own_node):
    node = own_node(admission_memory_bytes=64 << 20)
    function = node.deploy(python(COUNTER)).ready()
    (original,) = start(function)
    refused(try_fork(node, original, 100), 429, "are expected to take")
    assert ask(function, original)["calls"] == 1


def test_they_end_when_their_time_is_over(node, counter):
    (original,) = start(counter)
    fork(node, original, 2, keep_alive_s=1)
    wait_until(lambda: list(listed(node)) == [original], "the copies have ended")
    assert ask(counter, original)["calls"] == 1


def test_the_pager_may_die(node, counter):
    (original,) = start(counter)
    ask(counter, original)
    pager = victims.pager(node)
    if pager is not None:
        os.kill(pager, signal.SIGKILL)
    copies = fork(node, original, 3)
    assert [ask(counter, one)["calls"] for one in copies] == [2, 2, 2]


def test_nothing_is_left(own_node):
    node = own_node(ready_sandboxes=2, most_ready_sandboxes=2)
    function = node.deploy(python(COUNTER)).ready()
    before = None
    for _ in range(4):
        (original,) = start(function)
        ask(function, original)
        copies = fork(node, original, 5)
        for one in copies:
            ask(function, one)
        end(node, original, *copies)
        wait_until(lambda: not pids(node), "all instances have ended")
        found = leaks.descriptors([node.process.pid])
        if before is None:
            before = found
    # What the first round has left is made ahead; no later one adds to it. Sockets of clients may still be closing.
    grown = {name: count - before[name] for name, count in found.items() if count - before[name] > 2}
    assert not grown, grown


def test_a_killed_node_takes_them_along(own_node):
    node = own_node()
    function = node.deploy(python(COUNTER)).ready()
    (original,) = start(function)
    fork(node, original, 5)
    node.kill()
    wait_until(lambda: not leaks.processes(node), lambda: f"nothing runs: {leaks.processes(node)}")
    node.start()
    assert listed(node) == {}
    refused(try_fork(node, original), 404, "Instance not found")


def test_the_command(node, counter):
    original = node.cli("start", counter.name).stdout.strip()
    node.cli("invoke", counter.name, "--instance", original)
    copies = node.cli("fork", original, "-n", 2).stdout.split()
    assert len(copies) == 2
    answer = json.loads(node.cli("invoke", counter.name, "--instance", copies[1], "--quiet").stdout)
    assert answer["calls"] == 2
    shown = node.cli("ps").stdout
    assert all(one in shown for one in [original, *copies])
    node.cli("end", original, *copies)
    assert "no instances" in node.cli("ps").stdout
    failed = node.cli("fork", original, check=False)
    assert failed.returncode != 0 and "It has ended" in failed.stderr, failed
