"""The disk of a node is full while it works: what cannot be written is refused with the reason, and what exists is served."""

import os
import subprocess
from contextlib import suppress

import botocore.exceptions
import pytest

from harness import leaks
from harness.node import wait_until
from harness.package import python, zipped
from harness.tiers import MIB, wait_for
from test_store import command

# 8 MiB that do not become smaller.
SOURCE = """
import hashlib
import random

SEED = {seed}
data = bytearray(random.Random(SEED).randbytes(8 << 20))
expected = hashlib.blake2b(data).hexdigest()

def handler(event, context):
    digest = hashlib.blake2b(data).hexdigest()
    assert digest == expected
    for page in event.get("write", ()):
        data[page * 4096] ^= 1
    return [SEED, digest]
"""


def source(seed):
    return python(SOURCE.replace("{seed}", str(seed)))


@pytest.fixture
def small_disk(tmp_path):
    """The state directory is a file system of its own."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "small", state], check=True)
    yield state
    while os.path.ismount(state):
        subprocess.run(["umount", "-l", state], check=True)


class Ballast:
    """Takes every byte that is left."""

    def __init__(self, directory):
        self.path = directory / "ballast"

    def fill(self):
        with open(self.path, "ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def drop(self):
        self.path.unlink()


def test_full_disk(own_node, small_disk):
    node = own_node(memory_idle_s=1, memory_dram_bytes=24 * MIB, memory_compressed_bytes=4 * MIB)
    ballast = Ballast(small_disk)
    try:
        kept = [node.deploy(source(seed), name=f"kept{seed}").ready() for seed in range(2)]
        answers = [function.call({}) for function in kept]
        ballast.fill()

        # What exists is served, on each path, while pages go and come back and working sets cannot be written.
        for round_ in range(4):
            for function, answer in zip(kept, answers, strict=True):
                pages = list(range(round_ * 97, 2048, 7))
                for path in (None, "restore", "fork", "cold"):
                    ballast.fill()
                    assert function.call({"write": pages}, path) == answer, path
        wait_for(kept[0], "stored")
        assert kept[0].call({}, "restore") == answers[0]

        # What is new is refused, or has failed with a reason, or is served cold.
        for attempt in range(3):
            ballast.fill()
            name = f"new{attempt}"
            try:
                function, _ = node.create(source(10 + attempt), name=name)
            except botocore.exceptions.ClientError as error:
                assert "space" in str(error).lower(), error
                continue
            configuration = function.wait_active()
            if configuration["State"] == "Active":
                snapshot = function.snapshot()
                assert snapshot["state"] == "failed" and "space" in snapshot["reason"].lower(), snapshot
                assert function.call({})[0] == 10 + attempt
            else:
                assert "space" in configuration["StateReason"].lower(), configuration
        with suppress(botocore.exceptions.ClientError):
            ballast.fill()
            node.aws.update_function_code(FunctionName="kept1", ZipFile=zipped(source(77)))
        kept[1].wait_active()
        seed, _ = kept[1].call({})
        assert seed in (1, 77)
        assert kept[0].call({}) == answers[0]

        # Nothing is damaged, and the node still listens to its operator.
        code, report = command(node, "fsck")
        assert code == 0 and report["affected"] == [], report
        assert node.cli("tiers").stdout

        # With room again everything is as before, without a restart.
        ballast.drop()
        function = node.deploy(source(20), name="later").ready()
        assert function.call({}, "restore")[0] == 20
        assert function.call({}, "fork")[0] == 20
        node.aws.update_function_code(FunctionName="kept1", ZipFile=zipped(source(78)))
        kept[1].wait_active()
        assert kept[1].ready().call({})[0] == 78
        node.stop()
        command(node, "gc")
        code, report = command(node, "gc")
        assert (code, report["freedBytes"]) == (0, 0), report
        assert command(node, "fsck")[0] == 0
        assert leaks.temporary(node) == []
        node.start()
        assert kept[0].ready().call({}, "restore") == answers[0]
        assert function.ready().call({}, "restore")[0] == 20
        node.stop()
    finally:
        node.close()
        wait_until(lambda: not leaks.processes(node), lambda: f"all are gone: {leaks.processes(node)}")
        subprocess.run(["umount", "-l", small_disk], check=False)
