"""There is no memory for a page that somebody waits for."""

import pytest

from harness import victims
from harness.cgroup import LimitedMemory
from harness.metrics import Scrape
from harness.tiers import MIB, call_concurrently, deploy

pytestmark = pytest.mark.skipif(not LimitedMemory.is_possible(), reason="no control group can limit memory here")

FUNCTIONS = 3
# Enough for any two of them.
LIMIT = 160 * MIB


@pytest.fixture
def limited():
    made = []

    def make(pid, kills):
        made.append(LimitedMemory(LIMIT, kills))
        made[-1].add(pid)
        return made[-1]

    yield make
    for group in made:
        group.close()


def start(own_node):
    """A node with functions of 64 MiB each, none of which is in memory."""
    # It has memory for all of them, as far as it knows.
    node = own_node(memory_dram_bytes=1024 * MIB, memory_compressed_bytes=0, restore_timeout_s=60)
    functions = [deploy(node, number) for number in range(FUNCTIONS)]
    assert {function.snapshot()["state"] for function in functions} == {"ready"}
    node.stop()
    node.start()
    return node, functions


def call_all(functions):
    for _ in range(2):
        for number, function in enumerate(functions):
            assert function.call({"all": True}, "restore")[0] == number


def test_others_make_room(limited, own_node):
    """The kernel has none for the pager, which says so: pages of others go, and nobody notices."""
    node, functions = start(own_node)
    pager = victims.pager(node)
    limited(pager, kills=False)
    call_all(functions)
    assert Scrape(node.endpoint).value("rouse_pager_shortages_total") > 0
    assert "the pager is short of memory" in node.log()
    assert victims.pager(node) == pager
    assert {function.snapshot()["state"] for function in functions} == {"ready"}


def test_the_kernel_ends_the_pager(limited, own_node):
    """Where it may not ask to be spared, another one goes on with what it has left: nobody hangs, nobody reads a wrong byte."""
    node, functions = start(own_node)
    pager = victims.pager(node)
    group = limited(pager, kills=True)
    call_concurrently(functions, 4, whole=True)
    assert group.killed() == 1
    assert victims.pager(node) not in (pager, None)
    call_all(functions)
    assert {function.snapshot()["state"] for function in functions} == {"ready"}
