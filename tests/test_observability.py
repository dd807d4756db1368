"""What a node tells its operator: metrics, health, and its log."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import requests

from harness import leaks
from harness.metrics import Scrape
from harness.node import PATIENCE, wait_until
from harness.package import python

DOCUMENT = Path(__file__).parent.parent / "docs" / "observability.md"

# Does what its event says.
OBEDIENT = python(
    """
    import os, time

    def handler(event, context):
        match event:
            case "fail": raise ValueError("as asked")
            case "exit": os._exit(3)
            case "large": return "x" * 7_000_000
            case "hog": return len(bytearray(os.urandom(1 << 20)) * 1000)
            case "sleep": time.sleep(300)
        return event
    """
)


@pytest.fixture(scope="module")
def node_settings():
    # What is called and learnt here is counted, and nothing else moves.
    return {"ready_sandboxes": 3, "most_ready_sandboxes": 3}


def ready(endpoint):
    response = requests.get(f"{endpoint}/readyz", timeout=PATIENCE)
    return response.status_code, response.json()


def test_what_is_counted_is_what_was_done(node):
    function = node.deploy(OBEDIENT, Timeout=2, MemorySize=256).ready()
    labels = {"function": function.name, "version": "$LATEST"}
    before = Scrape(node.endpoint)
    assert before.value("rouse_invocations_total", **labels) == 0
    for path, count in (("cold", 1), ("restore", 2), ("fork", 3)):
        for _ in range(count):
            function.call("again", path)
    for event in ("fail", "fail", "exit", "large", "hog", "sleep"):
        assert function.invoke(event, "restore").error == "Unhandled"
    for _ in range(2):
        assert function.invoke("again", "warm").error is None
    assert requests.post(f"{node.endpoint}/2015-03-31/functions/nobody/invocations", timeout=PATIENCE).status_code == 404
    assert function.invoke(body=b"{").status == 400
    after = Scrape(node.endpoint)

    assert after.value("rouse_invocations_total", **labels) == 14
    # The first of the two that were asked for as `warm` found no idle instance.
    boots = {"cold": 2, "restore": 8, "fork": 3, "parked": 0, "warm": 1}
    for path, count in boots.items():
        assert after.value("rouse_boots_total", path=path, **labels) == count, path
        stages = {"queue", "start", "run", "total"} if count else set()
        for stage in stages:
            found = after.value("rouse_stage_duration_seconds_count", path=path, stage=stage)
            assert found - (before.value("rouse_stage_duration_seconds_count", path=path, stage=stage) or 0) == count
    kinds = {"handler": 2, "exit": 1, "response": 1, "memory": 1, "timeout": 1, "init": 0, "platform": 0}
    for kind, count in kinds.items():
        assert after.value("rouse_invocation_errors_total", kind=kind, **labels) == count, kind
    for error in ("ResourceNotFoundException", "InvalidRequestContentException"):
        assert after.value("rouse_refusals_total", error=error) == (before.value("rouse_refusals_total", error=error) or 0) + 1

    # The one that timed out ran for two seconds.
    assert after.value("rouse_invocation_duration_seconds_count", **labels) == 14
    assert after.value("rouse_invocation_duration_seconds_bucket", le="+Inf", **labels) == 14
    assert after.value("rouse_invocation_duration_seconds_sum", **labels) >= 2
    long = after.value("rouse_invocation_duration_seconds_bucket", le="1", **labels)
    assert long is not None and long <= 13
    buckets = after.all("rouse_invocation_duration_seconds_bucket", **labels)
    assert buckets == sorted(buckets) and len(buckets) == 22

    assert after.value("rouse_sandbox_pool_taken_total") + after.value("rouse_sandbox_pool_misses_total") >= 8
    assert after.value("rouse_snapshots", state="resident") + after.value("rouse_snapshots", state="loaded") == 1
    assert after.value("rouse_tier_functions", tier="dram") + after.value("rouse_tier_functions", tier="disk") == 1
    filled = sum(after.all("rouse_pager_filled_pages_total"))
    snapshot = function.snapshot()
    assert 0 < filled and snapshot["saved_pages"] > 0
    assert after.value("rouse_tier_used_bytes", tier="disk") > 0
    assert after.value("rouse_requests", function=function.name, state="running") == 0
    assert after.value("rouse_ready") == 1
    assert after.value("process_resident_memory_bytes") > 0
    wait_until(
        lambda: Scrape(node.endpoint).value("rouse_instances", state="idle", **labels) == 1,
        "the instance that was kept is idle",
    )

    function.delete()
    gone = Scrape(node.endpoint)
    assert gone.all("rouse_invocations_total", function=function.name) == []
    assert function.name not in gone.labels("function")
    # What the pager did for it stays.
    assert sum(gone.all("rouse_pager_filled_pages_total")) >= filled


def test_a_request_that_runs_is_seen(node):
    function = node.deploy(OBEDIENT, Timeout=300).ready()
    caller = threading.Thread(target=function.invoke, args=("sleep",))
    caller.start()
    running = lambda: Scrape(node.endpoint).value("rouse_requests", function=function.name, state="running")
    wait_until(lambda: running() == 1, "the request runs")
    labels = {"function": function.name, "version": "$LATEST", "state": "busy"}
    assert Scrape(node.endpoint).value("rouse_instances", **labels) == 1
    end_instances(node)
    caller.join()
    wait_until(lambda: running() == 0, "the request is over")
    function.delete()


def end_instances(node):
    """Kills the processes that run functions."""
    found = [pid for pid, comm in leaks.processes(node) if comm.startswith("python")]
    assert found
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_names_follow_the_conventions_and_are_documented(node):
    function = node.deploy(OBEDIENT).ready()
    function.call("again")
    function.invoke(body=b"{")
    scrape = Scrape(node.endpoint)
    documented = dict(re.findall(r"^\| `((?:rouse|process)_\w+)` \| (\w+) \|", DOCUMENT.read_text(), re.M))
    served = {}
    for family in scrape.families.values():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.fullmatch(r"(rouse|process)_[a-z_]+", name), name
        assert family.documentation and family.samples, name
        if family.type == "histogram":
            assert name.endswith("_seconds"), name
        served[name] = family.type
    assert served == documented
    function.delete()


def test_labels_are_bounded(own_node):
    node = own_node(metrics_functions=1)
    first, second, third = (node.deploy(OBEDIENT, name=name) for name in ("first", "second", "third"))
    for function in (first, second, second, third):
        function.call("again")
    other = {"function": "other", "version": "other"}
    scrape = Scrape(node.endpoint)
    assert scrape.labels("function") == {"first", "other"}
    assert scrape.value("rouse_invocations_total", **other) == 3
    assert scrape.value("rouse_invocation_duration_seconds_count", **other) == 3
    # What was counted stays, so that a sum never goes back.
    second.delete()
    assert Scrape(node.endpoint).value("rouse_invocations_total", **other) == 3
    # Who comes when there is room gets series.
    first.delete()
    fourth = node.deploy(OBEDIENT, name="fourth")
    fourth.call("again")
    scrape = Scrape(node.endpoint)
    assert scrape.labels("function") == {"fourth", "other"}
    assert scrape.value("rouse_invocations_total", function="fourth", version="$LATEST") == 1


def test_a_pager_that_died_is_counted(own_node):
    node = own_node()
    [pager] = [pid for pid, comm in leaks.processes(node) if comm == "rouse-pager"]
    os.kill(pager, signal.SIGKILL)
    wait_until(lambda: Scrape(node.endpoint).value("rouse_pager_restarts_total") == 1, "another pager runs")
    assert ready(node.endpoint)[0] == 200


def test_metrics_have_an_address_of_their_own_that_outlives_the_api(own_node):
    node = own_node(metrics_listen="127.0.0.1:0")
    metrics = (node.state / "metrics-endpoint").read_text().strip()
    assert metrics != node.endpoint
    assert requests.get(f"{node.endpoint}/metrics", timeout=PATIENCE).status_code == 404
    assert requests.get(f"{metrics}/rouse/v1/tiers", timeout=PATIENCE).status_code == 404
    assert ready(node.endpoint)[0] == ready(metrics)[0] == 200
    function = node.deploy(OBEDIENT, Timeout=300).ready()
    caller = threading.Thread(target=function.invoke, args=("sleep",))
    caller.start()
    running = lambda: Scrape(metrics).value("rouse_requests", function=function.name, state="running")
    wait_until(lambda: running() == 1, "the request runs")
    node.process.send_signal(signal.SIGTERM)
    wait_until(lambda: ready(metrics)[0] == 503, "the node is not ready")
    assert ready(metrics)[1]["reasons"] == ["it is stopping"]
    assert requests.get(f"{metrics}/healthz", timeout=PATIENCE).status_code == 200
    assert Scrape(metrics).value("rouse_ready") == 0
    end_instances(node)
    caller.join()
    assert node.process.wait(PATIENCE) == 0
    node.process = None
    assert not (node.state / "metrics-endpoint").exists()


def test_each_invocation_is_a_line_of_the_log(own_node):
    node = own_node(log_format="json", log_level="warn,invocation=debug")
    secret = "a-secret-of-the-caller"
    variables = {"Variables": {"SECRET": "a-secret-of-the-owner"}}
    function = node.deploy(OBEDIENT, Environment=variables).ready()
    replies = [function.invoke(secret, "restore"), function.invoke("fail", "fork"), function.invoke("exit", "cold")]
    lines = wait_until(lambda: (lambda found: found if len(found) == 3 else None)(invocations(node)), "all are logged")
    for line, reply, boot in zip(lines, replies, ("restore", "fork", "cold")):
        assert line["request_id"] == reply.headers["x-amzn-requestid"]
        assert (line["function"], line["version"], line["boot"]) == (function.name, "$LATEST", boot)
        assert line["message"] == "invoked" and line["timestamp"]
        assert 0 < line["run_us"] <= line["total_us"] and line["queue_us"] >= 0 and line["start_us"] > 0
        assert "sandbox=" in line["boot_us"]
    told = [(line["level"], line.get("error_kind"), line.get("error_type")) for line in lines]
    assert told == [
        ("DEBUG", None, None),
        ("DEBUG", "handler", "ValueError"),
        ("INFO", "exit", "Runtime.ExitError"),
    ]
    assert "secret" not in node.log()


def invocations(node):
    lines = [json.loads(line) for line in node.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line["target"] == "invocation"]
