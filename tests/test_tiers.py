"""Functions' memory moves between tiers while they are called, and what they read stays right."""

import os
import random
import signal
import threading
import time

import pytest
import requests

from harness import victims
from harness.node import PATIENCE, wait_until
from harness.package import python

MIB = 1 << 20
PAGE = 4096

# 64 MiB of which every page is another one, and half can be made smaller.
DATA = python(
    """
    import hashlib
    import random
    import os

    SEED = int(os.environ["SEED"])
    PAGES = 16384
    bits = random.Random(SEED)
    data = bytearray().join(b"%8d" % page + bits.randbytes(2040) + bytes(2048) for page in range(PAGES))
    expected = hashlib.blake2b(data).hexdigest()
    # The same every time, and made without looking at the data again.
    words = [int.from_bytes(data[page * 4096:page * 4096 + 8], "little") for page in range(PAGES)]

    def handler(event, context):
        event = event or {}
        if event.get("all"):
            assert hashlib.blake2b(data).hexdigest() == expected
        for page in event.get("pages", ()):
            assert int.from_bytes(data[page * 4096:page * 4096 + 8], "little") == words[page], page
        for page in event.get("write", ()):
            data[page * 4096] ^= 1
        return [SEED, expected]
    """
)


def tiers(node):
    response = requests.get(f"{node.endpoint}/rouse/v1/tiers", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()


def place(function):
    [found] = [place for place in tiers(function.node)["functions"] if place["name"].split(":")[0] == function.name]
    return found


def wait_for(function, residency):
    return wait_until(
        lambda: (lambda found: found if found["residency"] == residency else None)(place(function)),
        lambda: f"{function.name} is {residency}: {place(function)}",
    )


def deploy(node, number):
    function = node.deploy(DATA, name=f"data{number}", Environment={"Variables": {"SEED": str(number)}}, MemorySize=512, Timeout=60)
    function.snapshot()
    return function


def call_concurrently(functions, rounds, whole=False, seed=1):
    """Calls all functions at the same time, and checks each answer."""
    wrong = []

    def run(number, function):
        randomness = random.Random(seed * 1000 + number)
        expected = None
        for _ in range(rounds):
            pages = [randomness.randrange(16384) for _ in range(50)]
            try:
                answer = function.call({"all": whole, "pages": pages, "write": pages[:5]})
                expected = expected or answer
                assert answer == expected
            except BaseException as error:
                wrong.append((function.name, repr(error)))
                return

    threads = [threading.Thread(target=run, args=(number, function)) for number, function in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_budget_holds_and_answers_stay_right(own_node):
    """Three functions of 64 MiB each, and memory for one and a half."""
    node = own_node(memory_dram_bytes=120 * MIB, memory_compressed_bytes=0)
    functions = [deploy(node, number) for number in range(3)]
    call_concurrently(functions, 4, whole=True)
    wait_until(
        lambda: tiers(node)["tiers"]["dram"]["used"] <= 120 * MIB,
        lambda: f"the budget holds: {tiers(node)['tiers']}",
    )
    # Who is called again comes in, at the cost of the others.
    for _ in range(12):
        functions[2].call({"pages": [1, 2, 3]})
    wait_for(functions[2], "resident")
    wait_until(lambda: functions[2].invoke({}).boot == "fork", "it is forked again")
    call_concurrently(functions, 4, whole=True, seed=2)
    report = tiers(node)
    assert {place["name"] for place in report["functions"]} == {"data0", "data1", "data2"}
    for place_ in report["functions"]:
        assert place_["tier"] in ("dram", "disk") and place_["disk_bytes"] > 0, place_


def test_compressed_tier(own_node):
    """What has no place in memory stays there as it is on disk, and comes back right."""
    node = own_node(memory_dram_bytes=90 * MIB, memory_compressed_bytes=200 * MIB)
    first, second = (deploy(node, number) for number in range(2))
    for function in (first, second):
        function.call({"all": True})

    def compressed():
        return [found for found in map(place, (first, second)) if found["tier"] == "compressed"]

    found = wait_until(compressed, lambda: f"one of them is compressed: {tiers(node)}")
    found = found[0]
    assert 0 < found["compressed_bytes"] < 45 * MIB, found
    function = first if found["name"] == first.name else second

    def memory():
        return requests.get(f"{node.endpoint}/rouse/v1/functions/{function.name}/memory", timeout=PATIENCE).json()

    # The template and the last instance have to end first.
    wait_until(lambda: memory()["tiers"].get("compressed", 0) > 10000, lambda: f"its pages are gone: {memory()['tiers']}")
    memory = memory()
    assert sum(memory["tiers"].values()) == memory["pool_pages"]
    # The packs are not needed any more to bring it back.
    hidden = node.state / "packs.hidden"
    (node.state / "packs").rename(hidden)
    try:
        function.call({"all": True}, "restore")
    finally:
        hidden.rename(node.state / "packs")


@pytest.mark.skipif("ROUSE_TESTBED_FAR_NODE" not in os.environ, reason="needs far memory: cargo xtask testbed --numa")
def test_far_tier(own_node):
    """What has no place in near memory is on far memory as a whole, and is forked there."""
    far = os.environ["ROUSE_TESTBED_FAR_NODE"]
    node = own_node(memory_dram_bytes=100 * MIB, memory_far_node=far, memory_compressed_bytes=0, restore_timeout_s=60)
    functions = [deploy(node, number) for number in range(2)]
    for function in functions:
        function.call({})
    found = wait_until(
        lambda: [found for found in map(place, functions) if found["tier"] == "far"],
        lambda: f"one of them is on far memory: {tiers(node)}",
    )[0]
    # But for what its calls touch.
    assert found["far_bytes"] > 16 * MIB, found
    [function] = [function for function in functions if function.name == found["name"]]
    reply = function.invoke({"all": True})
    assert reply.error is None and reply.boot == "fork", reply
    call_concurrently(functions, 2, whole=True)
    assert tiers(node)["inputs"]["far"]["latency_ns"] > 0


def test_idle_functions_hold_nothing(own_node):
    node = own_node(memory_idle_s=1)
    function = deploy(node, 1)
    answer = function.call({"all": True})
    wait_for(function, "stored")
    assert function.describe()["snapshot"]["residency"] == "stored"
    wait_until(lambda: tiers(node)["tiers"]["dram"]["used"] == 0, lambda: f"nothing is in memory: {tiers(node)['tiers']}")
    assert function.call({"all": True}, "restore") == answer
    # Asked for, a fork is made, whatever it takes.
    wait_for(function, "stored")
    assert function.call({"all": True}, "fork") == answer


def test_restart_loads_what_is_called(own_node):
    node = own_node()
    functions = [deploy(node, number) for number in range(2)]
    answers = [function.call({}) for function in functions]
    node.stop()
    node.start()
    for function in functions:
        function.ready()
        assert place(function)["residency"] == "stored"
    reply = functions[0].invoke({"all": True})
    assert (reply.json, reply.boot) == (answers[0], "restore")
    assert place(functions[1])["residency"] == "stored"
    # The second call within a minute makes it worth its memory.
    assert functions[0].call({}) == answers[0]
    wait_for(functions[0], "resident")


@pytest.mark.parametrize("compressed", [0, 200 * MIB])
def test_pager_is_killed_while_pages_move(own_node, compressed):
    node = own_node(memory_dram_bytes=100 * MIB, memory_compressed_bytes=compressed)
    functions = [deploy(node, number) for number in range(3)]
    stop = threading.Event()
    killed = []

    def kill():
        while len(killed) < 8 and not stop.wait(0.3):
            pid = victims.pager(node)
            if pid and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        call_concurrently(functions, 8, whole=True, seed=3)
        # Until one was killed, however seldom the killer has its turn.
        wait_until(lambda: killed or call_concurrently(functions, 1, whole=True, seed=3), "a pager is found to be killed")
    finally:
        stop.set()
        killer.join()
    call_concurrently(functions, 2, whole=True, seed=4)
    for function in functions:
        assert "damaged" not in str(function.describe()["snapshot"].get("reason")), function.describe()


def test_damaged_pages_take_a_snapshot_out_of_use(own_node):
    """A page that is damaged on disk never reaches a function; the function is served all the same, and made anew."""
    node = own_node(memory_idle_s=1)
    function = deploy(node, 1)
    answer = function.call({})
    wait_for(function, "stored")
    before = function.describe()["snapshot"]["taken_at"]
    for path in (node.state / "packs").iterdir():
        with open(path, "r+b") as file:
            length = file.seek(0, os.SEEK_END)
            for offset in range(length // 3, length - 4096, 4096):
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 0x10]))
    reply = function.invoke({"all": True})
    # Refused, or started from nothing, but never wrong.
    assert (reply.status, reply.error) == (500, None) or reply.json == answer, reply
    wait_until(
        lambda: function.describe()["snapshot"].get("taken_at") not in (None, before),
        lambda: f"a new snapshot is there: {function.describe()['snapshot']}",
    )
    snapshot = function.snapshot()
    assert snapshot["state"] == "ready" and ("damaged" in snapshot["reason"] or "cannot be brought in" in snapshot["reason"]), snapshot
    assert function.call({"all": True}) == answer


def test_command(own_node):
    node = own_node()
    deploy(node, 1).call({})
    shown = node.cli("tiers")
    for word in ("dram", "compressed", "disk", "data1", "zstd"):
        assert word in shown.stdout, shown.stdout
