"""Functions' memory moves between tiers while they are called, and what they read stays right."""

import os
import signal
import threading

import pytest
import requests

from harness import victims
from harness.node import PATIENCE, wait_until
from harness.package import python
from harness.tiers import MIB, call_concurrently, deploy, place, tiers, wait_for

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

    def memory(function):
        return requests.get(f"{node.endpoint}/rouse/v1/functions/{function.name}/memory", timeout=PATIENCE).json()

    def compressed():
        """Those of which most pages are compressed and nowhere else. Both may be in that tier, and one still have its pages: there is
        room for one. Template and last instance have to end before pages go."""
        in_tier = [one for one in (first, second) if place(one)["tier"] == "compressed"]
        return [one for one in in_tier if memory(one)["tiers"].get("compressed", 0) > 10000]

    [function, *_] = wait_until(compressed, lambda: f"one of them is compressed: {tiers(node)}")
    found = place(function)
    assert 0 < found["compressed_bytes"] < 45 * MIB, found
    report = memory(function)
    assert sum(report["tiers"].values()) == report["pool_pages"]
    # The packs are not needed any more to bring it back.
    hidden = node.state / "packs.hidden"
    (node.state / "packs").rename(hidden)
    try:
        function.call({"all": True}, "restore")
    finally:
        hidden.rename(node.state / "packs")


def test_huge_pages(own_node):
    """What is in memory as a whole lies in pages of 2 MiB, and is copied by 4 KiB all the same."""
    node = own_node(memory_huge_pages="true", memory_dram_bytes=120 * MIB, memory_compressed_bytes=0)
    functions = [deploy(node, number) for number in range(2)]
    functions[0].call({})
    functions[0].call({})
    wait_until(lambda: place(functions[0])["huge_bytes"] > 32 * MIB, lambda: f"it has large pages: {place(functions[0])}")
    for path in ("fork", "restore"):
        call = {"all": True, "pages": [1, 511, 512, 5000], "write": [0, 511, 512, 1023]}
        answer = functions[0].call(call, path)
        assert functions[0].call(call, path) == answer
    # They come and go with whose turn it is.
    call_concurrently(functions, 6, whole=True)


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


# 3,000 pages far from one another, each followed by what is nearly as far.
SPARSE = python(
    """
    import mmap

    PAGES = 3000
    STEP = 100 * mmap.PAGESIZE
    memory = mmap.mmap(-1, PAGES * STEP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(PAGES):
        memory[page * STEP:page * STEP + 8] = (page + 1).to_bytes(8, "little")

    def handler(event, context):
        for page in range(PAGES):
            begin = page * STEP
            assert int.from_bytes(memory[begin:begin + 8], "little") == page + 1, page
            assert not any(memory[begin + mmap.PAGESIZE:begin + mmap.PAGESIZE + 64]), page
        for page in (event or {}).get("write", ()):
            memory[page * STEP:page * STEP + 8] = bytes(8)
        with open("/proc/self/maps") as maps:
            return len(maps.readlines())
    """
)


def test_sparse_memory_takes_few_mappings(own_node):
    """However many pieces there are, instances have at most 1,024 runs mapped, of two mappings each."""
    node = own_node(memory_idle_s=1)
    function = node.deploy(SPARSE, MemorySize=512, Timeout=60)
    assert function.snapshot()["state"] == "ready"
    few = function.call({}, "cold") + 2 * 1024
    for path in ("restore", "fork", "restore"):
        # Each time other pages are written, which must not be seen the next time.
        for first in range(0, 40, 10):
            assert function.call({"write": list(range(first, 3000, 40))}, path) <= few, path
    # With pages that are absent, too.
    wait_for(function, "stored")
    assert function.call({}, "restore") <= few
