"""The pages that invocations touch are learnt, shown, stored, and learnt anew when they change."""

import json
import random
import struct
import xml.etree.ElementTree as ElementTree

import pytest
import requests

from harness.node import PATIENCE, wait_until
from harness.package import python

# Touches one of four parts of a large array, 4 MiB each: the part that the event names.
PARTS = python(
    """
    PART = 4 << 20
    data = bytearray(b"x" * (4 * PART))

    def handler(event, context):
        part = (event or {}).get("part", 0)
        for page in range(part * PART, (part + 1) * PART, 4096):
            data[page] = 1
        return "ok"
    """
)
PART_PAGES = 1024
CLASSES = {"written", "read", "cold", "parent", "file", "zero"}


def memory(function):
    response = requests.get(f"{function.node.endpoint}/rouse/v1/functions/{function.name}/memory", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()


def working_set(function):
    return function.describe()["snapshot"]["working_set"]


def observed(function, before):
    """What is known when more than `before` observations have been made."""
    return wait_until(
        lambda: (lambda found: found if found["observations"] > before else None)(working_set(function)),
        lambda: f"the answer is observed: {working_set(function)}",
    )


def invoke(function, part, times=1):
    """Invokes, and waits for each observation: the first sixteen invocations are all observed."""
    for _ in range(times):
        before = working_set(function)["observations"]
        assert function.call({"part": part}, "restore") == "ok"
        found = observed(function, before)
    return found


def written_parts(function):
    """Which parts of the array are predicted to be written: pages of class written in large anonymous mappings."""
    report = memory(function)
    big = [mapping for mapping in report["mappings"] if mapping["end"] - mapping["start"] >= 4 * PART_PAGES * 4096]
    return sum(pages for mapping in big for pages, kind in mapping["runs"] if kind == "written")


@pytest.fixture(scope="module")
def function(node):
    return node.deploy(PARTS).ready()


def test_counts_add_up(function):
    invoke(function, 0, 2)
    report = memory(function)
    snapshot = function.describe()["snapshot"]
    assert {total["class"] for total in report["classes"]} == CLASSES
    assert sum(total["pages"] for total in report["classes"]) == snapshot["pages"]
    for total in report["classes"]:
        assert total["bytes"] == total["pages"] * report["page_size"]
        assert sum(total["tiers"].values()) == total["pages"]
    counted = dict.fromkeys(CLASSES, 0)
    for mapping in report["mappings"]:
        pages = sum(pages for pages, _ in mapping["runs"])
        assert pages * report["page_size"] == mapping["end"] - mapping["start"]
        for pages, kind in mapping["runs"]:
            counted[kind] += pages
    assert counted == {total["class"]: total["pages"] for total in report["classes"]}
    assert report["pool_pages"] == sum(report["tiers"].values()) == snapshot["saved_pages"]


def test_the_command_shows_and_draws(function, tmp_path):
    invoke(function, 0)
    text = function.node.cli("describe", function.name, "--memory", "--svg", tmp_path / "map.svg").stdout
    for word in (*CLASSES, "working set", "dram"):
        assert word in text.lower()
    picture = ElementTree.parse(tmp_path / "map.svg").getroot()
    assert picture.tag.endswith("svg")
    assert any("[stack]" in "".join(element.itertext()) for element in picture.iter())
    refused = function.node.cli("describe", function.name, "--svg", tmp_path / "map.svg", check=False)
    assert refused.returncode != 0 and "--memory" in refused.stderr


def test_what_is_prepared_is_what_is_used(function):
    found = invoke(function, 0, 10)
    assert found["on"] and found["version"] >= 1
    assert written_parts(function) >= PART_PAGES
    blind = found["last_blind"]
    assert blind["used"] + blind["wasted"] == blind["predicted"]
    # The written part alone is more than a thousand pages, and it is used each time.
    assert blind["used"] >= PART_PAGES
    assert blind["wasted"] < blind["predicted"] / 4
    assert found["gain_us"] > 0


def test_another_pattern_is_recorded_anew(own_node):
    # Whether missed pages are worth a recording follows from what was measured. Here they are: copying a page ahead costs half of
    # what a fault costs.
    node = own_node()
    costs = node.state / "costs.json"
    wait_until(costs.exists, lambda: "costs are measured")
    node.stop()
    measured = json.loads(costs.read_text())
    measured["inputs"].update(copy_ahead_ns=1200.0, lone_copy_fault_ns=2400.0, lone_map_fault_ns=1000.0)
    # Often enough: kept as it is.
    measured["times"] = 5
    costs.write_text(json.dumps(measured))
    node.start()
    function = node.deploy(PARTS).ready()
    before = invoke(function, 0, 6)
    assert before["recordings"] == 0
    assert PART_PAGES <= written_parts(function) < 2 * PART_PAGES
    after = invoke(function, 2, 10)
    assert after["recordings"] >= 1
    assert after["version"] > before["version"]
    assert not after["recording"]
    # The new part is prepared, the old one is not any more.
    assert PART_PAGES <= written_parts(function) < 2 * PART_PAGES
    assert after["missed"] < PART_PAGES / 4


def test_it_survives_a_restart(own_node):
    node = own_node()
    function = node.deploy(PARTS).ready()
    before = invoke(function, 1, 5)
    prepared = written_parts(function)
    node.stop()
    node.start()
    function.ready()
    after = working_set(function)
    kept = ("version", "on", "predicted_written", "predicted_read", "invocations")
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert written_parts(function) == prepared
    assert invoke(function, 1)["missed"] < PART_PAGES / 4


def test_a_damaged_one_is_named_and_learnt_again(own_node):
    node = own_node()
    function = node.deploy(PARTS).ready()
    invoke(function, 1, 2)
    node.stop()
    (path,) = node.state.rglob("working-set")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    node.start()
    function.ready()
    found = working_set(function)
    assert found["version"] == 0
    assert "checksum" in found["problem"]
    assert invoke(function, 1)["version"] == 1


def test_clones_are_judged_by_a_restore_now_and_then(node):
    function = node.deploy(PARTS).ready()
    for _ in range(12):
        before = working_set(function)["observations"]
        assert function.call({"part": 3}) == "ok"
        found = observed(function, before)
    boots = function.describe()["boots"]
    assert boots["fork"] == 11 and boots["restore"] == 1, boots
    assert found["last_blind"]["used"] >= PART_PAGES
    assert found["missed"] < PART_PAGES / 4


# Reads or writes pages of a large array in the order that the event gives, and tells where the array is.
TOUCHES = python(
    """
    import ctypes

    PAGES = 512
    data = bytearray((PAGES + 1) * 4096)
    address = ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))
    first = -address % 4096
    for page in range(PAGES):
        data[first + page * 4096] = page % 255 + 1

    def handler(event, context):
        found = 0
        for page in event["order"]:
            if page % 2:
                data[first + page * 4096 + 8] = 1
            else:
                found += data[first + page * 4096]
        return {"address": address + first, "found": found}
    """
)


def places(path):
    """The pages of a `working-set` file in the order of their first touches, addresses; see docs/working-sets.md."""
    content = path.read_bytes()
    (entries,) = struct.unpack_from("<I", content, 48)
    found = []
    for page, pages, _, _, order, _ in struct.iter_unpack("<QIHHI4s", content[152:]):
        if order != 0xFFFFFFFF:
            found += [(order + n, (page + n) * 4096) for n in range(pages)]
    assert len(content) == 152 + 24 * entries
    return [address for _, address in sorted(found)]


def test_the_order_of_first_touches_is_recorded_when_asked_for(own_node):
    node = own_node(memory_record_order="true")
    function = node.deploy(TOUCHES).ready()
    pages = list(range(512))
    random.Random(7).shuffle(pages)
    order = pages[:400]
    # Touching a page again changes nothing.
    event = {"order": order + order[:50]}
    expected = sum(page % 255 + 1 for page in event["order"] if page % 2 == 0)
    # The eighth answer asks for a boot for which nothing is prepared.
    for _ in range(10):
        before = working_set(function)["observations"]
        answer = function.call(event, "restore")
        assert answer["found"] == expected
        found = observed(function, before)
    assert found["ordered"] >= len(order)
    (path,) = node.state.rglob("working-set")
    start = answer["address"]
    in_array = [(address - start) // 4096 for address in places(path) if start <= address < start + 512 * 4096]
    assert in_array == order


HANDLED = python(
    """
    import os
    from snapshot_restore_py import register_after_restore

    register_after_restore(lambda: print("restored"))

    def handler(event, context):
        print("handled", event)
        return event["n"]
    """
)


def test_something_is_known_before_the_first_call(node):
    function = node.deploy(HANDLED).ready()
    found = working_set(function)
    assert (found["version"], found["invocations"], found["observations"]) == (1, 0, 0)
    assert found["predicted_written"] > 50
    # That is no invocation, and the handler did not run. The hooks do whenever a snapshot is tried.
    log = function.logs()
    assert "handled" not in log and "START" not in log
    assert "restored" in log
    before = found["observations"]
    assert function.call({"n": 3}, "restore") == 3
    found = observed(function, before)
    assert found["invocations"] == 1
    # The handler and what it needs beside.
    assert found["missed"] < 200


def test_warm_up_events_are_what_a_new_snapshot_is_tried_with(own_node):
    node = own_node(snapshot_point="warm")
    function = node.deploy({**HANDLED, "rouse-warm-up.json": '[{"n": 1}, {"n": 2}]'}).ready()
    assert (working_set(function)["version"], working_set(function)["invocations"]) == (1, 0)
    log = function.logs()
    # Once before the snapshot, once in the copy that is tried.
    assert log.count("handled {'n': 1}") == log.count("handled {'n': 2}") == 2
    assert function.call({"n": 3}, "restore") == 3


def test_other_clients_are_not_rehearsed(node, ric_package):
    function = node.deploy({**ric_package, **HANDLED}).ready()
    assert working_set(function)["version"] == 0
    assert "handled" not in function.logs()
