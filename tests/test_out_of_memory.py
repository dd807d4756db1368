"""Memory runs out in a function's control group while its pages come."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from harness import leaks
from harness.node import wait_until
from harness.package import python
from harness.tiers import MIB

# 72 MiB of which every page says which it is, in a function that may have 128 MiB.
HUNGRY = python(
    """
    import hashlib

    PAGES = 18432
    data = bytearray(PAGES * 4096)
    for page in range(PAGES):
        data[page * 4096:page * 4096 + 32] = hashlib.sha256(b"%d" % page).digest()

    def handler(event, context):
        hold = []
        for page in range(PAGES):
            place = slice(page * 4096, page * 4096 + 32)
            if data[place] != hashlib.sha256(b"%d" % page).digest():
                raise ValueError(f"page {page} is wrong")
            if event["hungry"]:
                # The page comes, is copied, and then there is room for so much less.
                data[page * 4096 + 100] = 1
                hold.append(b"x" * 8000 + b"%d" % page)
        return len(hold)
    """
)


def test_a_function_out_of_memory_while_its_pages_come(own_node):
    """It is ended and named; what it shares with others stays right, and nothing is left of it."""
    # Its pages never all stay: each of its instances waits for pages again and again.
    node = own_node(
        memory_dram_bytes=24 * MIB, memory_compressed_bytes=0, ready_sandboxes=2, most_ready_sandboxes=2, restore_timeout_s=60
    )
    function = node.deploy(HUNGRY, name="hungry", MemorySize=128, Timeout=60)
    function.snapshot()
    assert function.call({"hungry": False}, "restore") == 0
    # As many sandboxes as there may be are made ahead: what comes later is not mistaken for what was left.
    wait_until(lambda: leaks.held(node)["processes"].count("blank") == 2, "sandboxes are made ahead")
    before = leaks.held(node)
    for _ in range(2):
        error = function.failure({"hungry": True}, "restore")
        assert error["errorType"] == "Runtime.OutOfMemory", error
        assert function.call({"hungry": False}, "restore") == 0
    # Some are ended while pages of the same pool come for others.
    with ThreadPoolExecutor(3) as pool:
        hungry = [pool.submit(function.failure, {"hungry": True}, "restore") for _ in range(2)]
        others = [pool.submit(function.call, {"hungry": False}, "restore") for _ in range(2)]
        assert {one.result()["errorType"] for one in hungry} == {"Runtime.OutOfMemory"}
        assert [one.result() for one in others] == [0, 0]
    assert function.snapshot()["state"] == "ready", function.describe()

    def grown():
        held = leaks.held(node)
        more = {name: held[name] - before[name] for name in ("cgroups", "mounts", "namespaces") if held[name] > before[name]}
        return {**more, **(Counter(held["processes"]) - Counter(before["processes"]))}

    wait_until(lambda: not grown(), lambda: f"nothing is left of them: {grown()}")
