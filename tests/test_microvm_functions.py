"""Functions with `sandbox = "microvm"`: where there is KVM on hardware they answer from a machine, elsewhere they are refused."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import requests

from harness import victims
from harness.node import PATIENCE, Function, wait_until
from harness.tiers import files_of, place, tiers

HELLO = Path(__file__).parent.parent / "examples/hello-python"
# A directory with a prepared kernel and an image of a root, where machines can be had.
MACHINE = os.environ.get("ROUSE_TEST_MACHINE")
# What takes ten minutes more in the test bed is tested when it is asked for.
LONG = "ROUSE_TEST_LONG" in os.environ

TALKER = """
import os, socket, sys

# It is not the one that the runtime waits on, though its port is the lowest.
second = socket.create_connection(("127.0.0.1", 9001), source_address=("127.0.0.1", 2000))

def play_the_agent():
    host = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        host.bind((socket.VMADDR_CID_ANY, 600))
    except PermissionError as error:
        refused = type(error).__name__
    host.settimeout(600)
    try:
        host.connect((socket.VMADDR_CID_HOST, 1024))
        host.sendall(b'"paused"\\n')
        heard = host.recv(100)
    except ConnectionError:
        heard = b""
    return [refused, heard.decode()]

played = play_the_agent()

def handler(event, context):
    print("hello from the machine")
    print("and from its standard error", file=sys.stderr)
    if event.get("exit"):
        os._exit(3)
    second.sendall(b"GET /ping HTTP/1.1\\r\\nhost: api\\r\\n\\r\\n")
    answer = second.recv(1000).decode().split()
    return {
        "pid1": open("/proc/1/comm").read().strip(),
        "uid": os.getuid(),
        "played": [played, play_the_agent()],
        "second": [answer[1], answer[-1]],
    }
"""


def vmms(node, waiting=False):
    """The VMMs of a node: (warden, VMM). Only those that have a machine, unless the `waiting` ones are asked for, too."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if parent == node.process.pid and words[1:2] == [b"vmm"]:
                [vmm] = (entry / f"task/{entry.name}/children").read_text().split()
                threads = {(thread / "comm").read_text().strip() for thread in Path(f"/proc/{vmm}/task").iterdir()}
                if waiting or "vcpu0" in threads:
                    found.append((int(entry.name), int(vmm)))
    return found


def is_there(pid):
    return Path(f"/proc/{pid}").exists()


def test_where_there_are_none_it_is_refused(own_node):
    node = own_node()
    function = node.deploy({"app.py": "def handler(event, context):\n    return 1\n"}, name="plain").ready()
    for arguments in (["deploy", HELLO, "--name", "hello"], ["configure", "plain"]):
        refused = node.cli(*arguments, "--sandbox", "microvm", check=False)
        assert refused.returncode != 0
        assert "cannot have the sandbox microvm: " in refused.stderr
        assert "use `process` sandboxes" in refused.stderr
    assert node.cli("describe", "hello", check=False).returncode != 0, "nothing was deployed"
    assert function.describe()["serving"]["effective"]["sandbox"] == "process"
    assert function.invoke({}).boot in ("fork", "restore")
    wrong = node.cli("configure", "plain", "--sandbox", "vm", check=False)
    assert "must be process or microvm" in wrong.stderr


needs_machines = pytest.mark.skipif(not MACHINE, reason="needs KVM on hardware, and ROUSE_TEST_MACHINE")


def node_with_machines(own_node, **settings):
    limits = ("init_timeout_s", "snapshot_init_timeout_s", "restore_timeout_s")
    settings |= dict.fromkeys(limits, PATIENCE)
    return own_node(microvm_kernel=f"{MACHINE}/kernel", microvm_root=f"{MACHINE}/root", **settings)


def has_snapshot(function, node):
    snapshot = function.snapshot()
    assert snapshot["state"] == "ready", f"{snapshot}\n{node.log()[-6000:]}"
    return snapshot


CLONE = """
import os, time, uuid

CALLS = [0]

def handler(event, context):
    CALLS[0] += 1
    return {
        "calls": CALLS[0],
        "kernel": os.getrandom(16).hex(),
        "user": uuid.uuid4().hex,
        "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
        "time": time.time(),
    }
"""


def live_fork(node, function):
    """Copies of a machine that lives, and copies of one of these. Each goes on from where the original was, and is itself."""
    path = f"{node.endpoint}/rouse/v1/functions/{function.name}/instances"
    [made] = requests.post(path, json={"count": 1}, timeout=PATIENCE).json()["instances"]
    original, seen = made["id"], []

    def call(instance, calls):
        reply = function.invoke({}, x_rouse_instance=instance)
        assert reply.error is None and reply.json["calls"] == calls, f"{reply}\n{node.log()[-6000:]}"
        seen.append(reply.json)
        return reply.json["boot_id"]

    def fork(instance, count):
        path = f"{node.endpoint}/rouse/v1/instances/{instance}/fork"
        response = requests.post(path, json={"count": count}, timeout=PATIENCE)
        assert response.status_code == 200, f"{response.text}\n{node.log()[-6000:]}"
        forked = response.json()
        # What it has not changed stays where it was.
        assert 0 < forked["copied_pages"] < function.snapshot()["saved_pages"], forked
        return [one["id"] for one in forked["instances"]]

    boot_id = call(original, 1)
    copies = fork(original, 2)
    boot_ids = [call(copy, 2) for copy in copies]
    [grandchild] = fork(copies[0], 1)
    boot_ids.append(call(grandchild, 3))
    # The original has not noticed, and neither has the copy that was copied.
    assert (call(original, 2), call(copies[0], 3)) == (boot_id, boot_ids[0])
    assert len({boot_id, *boot_ids}) == 4
    for name in ("kernel", "user"):
        assert len({answer[name] for answer in seen}) == len(seen), seen
    # They part ways: one that ends takes nothing from the others.
    node.cli("end", original, copies[0])
    assert [call(copies[1], 3), call(grandchild, 4)] == [boot_ids[1], boot_ids[2]]
    node.cli("end", copies[1], grandchild)


@needs_machines
def test_copies_of_a_machine(own_node, tmp_path):
    node = node_with_machines(own_node)
    package = tmp_path / "clone"
    package.mkdir()
    (package / "app.py").write_text(CLONE)
    node.cli("deploy", package, "--name", "clone", "--sandbox", "microvm", "--timeout", PATIENCE)
    clone = Function(node, "clone")
    assert has_snapshot(clone, node)["saved_pages"] > 0
    answers = []

    def call(boot=None):
        """Each answers the first event of its life, as itself, and does not think that it is still the time of the snapshot."""
        before = time.time()
        reply = clone.invoke({}, boot) if boot else clone.invoke({})
        assert reply.error is None, f"{reply}\n{node.log()[-6000:]}"
        assert before - 1 <= reply.json["time"] <= time.time() + 1, reply
        assert reply.json["calls"] == 1, reply
        answers.append(reply.json)
        return reply.boot

    def memory():
        return json.loads(node.cli("describe", "clone", "--memory", "--json").stdout)

    for _ in range(3):
        assert call() == "restore"
    wait_until(lambda: not vmms(node), lambda: f"copies end after their answers: {vmms(node)}")
    # What they touched is known by now, and lies in front; whose the pages are, the guest has said.
    wait_until(lambda: memory()["working_set"]["version"] > 0, lambda: f"{memory()['working_set']}\n{node.log()[-6000:]}")
    assert {one["class"] for one in memory()["classes"]} == {"written", "read", "cold", "file", "zero"}, memory()["classes"]
    assert {"[guest: kernel]", "[guest: heap]", "[guest: stack]"} <= {one["name"] for one in memory()["mappings"]}
    live_fork(node, clone)
    wait_until(lambda: not vmms(node), lambda: f"nothing is left of copies that were ended: {vmms(node)}")
    # The pager dies: another one brings the pages of the next machine.
    os.kill(victims.pager(node), signal.SIGKILL)
    assert call("restore") == "restore"

    # Copies that share their memory, and such that wait for requests.
    node.stop()
    node.settings["rewind"] = "true"
    node.start()
    for _ in range(16):
        assert call("fork") == "fork"
    assert call("parked") == "parked"
    # One that has answered is put back, and waits; it is as new, and as different from all others.
    wait_until(lambda: call() == "rewind", lambda: f"one was put back: {node.log()[-6000:]}")
    assert call() == "rewind"
    # Those that wait are killed, but for one that is just being put back: its processors have no threads then. Whether the node has
    # heard of it or not, the next request is answered.
    for _, vmm in wait_until(lambda: vmms(node), "they wait"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(vmm, signal.SIGKILL)
    call()
    for name in ("kernel", "user", "boot_id"):
        assert len({answer[name] for answer in answers}) == len(answers), answers

    # A damaged snapshot is not used: it is replaced, and its function answers meanwhile.
    node.stop()
    del node.settings["rewind"]
    assert node.cli("fsck", "--state-dir", node.state, check=False).returncode == 0
    [disks] = (node.state / "snapshots" / "clone").glob("*/guest.json")
    disks.write_text(disks.read_text().replace('"sha256":"', '"sha256":"0'))
    node.start()
    assert call() == "cold"
    assert "none of its disks" in has_snapshot(clone, node)["reason"]
    assert call() == "restore"
    clone.delete()
    wait_until(lambda: not (node.state / "snapshots" / "clone").exists(), "its snapshot goes with it")
    wait_until(lambda: not vmms(node), lambda: f"nothing is left of a function that is gone: {vmms(node)}")


OF_TEMPLATE = """
import csv, os, uuid
import helper

TEXT = open("data.txt").read()
TABLE = {number: str(number) for number in range(1000)}
DRAWN = [os.urandom(8).hex(), str(uuid.uuid4())]

def handler(event, context):
    return {
        "name": context.function_name,
        "text": TEXT,
        "helper": helper.NAME,
        "found": [os.getcwd(), sorted(os.listdir("/var/task")), open("/var/task/data.txt").read(), open("data.txt").read()],
        "row": TABLE[event["n"]],
        "drawn": DRAWN,
        "unique": [os.urandom(8).hex(), str(uuid.uuid4()), open("/proc/sys/kernel/random/boot_id").read().strip()],
        "environment": [os.environ["AWS_LAMBDA_FUNCTION_NAME"], "ROUSE_TEMPLATE" in os.environ],
    }
"""
# Of the memory of a machine: the function's, and the guest's own.
MACHINE_BYTES = (128 + 128) << 20


def templates(node):
    return sorted(path.name for path in (node.state / "snapshots/@templates").glob("*"))


def deploy_of_template(node, folder, name, **files):
    """A function whose files say which one it is."""
    package = folder / name
    package.mkdir()
    files = {"app.py": OF_TEMPLATE, "data.txt": f"text of {name}", "helper.py": f"NAME = {name!r}\n"} | files
    for file, text in files.items():
        (package / file).write_text(text)
    node.cli("deploy", package, "--name", name, "--sandbox", "microvm", "--memory", "128", "--timeout", PATIENCE)
    function = Function(node, name)
    has_snapshot(function, node)
    return function, sorted(files)


@needs_machines
def test_machines_are_made_of_one_template(own_node, tmp_path):
    node = node_with_machines(own_node, language_templates="true")
    functions = [deploy_of_template(node, tmp_path, name) for name in ("first", "second")]
    if LONG:
        # What is in its package would change what the template has loaded: the client starts over, in the guest.
        functions.append(deploy_of_template(node, tmp_path, "third", **{"queue.py": "MINE = True\n"}))
    [template] = templates(node)
    assert template.startswith("python3-microvm-"), template
    drawn = []

    def call(function, files, boot=None):
        reply = function.invoke({"n": 7}, boot)
        assert reply.error is None and reply.status == 200, f"{reply}\n{node.log()[-6000:]}"
        answer, name = reply.json, function.name
        assert (answer["name"], answer["text"], answer["helper"], answer["row"]) == (name, f"text of {name}", name, "7"), answer
        assert answer["found"] == ["/var/task", files, f"text of {name}", f"text of {name}"], answer
        assert answer["environment"] == [name, False], answer
        drawn.append(answer["unique"])
        return reply.boot, answer["drawn"]

    def of_template(function):
        parent = function.parent()
        assert parent and parent["template"] == template and parent["pages"] > 0, f"{function.describe()}\n{node.log()[-6000:]}"
        shown = node.cli("describe", function.name).stdout
        assert template in shown, shown

    inits = []
    for function, files in functions:
        of_template(function)
        snapshot = function.describe()["snapshot"]
        share = snapshot["bytes"] / MACHINE_BYTES
        print(function.name, snapshot["saved_pages"], snapshot["bytes"], f"{share:.2%}", function.parent()["pages"])
        assert share < 0.03, snapshot
        boot, init = call(function, files)
        assert boot == "restore"
        inits.append(init)
        assert call(function, files, "fork") == ("fork", init)
    assert len({str(init) for init in inits}) == len(inits), inits
    memory = json.loads(node.cli("describe", "first", "--memory", "--json").stdout)
    assert {"parent", "file", "zero"} <= {one["class"] for one in memory["classes"]}, memory["classes"]

    # The pager dies: another one brings pages of both pools.
    os.kill(victims.pager(node), signal.SIGKILL)
    assert call(*functions[0], "restore") == ("restore", inits[0])

    # All of it survives the node.
    taken = [function.describe()["snapshot"]["taken_at"] for function, _ in functions]
    node.stop()
    node.settings["rewind"] = "true"
    node.start()
    for (function, files), init in zip(functions, inits, strict=True):
        assert call(function, files) == ("restore", init)
        of_template(function)
    assert call(*functions[1], "parked") == ("parked", inits[1])
    # A child that has answered is put back, to what is its own and its template's.
    wait_until(lambda: call(*functions[1]) == ("rewind", inits[1]), lambda: f"one was put back: {node.log()[-6000:]}")
    assert [function.describe()["snapshot"]["taken_at"] for function, _ in functions] == taken
    assert templates(node) == [template]
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(column), drawn

    if LONG:
        # One that is damaged is made anew, and with it the functions.
        functions.pop()[0].delete()
        node.stop()
        del node.settings["rewind"]
        assert node.cli("fsck", "--state-dir", node.state, check=False).returncode == 0
        disks = node.state / "snapshots/@templates" / template / "guest.json"
        disks.write_text(disks.read_text().replace('"sha256":"', '"sha256":"0'))
        node.start()
        for number, (function, files) in enumerate(functions):
            assert "delta of a template" in has_snapshot(function, node)["reason"]
            boot, init = call(function, files, "restore")
            assert (boot, init != inits[number]) == ("restore", True)
            of_template(function)
        assert templates(node) == [template]

    # It goes with its functions.
    for function, _ in functions:
        function.delete()
    wait_until(lambda: not vmms(node), lambda: f"nothing is left of functions that are gone: {vmms(node)}")
    node.stop()
    node.start()
    assert templates(node) == []


@needs_machines
def test_node_in_a_machine(own_node):
    node = node_with_machines(own_node)
    node.cli("deploy", HELLO.parent / "hello-node", "--name", "hello", "--sandbox", "microvm", "--timeout", PATIENCE)
    hello = Function(node, "hello")
    assert has_snapshot(hello, node)["saved_pages"] > 0
    for path in ("restore", "fork", "parked", "cold"):
        reply = hello.invoke({"name": path}, path)
        assert (reply.boot, reply.json) == (path, {"message": f"Hello, {path}!"}), f"{reply}\n{node.log()[-6000:]}"
    hello.delete()
    wait_until(lambda: not vmms(node), lambda: f"nothing is left of a function that is gone: {vmms(node)}")


@needs_machines
def test_machines_on_far_memory(own_node, tmp_path):
    """What has no place in near memory is mapped from far memory; when that vanishes, machines are served from elsewhere."""
    directory = tmp_path / "far"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256M", "far", directory], check=True)
    try:
        settings = {"memory_dram_bytes": 4 << 20, "memory_compressed_bytes": 0, "memory_far_dir": str(directory)}
        node = node_with_machines(own_node, **settings)
        package = tmp_path / "clone"
        package.mkdir()
        (package / "app.py").write_text(CLONE)
        node.cli("deploy", package, "--name", "clone", "--sandbox", "microvm", "--timeout", PATIENCE)
        clone = Function(node, "clone")
        has_snapshot(clone, node)

        def call(boot=None):
            reply = clone.invoke({}, boot)
            assert reply.error is None and reply.json["calls"] == 1, f"{reply}\n{node.log()[-6000:]}"
            return reply.boot

        # Those that are watched have their pages near.
        for _ in range(5):
            call()
        wait_until(lambda: place(clone)["tier"] == "far", lambda: f"it is on far memory: {tiers(node)}")
        assert call("fork") == "fork"
        assert place(clone)["tier"] == "far"
        [file] = files_of(node, directory)
        os.truncate(file, 0)
        assert call() in ("restore", "fork", "cold")
        assert call() in ("restore", "fork")
        assert "far memory" in clone.describe()["snapshot"]["far_problem"]
        clone.delete()
        wait_until(lambda: not vmms(node), lambda: f"nothing is left of a function that is gone: {vmms(node)}")
        node.stop()
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@needs_machines
def test_a_function_answers_from_its_machine(own_node, tmp_path):
    # One that is kept stays, however slow the test bed is.
    node = node_with_machines(own_node, keep_alive_s=3600)
    node.cli("deploy", HELLO, "--name", "hello", "--sandbox", "microvm", "--timeout", PATIENCE)
    hello = Function(node, "hello")
    has_snapshot(hello, node)
    # Kept after its answer, so that it can be looked at.
    node.cli("configure", "hello", "--isolation", "instance")
    first = hello.invoke({"name": "Ada"})
    assert (first.boot, first.error) == ("restore", None), f"{first}\n{node.log()[-4000:]}"
    assert first.json == {"message": "Hello, Ada!"}
    again = hello.invoke({"name": "Grace"})
    assert (again.boot, again.json) == ("warm", {"message": "Hello, Grace!"}), again
    described = hello.describe()
    assert described["serving"]["effective"]["sandbox"] == "microvm"
    assert hello.invoke({"name": "Joan"}, "cold").json == {"message": "Hello, Joan!"}
    wait_until(lambda: len(vmms(node)) == 1, lambda: f"what was started for one call ends with it: {vmms(node)}")

    # The VMM is killed while its machine waits: that is seen and named, and the next request gets another machine.
    [(warden, vmm)] = vmms(node)
    os.kill(vmm, signal.SIGKILL)
    wait_until(lambda: hello.describe()["instances"]["idle"] == 0, "its end is seen")
    assert "the machine's VMM was killed" in node.log()
    wait_until(lambda: not is_there(warden) and not is_there(vmm), "nothing is left of it")
    assert hello.invoke({}).json == {"message": "Hello, world!"}

    # What it prints is logged; a function that ends takes its machine with it.
    package = tmp_path / "talker"
    package.mkdir()
    (package / "app.py").write_text(TALKER)
    node.cli("deploy", package, "--name", "talker", "--sandbox", "microvm", "--timeout", PATIENCE)
    talker = Function(node, "talker")
    has_snapshot(talker, node)
    node.cli("configure", "talker", "--isolation", "instance")
    # Nobody takes it for the agent, and the connections that it has opened itself go on, too.
    nothing = ["PermissionError", ""]
    expected = {"pid1": "init", "uid": 993, "played": [nothing, nothing], "second": ["200", "pong"]}
    assert talker.call({}) == expected
    wait_until(lambda: "hello from the machine" in talker.logs(), lambda: f"it is logged: {talker.logs()}")
    wait_until(lambda: "and from its standard error" in talker.logs(), lambda: f"it is logged: {talker.logs()}")
    error = talker.failure({"exit": True})
    assert error["errorType"] == "Runtime.ExitError" and "the function has ended" in error["errorMessage"], error

    # Another kind of sandbox: machines of the old one are not used any more.
    machines = vmms(node)
    assert len(machines) == 1, machines
    node.cli("configure", "hello", "--sandbox", "process")
    wait_until(lambda: not vmms(node), lambda: f"its machine is gone: {vmms(node)}")
    hello.ready()
    assert hello.invoke({}).boot in ("fork", "restore")

    # With the node all machines go, however it ends.
    assert talker.invoke({}).boot == "restore"
    assert len(vmms(node)) == 1, vmms(node)
    wait_until(lambda: len(vmms(node, waiting=True)) > 1, "VMMs are started ahead")
    pids = [pid for pair in vmms(node, waiting=True) for pid in pair]
    node.stop()
    wait_until(lambda: not any(map(is_there, pids)), "its machines ended with the node")
    node.start()
    assert talker.invoke({}).boot == "restore"
    wait_until(lambda: len(vmms(node, waiting=True)) > 1, "VMMs are started ahead")
    pids = [pid for pair in vmms(node, waiting=True) for pid in pair]
    node.kill()
    wait_until(lambda: not any(map(is_there, pids)), "its machines ended with the node")
