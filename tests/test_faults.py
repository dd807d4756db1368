"""Faults from outside at the worst moments: right answers, or refused and named."""

import pytest

from harness.node import wait_until
from test_tiers import deploy, wait_for


def flip(path, start, end):
    """Changes one bit in each page of a part of a file."""
    with open(path, "r+b") as file:
        for offset in range(start, end, 4096):
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("boot", ["restore", None])
def test_a_restore_of_damaged_pages_is_served_cold(own_node, boot):
    """What is damaged is found while the instance is made, or by the function. Nobody gets an error of the machinery."""
    node = own_node(memory_idle_s=1)
    function = deploy(node, 1)
    answer = function.call({"all": True}, "restore")
    # What a call writes is copied ahead of the next one.
    for _ in range(3):
        assert function.call({"write": list(range(64))}, "restore") == answer
    for part in (0.9, 0.02):
        wait_for(function, "stored")
        before = function.describe()["snapshot"]["taken_at"]
        for path in (node.state / "packs").iterdir():
            length = path.stat().st_size
            flip(path, max(4096, int(length * part)), length - 4096)
        reply = function.invoke({"all": True}, boot)
        if reply.status == 200:
            assert reply.error is None and reply.json == answer and reply.boot in ("cold", "restore", "fork"), reply
        else:
            # It ran already; or the damage is known, and this path was asked for.
            kind = reply.headers["x-amzn-errortype"]
            assert (reply.status, kind) in ((500, "ServiceException"), (409, "SnapStartNotReadyException")), reply
            assert any(word in str(reply.json) for word in ("damaged", "could not be used")), reply
        wait_until(
            lambda: function.describe()["snapshot"].get("taken_at") not in (None, before),
            lambda: f"a new snapshot is there: {function.describe()['snapshot']}",
        )
        assert function.snapshot()["state"] == "ready"
        assert function.call({"all": True}) == answer
