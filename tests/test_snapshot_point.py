"""When snapshots are taken, which versions are kept, and going back to one while requests run."""

import json
import threading

import pytest
import requests

from harness import leaks
from harness.node import PATIENCE, Function, wait_until
from harness.package import python, zipped

# Imports what is expensive only when it is called, as functions with lazy imports do. The module says in how many instances
# it was loaded by what it makes up when it is.
LAZY = {
    "app.py": """
import sys
import uuid
MARK = str(uuid.uuid4())
SEEN = []
def handler(event, context):
    was_there = "heavy" in sys.modules
    import heavy
    if event == "fail":
        raise ValueError("as asked")
    SEEN.append([event, context.aws_request_id])
    import os, random
    return {"warm": was_there, "mark": MARK, "heavy": heavy.MARK, "seen": SEEN, "random": random.random(),
            "trace": os.environ.get("_X_AMZN_TRACE_ID"), "id": context.aws_request_id}
""",
    "heavy.py": """
import uuid, random, json, decimal, email, http.client, xml.dom.minidom, unittest, argparse, asyncio
MARK = str(uuid.uuid4())
TABLE = {str(number): number * 3 for number in range(300_000)}
""",
}


def snapshots(function):
    response = requests.get(f"{function.node.endpoint}/rouse/v1/functions/{function.name}/snapshots", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()


def set_point(function, **point):
    path = f"{function.node.endpoint}/rouse/v1/functions/{function.name}/snapshot-point"
    return requests.put(path, json=point, timeout=PATIENCE)


def rollback(function, version=None):
    path = f"{function.node.endpoint}/rouse/v1/functions/{function.name}/rollback"
    return requests.post(path, json={"version": version}, timeout=PATIENCE)


def versions(function):
    return [one["version"] for one in snapshots(function)["versions"]]


def directories(function):
    return sorted(path.name for path in (function.node.state / "snapshots" / function.name).iterdir())


def test_the_end_of_init_is_the_default(node):
    function = node.deploy(LAZY).ready()
    found = snapshots(function)
    assert (found["policy"], found["current"], found["decisions"]) == ("init", 1, []), found
    assert not function.call(1, "restore")["warm"]


def test_a_package_brings_its_events(node, tmp_path):
    """The command deploys; the copies have what the events have loaded, and nothing that could be mixed up between callers."""
    folder = tmp_path / "lazy"
    folder.mkdir()
    for name, text in LAZY.items():
        (folder / name).write_text(text)
    (folder / "rouse-warm-up.json").write_text('[{"n": 1}, {"n": 2}]')
    node.cli("deploy", folder, "--name", "lazy", "--snapshot-point", "warm", "--warm-up-rounds", "2", "--timeout", "30")
    function = Function(node, "lazy")
    [version] = snapshots(function)["versions"]
    assert version["warm_up"]["rounds"] == 2 and version["warm_up"]["events"] == 4, version
    replies = [function.call("mine", path) for path in ("restore", "fork", "restore")]
    for reply in replies:
        assert reply["warm"], reply
        # What ran before are the owner's events, with ids of nobody; then the call itself.
        events = [event for event, _ in reply["seen"]]
        assert events == [{"n": 1}, {"n": 2}, {"n": 1}, {"n": 2}, "mine"], events
        assert reply["seen"][-1][1] == reply["id"]
    assert len({reply["heavy"] for reply in replies}) == 1
    # The generator was loaded by an event, and is reseeded all the same.
    assert len({reply["random"] for reply in replies}) == len(replies)
    assert len({reply["trace"] for reply in replies}) == len(replies)
    assert "2 rounds" not in node.cli("snapshots", "lazy").stdout
    assert "in use" in node.cli("snapshots", "lazy").stdout
    function.delete()


def test_an_event_that_fails_leaves_the_end_of_init(node):
    function, _ = node.create(LAZY)
    function.wait_active()
    refused = set_point(function, policy="warm", events=["fail"])
    assert refused.status_code == 400 and "as asked" in refused.text, refused.text
    assert versions(function) == [1] and snapshots(function)["policy"] == "init"
    # With a deployment there is a new revision in any case: it is served, and says what is wrong.
    body = {"RouseSnapshotPoint": {"policy": "warm", "events": [1, "fail"]}}
    path = f"{node.endpoint}/2015-03-31/functions/{function.name}/configuration"
    assert requests.put(path, json=body, timeout=PATIENCE).status_code == 200
    assert function.wait_active()["LastUpdateStatus"] == "Successful"
    function.ready()
    found = snapshots(function)
    assert "event 2 failed" in found["problem"] and "as asked" in found["problem"], found
    assert found["versions"][0]["warm_up"]["rounds"] == 0
    assert not function.call(1, "restore")["warm"]


def test_wrong_policies_are_refused(node):
    function = node.deploy(LAZY).ready()
    for point, word in (
        ({"policy": "later"}, "later"),
        ({"policy": "warm"}, "rouse-warm-up.json"),
        ({"policy": "auto"}, "rouse-warm-up.json"),
        ({"policy": "warm", "events": []}, "1 to 64"),
        ({"policy": "init", "after": 3}, "after"),
    ):
        refused = set_point(function, **point)
        assert refused.status_code == 400 and word in refused.text, (point, refused.text)
    assert rollback(function).status_code == 404
    assert rollback(function, 7).status_code == 404
    assert versions(function) == [1]


def test_node_functions_and_executables_are_warmed_up(node):
    code = {"index.js": "let calls = 0; exports.handler = async () => ++calls;"}
    function = node.deploy(code, runtime="nodejs22.x", handler="index.handler").ready()
    assert set_point(function, policy="warm", events=[1, 2, 3], rounds=5).status_code == 200
    assert [function.call({}, path) for path in ("restore", "fork")] == [16, 16]
    bootstrap = """#!/usr/bin/python3
import http.client, os
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
calls = 0
while True:
    api.request("GET", "/2018-06-01/runtime/invocation/next")
    event = api.getresponse()
    event.read()
    calls += 1
    api.request("POST", f"/2018-06-01/runtime/invocation/{event.headers['lambda-runtime-aws-request-id']}/response", str(calls))
    api.getresponse().read()
"""
    function = node.deploy({"bootstrap": (bootstrap.encode(), 0o755)}, runtime="provided.al2023", handler="any").ready()
    assert function.call({}, "restore") == 1
    answer = set_point(function, policy="warm", events=[1, 2], rounds=2)
    assert answer.status_code == 200, answer.text
    assert [function.call({}, path) for path in ("restore", "fork")] == [5, 5]


def test_a_client_without_warm_up_is_not_warmed_up(node, ric_package):
    function = node.deploy({**ric_package, **LAZY}).ready()
    refused = set_point(function, policy="warm", events=[1])
    assert refused.status_code == 400 and "client does not take" in refused.text, refused.text
    assert function.call(1, "restore")["warm"] is False


def decisions(function):
    return snapshots(function)["decisions"]


def test_auto_keeps_a_later_snapshot_that_is_better(own_node):
    """And one that is not: the search ends, and is remembered over a restart."""
    node = own_node()
    function = node.deploy(LAZY, name="auto").ready()
    assert set_point(function, policy="auto", events=[{"given": True}], after=3).status_code == 200
    assert not function.call("secret of a caller", "restore")["warm"]
    for _ in range(2):
        function.call("secret of a caller")
    first = wait_until(lambda: decisions(function), lambda: f"a trial is made: {snapshots(function)}")[-1]
    assert first["outcome"] == "kept" and first["rounds"] == 1, first
    figures = first["comparison"]
    # What two of three pairs show is believed: a busy machine may disturb one of them.
    assert figures["pairs"] == 9 and figures["faster"] >= 6, figures
    assert figures["candidate"]["p50_us"] < figures["current"]["p50_us"] / 2, figures
    assert figures["candidate"]["stored_bytes"] > 0 and figures["candidate"]["working_set_bytes"] > 0
    reply = function.call("later", "restore")
    assert reply["warm"] and "secret" not in json.dumps(reply), reply
    assert snapshots(function)["current"] == first["version"]

    def searched():
        function.call("again")
        return decisions(function)[0]["outcome"] != "kept"

    wait_until(searched, lambda: f"the search ends: {snapshots(function)}")
    last = decisions(function)[0]
    # More rounds make no difference here, or a small one; what is not kept leaves nothing.
    assert last["outcome"] == "rejected" and last["rounds"] > 1, last
    assert last["version"] not in versions(function)
    wait_until(lambda: len(directories(function)) == len(versions(function)), lambda: str(directories(function)))
    before = snapshots(function)
    node.stop()
    node.start()
    after = snapshots(function)
    assert {**after, "problem": None} == {**before, "problem": None}
    # A rollback is final: nothing else is tried.
    assert rollback(function, 1).status_code in (200, 404)


def test_versions_are_bounded_and_give_their_room_back(own_node):
    node = own_node(snapshot_versions=2)
    function = node.deploy(LAZY, name="many").ready()
    for number in range(4):
        answer = set_point(function, policy="warm", events=[number])
        assert answer.status_code == 200 and answer.json()["version"] == number + 2, answer.text
    assert versions(function) == [5, 4]
    wait_until(lambda: len(directories(function)) == 2, lambda: f"the old ones are gone: {directories(function)}")
    assert function.call("x", "restore")["seen"][0][0] == 3
    assert rollback(function).json() == {"version": 4}
    assert function.call("x", "restore")["seen"][0][0] == 2
    assert rollback(function).status_code == 404, "there is no older one"
    assert rollback(function, 5).json() == {"version": 5}
    node.cli("rollback", "many", "4")
    found = snapshots(function)
    assert found["current"] == 4 and found["is_pinned"], found
    # A deployment is a new revision, with versions of its own.
    node.aws.update_function_code(FunctionName="many", ZipFile=zipped({**LAZY, "new.py": ""}))
    function.wait_active()
    function.ready()
    assert versions(function) == [1]
    wait_until(lambda: len(directories(function)) == 1, lambda: f"the old ones are gone: {directories(function)}")
    function.delete()
    wait_until(lambda: not (node.state / "snapshots" / "many").exists(), "its folder is gone")
    result = node.cli("fsck", "--state-dir", node.state, "--json", check=False)
    assert json.loads(result.stdout)["damages"] == [], result


def test_rollback_while_requests_run(node):
    function = node.deploy(LAZY).ready()
    assert set_point(function, policy="warm", events=["two"]).status_code == 200
    end = threading.Event()
    failures, marks = [], set()

    def calls():
        while not end.is_set():
            reply = function.invoke("x")
            if reply.status != 200 or reply.error or reply.boot == "cold":
                failures.append(reply)
                return
            marks.add(reply.json["mark"])

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            answer = rollback(function, 1 + number % 2)
            assert answer.status_code == 200, answer.text
            warm = function.call("y")["warm"]
            assert warm == (number % 2 == 1)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert failures == [] and len(marks) == 2, (failures, marks)
    assert versions(function) == [2, 1]


@pytest.mark.parametrize("wait", (0.0, 0.03, 0.1, 0.3))
def test_kill_during_a_switch(own_node, wait):
    """The node is killed while a version is taken and while one is switched to: the old or the new one is there, whole."""
    node = own_node(snapshot_versions=2)
    function = node.deploy(LAZY, name="killed").ready()
    assert set_point(function, policy="warm", events=["two"]).status_code == 200
    for round_ in range(3):
        def change():
            try:
                set_point(function, policy="warm", events=[f"round {round_}"])
                rollback(function)
            except requests.exceptions.ConnectionError:
                pass

        def roll():
            try:
                for _ in range(20):
                    for version in versions(function):
                        rollback(function, version)
            except (requests.exceptions.ConnectionError, AssertionError):
                pass

        before = set(versions(function))
        task = threading.Thread(target=change if round_ != 1 else roll)
        task.start()
        task.join(wait)
        node.kill()
        task.join()
        node.start()
        function.ready()
        found = snapshots(function)
        assert found["current"] in versions(function)
        assert set(versions(function)) & before, (before, found)
        assert len(versions(function)) <= 2
        wait_until(
            lambda: len(directories(function)) == len(versions(function)),
            lambda: f"nothing is left of others: {directories(function)}, {snapshots(function)}",
        )
        reply = function.call("x", "restore")
        assert reply["seen"][-1][0] == "x"
    wait_until(lambda: not leaks.temporary(node), lambda: f"nothing is half written: {leaks.temporary(node)}")


def test_a_damaged_version_falls_back_to_the_one_before(own_node):
    node = own_node()
    function = node.deploy(LAZY, name="damaged").ready()
    mark = function.call("x", "restore")["mark"]
    assert set_point(function, policy="warm", events=["two"]).status_code == 200
    assert function.call("x", "restore")["warm"]
    node.stop()
    [newest] = [name for name in directories(function) if name.endswith("-2")]
    manifest = max((node.state / "snapshots" / "damaged" / newest).glob("*"), key=lambda path: path.name == "manifest")
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.write_bytes(data)
    node.start()
    # Not cold for a moment: the version before is used at once, and one like the damaged one is taken.
    reply = function.invoke("x")
    assert reply.status == 200 and reply.boot != "cold", reply
    assert reply.json["mark"] == mark or reply.json["warm"], reply
    wait_until(lambda: snapshots(function)["current"] == 3, lambda: f"a new version is taken: {snapshots(function)}")
    found = snapshots(function)
    assert versions(function) == [3, 1], found
    assert found["versions"][0]["because"] == "damaged" and found["versions"][0]["warm_up"]["events"] == 1
    assert function.call("x", "restore")["warm"]
    wait_until(lambda: len(directories(function)) == 2, lambda: str(directories(function)))


def test_nothing_is_left_of_trials_and_rollbacks(own_node):
    node = own_node(snapshot_versions=2, ready_clones=2, ready_sandboxes=2)
    other = node.deploy(python("def handler(event, context): return 1\n"), name="other").ready()
    assert other.call({}, "fork") == 1

    def is_stocked():
        names = leaks.held(node)["processes"]
        return (names.count("rouse-template"), names.count("blank")) == (2, 2)

    wait_until(is_stocked, lambda: f"everything is ready again: {leaks.held(node)}")
    before = leaks.held(node)
    function = node.deploy(LAZY, name="gone").ready()
    for number in range(3):
        assert set_point(function, policy="warm", events=[number]).status_code == 200
        assert rollback(function).status_code == 200
        function.call("x")
    function.delete()
    wait_until(lambda: leaks.held(node) == before, lambda: f"all is given back: {leaks.held(node)} was {before}")
