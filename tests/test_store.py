"""The snapshot store as an operator sees it: rouse gc and rouse fsck."""

import json
import shutil
import subprocess

from harness.node import ROUSE, wait_until

FUNCTION = """
DATA = [str(n) * 50 for n in range(20000)]
def handler(event, context): return len(DATA)
"""


def command(node, name):
    """Exit code and JSON of a command on a node's state directory."""
    done = subprocess.run([ROUSE, name, "--state-dir", node.state, "--json"], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def packs(node):
    return sorted((node.state / "packs").glob("*.pack"))


def test_gc_frees_what_nobody_needs(own_node):
    node = own_node()
    function = node.deploy({"app.py": FUNCTION}, name="kept").ready()
    node.deploy({"app.py": FUNCTION + "MORE = [str(n) * 60 for n in range(30000)]\n"}, name="lost").ready()
    # Snapshots may have been stored anew after their rehearsal. But for what that has left there is nothing to free while the
    # node runs, and nothing breaks.
    assert command(node, "gc")[0] == 0
    code, report = command(node, "gc")
    assert (code, report["freedBytes"]) == (0, 0), report
    node.stop()
    held = sum(path.stat().st_size for path in packs(node))
    shutil.rmtree(node.state / "snapshots" / "lost")
    code, report = command(node, "gc")
    assert code == 0 and report["freedBytes"] > 0, report
    assert sum(path.stat().st_size for path in packs(node)) <= held - report["freedBytes"]
    assert command(node, "gc")[1]["freedBytes"] == 0
    assert command(node, "fsck")[0] == 0
    node.start()
    assert function.ready().call({}, "restore") == 20000


def test_fsck_names_what_is_damaged(own_node):
    node = own_node()
    node.deploy({"app.py": FUNCTION}, name="whole").ready()
    # What is left if it was stored anew after its rehearsal.
    assert command(node, "gc")[0] == 0
    code, report = command(node, "fsck")
    assert code == 0 and report["affected"] == [], report
    node.stop()
    assert len(packs(node)) == 1, list((node.state / "snapshots").rglob("*"))
    [pack] = packs(node)
    with open(pack, "r+b") as file:
        # In the middle of the chunks.
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    code, report = command(node, "fsck")
    assert code != 0 and len(report["affected"]) == 1 and "whole" in report["affected"][0], report
    assert report["damages"], report


def test_functions_of_a_runtime_share_a_trained_dictionary(own_node):
    """It is trained in the background, on the second function; the next ones use it."""
    node = own_node()
    functions = []

    def dictionaries():
        return list((node.state / "dictionaries").glob("*.dict"))

    def another():
        source = FUNCTION + f"MINE = [str(n) * 40 for n in range({len(functions) * 500})]\n"
        functions.append(node.deploy({"app.py": source}).ready())
        return dictionaries()

    wait_until(another, "a function is stored with a dictionary")
    [dictionary] = dictionaries()
    assert command(node, "fsck")[0] == 0
    # Another node finds it in the page maps, and trains none.
    node.stop()
    assert command(node, "gc")[1]["removedDictionaries"] == 0
    node.start()
    for function in functions:
        assert function.ready().call({}, "restore") == 20000
    another()
    assert dictionaries() == [dictionary]
    # One that is damaged is named with those that need it, which are built again.
    node.stop()
    content = bytearray(dictionary.read_bytes())
    content[len(content) // 2] ^= 1
    dictionary.write_bytes(content)
    code, report = command(node, "fsck")
    assert code != 0 and report["affected"], report
    node.start()
    for function in functions:
        assert function.call({}) == 20000
        assert function.ready().call({}, "restore") == 20000
    # It goes with the last one that needs it.
    for function in functions:
        function.delete()
    node.stop()
    command(node, "gc")
    assert dictionaries() == []
