"""The node ends, is killed, or finds its files damaged: nothing that was acknowledged is lost."""

import json
import os
import random
import subprocess

import pytest

from harness import leaks
from harness.node import PATIENCE, ROUSE, Function, wait_until
from harness.package import python, zipped

SHARED = """
import uuid
MARK = str(uuid.uuid4())
def handler(event, context): return MARK
"""


def marks(function):
    """The value made at init: equal in all that comes from one snapshot."""
    return {function.call({}, path) for path in ("restore", "fork")}


def test_restart_finds_functions_and_snapshots(own_node):
    node = own_node()
    function = node.deploy({"app.py": SHARED}, name="kept", Environment={"Variables": {"ONE": "1"}}).ready()
    before = marks(function)
    assert len(before) == 1
    node.stop()
    wait_until(lambda: not leaks.leftovers(node), lambda: f"nothing is left: {leaks.leftovers(node)}")
    node.start()
    assert node.aws.get_function_configuration(FunctionName="kept")["Environment"] == {"Variables": {"ONE": "1"}}
    assert marks(function.ready()) == before, "the snapshot was taken again"


def test_kill_and_restart(own_node):
    node = own_node()
    function = node.deploy({"app.py": SHARED}, name="kept").ready()
    before = marks(function)
    for _ in range(3):
        node.kill()
        # Sandboxes die with their node.
        wait_until(lambda: not leaks.processes(node), lambda: f"all are gone: {leaks.processes(node)}")
        node.start()
        assert marks(function.ready()) == before


@pytest.mark.parametrize("seed", range(4))
def test_kill_at_any_moment(own_node, seed):
    """Functions are created, changed and deleted; the node is killed somewhere in between."""
    randomness = random.Random(seed)
    node = own_node()
    expected = {}
    for step in range(4):
        for number in range(randomness.randrange(1, 4)):
            name = f"f{randomness.randrange(4)}"
            answer = f"{step}.{number}"
            package = python(f"def handler(event, context): return {answer!r}\n")
            try:
                if name not in expected:
                    node.create(package, name=name)
                    expected[name] = answer
                elif randomness.random() < 0.3:
                    node.aws.delete_function(FunctionName=name)
                    del expected[name]
                else:
                    node.aws.update_function_code(FunctionName=name, ZipFile=zipped(package))
                    expected[name] = answer
            except node.aws.exceptions.ResourceConflictException:
                # It is still being built: nothing was acknowledged.
                pass
        # In the middle of the builds.
        node.kill()
        node.start()
        found = {one["FunctionName"] for one in node.aws.list_functions()["Functions"]}
        assert found == set(expected)
        for name, answer in expected.items():
            Function(node, name).wait_active()
            reply = json.loads(node.aws.invoke(FunctionName=name, Payload=b"{}")["Payload"].read())
            assert reply == answer, name
    for name in expected:
        Function(node, name).ready()
    # A working set may just be written: the invocations are observed when they have been answered.
    wait_until(lambda: not leaks.temporary(node), lambda: f"nothing is half written: {leaks.temporary(node)}")


def test_asynchronous_invocations_survive_a_kill(own_node):
    node = own_node()
    function = node.deploy(
        python(
            """
            def handler(event, context):
                print('handled', event, flush=True)
            """
        ),
        name="events",
    ).ready()
    for number in range(5):
        node.aws.invoke(FunctionName="events", InvocationType="Event", Payload=json.dumps(number).encode())
    node.kill()
    node.start()
    wait_until(
        lambda: all(any(f"handled {number}" in line for line in function.logs()) for number in range(5)),
        lambda: f"all events are handled: {function.logs()}",
    )


def snapshot_files(node):
    """What a snapshot needs: a working set is advice, and a damaged one is dropped (test_working_sets)."""
    paths = (node.state / "snapshots").rglob("*")
    return sorted(path for path in paths if path.is_file() and "working-set" not in path.name)


def test_damaged_snapshot_is_refused(own_node):
    """Any byte, of any file of a snapshot, flipped: the node says so, and takes a new snapshot."""
    node = own_node()
    function = node.deploy({"app.py": SHARED}, name="damaged").ready()
    randomness = random.Random(7)
    mark = marks(function)
    for _ in range(3):
        for index in range(len(snapshot_files(node))):
            node.stop()
            path = snapshot_files(node)[index]
            size = path.stat().st_size
            if size == 0:
                node.start()
                continue
            place = randomness.randrange(size)
            with open(path, "r+b") as file:
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ (1 << randomness.randrange(8))]))
            node.start()
            function.ready()
            now = marks(function)
            assert now != mark and len(now) == 1, (path, place)
            mark = now


def test_missing_snapshot_files(own_node):
    node = own_node()
    function = node.deploy({"app.py": SHARED}, name="missing").ready()
    node.stop()
    for path in snapshot_files(node):
        path.unlink()
    node.start()
    assert len(marks(function.ready())) == 1


def test_full_disk_while_a_snapshot_is_written(own_node, tmp_path):
    """The state directory is on a small file system that is full when the snapshot comes."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", state], check=True)
    try:
        node = own_node()
        with open(state / "filler", "wb") as filler:
            free = os.statvfs(state).f_bavail * 4096
            filler.write(bytes(free - (3 << 20)))
        # What cannot be compressed: the snapshot of a small function would fit.
        ballast = SHARED + "\nimport os\nBALLAST = os.urandom(8 << 20)\n"
        function, _ = node.create({"app.py": ballast}, name="full")
        function.wait_active()
        snapshot = function.snapshot()
        assert snapshot["state"] == "failed" and "No space left on device" in snapshot["reason"], snapshot
        # It is served all the same.
        assert function.call({}, "cold")
        wait_until(lambda: not leaks.temporary(node), lambda: f"nothing is half written: {leaks.temporary(node)}")
        (state / "filler").unlink()
        node.aws.update_function_configuration(FunctionName="full", Timeout=20)
        function.wait_active()
        assert len(marks(function.ready())) == 1
        node.stop()
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def test_changed_file_is_refused(own_node, tmp_path):
    """A snapshot refers to unmodified files by identity: a file that has changed is detected, never mixed in."""
    node = own_node()
    function = node.deploy({"app.py": SHARED}, name="changed").ready()
    before = marks(function)
    node.stop()
    # The code directory is the function's own; nobody else maps it.
    [code] = [path for path in (node.state / "code").rglob("app.py")]
    text = code.read_text()
    code.unlink()
    code.write_text(text)
    node.start()
    after = marks(function.ready())
    # Whether or not the file is part of the memory, what is served comes from one snapshot.
    assert len(after) == 1 and len(before) == 1


def test_two_nodes_do_not_share_a_state_directory(own_node):
    node = own_node()
    second = subprocess.run(
        [ROUSE, "serve", "--state-dir", node.state, "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert second.returncode == 1 and second.stderr, second


def test_bad_configuration_is_refused(tmp_path):
    for text, word in (("no_such_key = 1", "no_such_key"), ("max_builds = 'x'", "max_builds"), ("= [", "")):
        (tmp_path / "rouse.toml").write_text(text)
        result = subprocess.run(
            [ROUSE, "serve", "--config", tmp_path / "rouse.toml", "--state-dir", tmp_path / "s"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode != 0 and word in result.stderr and "rouse.toml" in result.stderr, result
