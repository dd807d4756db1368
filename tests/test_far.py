"""Functions' memory on far memory: a NUMA node, or a directory that may be taken away at any time."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from harness import victims
from harness.node import wait_until
from harness.tiers import MIB, call_concurrently, deploy, files_of, place, tiers

DAX = os.environ.get("ROUSE_TESTBED_DAX")


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


@pytest.fixture
def mounts(tmp_path):
    """Makes file systems in memory, as large as asked for."""
    made = []

    def mount(size):
        directory = tmp_path.parent / f"{tmp_path.name}-far{len(made)}"
        directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "far", directory], check=True)
        made.append(directory)
        return directory

    yield mount
    for directory in made:
        while os.path.ismount(directory):
            subprocess.run(["umount", "-l", directory], check=True)


def with_far_directory(own_node, directory, **settings):
    """A node, and two functions of which one has its pages in the directory."""
    settings = {"memory_dram_bytes": 100 * MIB, "memory_compressed_bytes": 0, "restore_timeout_s": 60, **settings}
    node = own_node(memory_far_dir=str(directory), **settings)
    functions = [deploy(node, number) for number in range(2)]
    # One is called more often, so that it is clear who has to go.
    for count, function in zip((1, 5), functions):
        for _ in range(count):
            function.call({})
    function = functions[0]
    wait_until(lambda: place(function)["tier"] == "far", lambda: f"one of them is on far memory: {tiers(node)}")
    return node, functions, function


def in_far_directory(own_node, directory):
    """A node, and a function that has no place but the directory."""
    settings = {"memory_dram_bytes": 40 * MIB, "memory_compressed_bytes": 0, "restore_timeout_s": 60}
    node = own_node(memory_far_dir=str(directory), **settings)
    function = deploy(node, 1)
    # The second call says that it is worth its memory.
    for _ in range(2):
        function.call({})
    wait_until(
        lambda: place(function)["tier"] == "far" and place(function)["dram_bytes"] < MIB,
        lambda: f"it is on far memory: {tiers(node)}",
    )
    return node, function


def maps_it(node, directory):
    """Does a template, or an instance, map a file of this directory?"""
    device = os.stat(directory).st_dev
    device = f" {os.major(device):02x}:{os.minor(device):02x} "
    kinds = victims.by_kind(node)
    maps = [Path(f"/proc/{pid}/maps") for pid in kinds["template"] + kinds["instance"]]
    return any(device in path.read_text() for path in maps)


def test_directory(own_node, mounts):
    """Pages on a DAX mount, or whatever the operator has given, are forked there, and come back."""
    directory = Path(DAX) if DAX else mounts("300m")
    node, functions, function = with_far_directory(own_node, directory)
    found = place(function)
    assert found["far_bytes"] == found["pages"] * 4096, found
    # Once those have ended that had mapped them before.
    wait_until(lambda: place(function)["dram_bytes"] < MIB, lambda: f"its pages leave near memory: {place(function)}")
    # It may have been copied there once more, when it was stored anew; what maps the first copy ends soon.
    wait_until(lambda: len(files_of(node, directory)) == 1, lambda: f"one file has them all: {files_of(node, directory)}")
    assert list(directory.glob(".rouse*")) == []
    reply = function.invoke({"all": True})
    assert reply.error is None and reply.boot == "fork", reply
    assert maps_it(node, directory)
    call_concurrently(functions, 2, whole=True)
    assert tiers(node)["inputs"]["far"]["latency_ns"] > 0
    # Who is called more often comes near, while the other one goes there.
    other = next(one for one in functions if one is not function)
    wait_until(
        lambda: function.call({}) and place(function)["tier"] == "dram" and place(other)["tier"] == "far",
        lambda: f"they change places: {tiers(node)}",
    )
    call_concurrently(functions, 2, whole=True, seed=2)
    for one in functions:
        one.delete()
    wait_until(lambda: files_of(node, directory) == [], lambda: f"nothing is left there: {files_of(node, directory)}")


@pytest.mark.skipif(not DAX, reason="needs a DAX mount: cargo xtask testbed --dax")
def test_dax_mount_keeps_no_copy(own_node):
    """On a DAX mount no page of the file is in the page cache."""
    def cached():
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Cached:"))

    node, _, function = with_far_directory(own_node, DAX)
    before = cached()
    for _ in range(3):
        function.call({"all": True}, "fork")
    # 64 MiB would be, if they went through it.
    assert cached() - before < 32 * 1024, (before, cached())


def test_directory_is_unmounted(own_node, mounts):
    directory = mounts("300m")
    node, functions, function = with_far_directory(own_node, directory)
    subprocess.run(["umount", "-l", directory], check=True)
    report = wait_until(
        lambda: (lambda report: report if "far_problem" in report else None)(tiers(node)),
        lambda: f"the loss is noticed: {tiers(node)}",
    )
    assert str(directory) in report["far_problem"] and report["tiers"]["far"]["budget"] == 0, report
    assert str(directory) in node.log() and str(directory) in node.cli("tiers").stdout
    wait_until(lambda: place(function)["tier"] != "far", lambda: f"it is elsewhere: {place(function)}")
    call_concurrently(functions, 3, whole=True)
    # What is found under the path now is not used.
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("boot", ["fork", "restore"])
def test_file_vanishes(own_node, mounts, boot):
    """The next call gets its pages from elsewhere; nobody sees another byte."""
    directory = mounts("300m")
    node, function = in_far_directory(own_node, directory)
    answer = function.call({"all": True}, boot)
    [file] = files_of(node, directory)
    os.truncate(file, 0)
    assert function.call({"all": True}) == answer
    problem = function.describe()["snapshot"]["far_problem"]
    assert str(directory) in problem, problem
    assert problem in node.cli("describe", function.name).stdout
    wait_until(lambda: tiers(node)["tiers"]["far"]["budget"] == 0, "the far tier is given up")
    call_concurrently([function], 3, whole=True)
    assert function.snapshot()["state"] == "ready"


def test_file_vanishes_under_a_running_instance(own_node, mounts):
    """It is ended when it touches what is gone, and its caller is told whose fault that was."""
    directory = Path(DAX) if DAX else mounts("300m")
    node, function = in_far_directory(own_node, directory)
    answer = function.call({})
    replies = []
    caller = threading.Thread(target=lambda: replies.append(function.invoke({"spin": True})))
    caller.start()
    wait_until(lambda: "spinning" in str(function.logs()), lambda: f"it runs: {function.logs()}")
    [file] = files_of(node, directory)
    os.truncate(file, 0)
    caller.join()
    [reply] = replies
    assert reply.status == 500 and str(directory) in str(reply), reply
    assert function.call({"all": True}) == answer
    assert str(directory) in function.describe()["snapshot"]["far_problem"]


def test_bus_errors_of_a_function_are_its_own(own_node, mounts):
    """A function that sends itself the signal takes no far memory out of use."""
    node, function = in_far_directory(own_node, mounts("300m"))
    reply = function.invoke({"signal": 7})
    assert (reply.status, reply.error) == (200, "Unhandled"), reply
    assert "far_problem" not in tiers(node) and "far_problem" not in function.describe()["snapshot"]
    assert place(function)["tier"] == "far"


def test_directory_is_too_small(own_node, mounts):
    """What has no room there is served from disk."""
    node = own_node(memory_far_dir=str(mounts("30m")), memory_dram_bytes=100 * MIB, memory_compressed_bytes=0)
    functions = [deploy(node, number) for number in range(2)]
    call_concurrently(functions, 4, whole=True)
    assert 0 < tiers(node)["tiers"]["far"]["budget"] <= 30 * MIB
    wait_until(lambda: "disk" in [place(one)["tier"] for one in functions], lambda: f"one has no place: {tiers(node)}")
    assert {place(one)["tier"] for one in functions} <= {"dram", "disk"}
    call_concurrently(functions, 2, whole=True, seed=2)


def test_directory_that_is_none(own_node, tmp_path):
    node = own_node(memory_far_dir=str(tmp_path / "nowhere"))
    assert "nowhere" in tiers(node)["far_problem"] and "nowhere" in node.log()
    function = deploy(node, 1)
    function.call({"all": True})
