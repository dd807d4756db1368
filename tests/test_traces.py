"""Traces of invocations, as an OpenTelemetry collector gets them."""

import re

import pytest

from harness.collector import attributes, collecting
from harness.metrics import Scrape
from harness.node import wait_until
from harness.package import python

TRACE = "5759e988bd862e3fe1be46a994272793"
PARENT = "53995c3f42cd8ad8"

# Says which trace it saw, or fails.
SEER = python(
    """
    import os

    def handler(event, context):
        if event == "fail":
            raise ValueError("as asked")
        return os.environ["_X_AMZN_TRACE_ID"]
    """
)


@pytest.fixture
def collector():
    with collecting() as collector:
        yield collector


def timing(reply):
    """The stages that the answer tells, in microseconds."""
    found = re.findall(r"(\w+);dur=(\d+)\.(\d{3})", reply.headers["server-timing"])
    return {name: int(whole) * 1000 + int(part) for name, whole, part in found}


def length_us(span):
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1000


@pytest.mark.parametrize("path", ["cold", "restore", "fork"])
def test_each_stage_is_a_span(own_node, collector, path):
    node = own_node(traces_endpoint=collector.endpoint)
    function = node.deploy(SEER).ready()
    reply = function.invoke({}, path, traceparent=f"00-{TRACE}-{PARENT}-01")
    assert reply.error is None, reply
    [invocation] = wait_until(lambda: collector.named("invocation"), "the trace arrives")
    stages = timing(reply)

    assert invocation.trace_id.hex() == TRACE and invocation.parent_span_id.hex() == PARENT
    assert {span.trace_id for span in collector.spans} == {invocation.trace_id}
    names = [span.name for span in collector.spans]
    assert sorted(names) == sorted(["invocation", *(name for name in stages if name != "total")])
    assert {"queue", "start", "run", "sandbox"} <= set(names)
    assert abs(length_us(invocation) - stages["total"]) < 2
    by_name = {span.name: span for span in collector.spans}
    for name, span in by_name.items():
        if name == "invocation":
            continue
        top = name in ("queue", "start", "run")
        above = invocation if top else by_name["start"]
        assert span.parent_span_id == above.span_id, name
        assert abs(length_us(span) - stages[name]) < 2, name
        assert above.start_time_unix_nano <= span.start_time_unix_nano, name
    # They follow each other without a gap.
    queue, start, run = (by_name[name] for name in ("queue", "start", "run"))
    assert invocation.start_time_unix_nano == queue.start_time_unix_nano
    assert queue.end_time_unix_nano == start.start_time_unix_nano
    assert start.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano == invocation.end_time_unix_nano

    said = attributes(invocation.attributes)
    assert said["faas.name"] == function.name and said["faas.version"] == "$LATEST"
    assert said["faas.invocation_id"] == reply.headers["x-amzn-requestid"]
    assert said["faas.coldstart"] == (path == "cold") and said["rouse.boot"] == path
    assert said["cloud.resource_id"].endswith(f":function:{function.name}")
    assert collector.resources[0]["service.name"] == "rouse"
    # The function's own spans would belong below the invocation.
    seen = f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={invocation.span_id.hex()};Sampled=1"
    assert reply.json == seen == reply.headers["x-amzn-trace-id"]
    assert Scrape(node.endpoint).value("rouse_traced_invocations_total", result="sent") == 1


def test_callers_decide_and_else_the_ratio(own_node, collector):
    node = own_node(traces_endpoint=collector.endpoint, traces_ratio="0")
    function = node.deploy(SEER).ready()
    sampled = f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled="
    assert function.invoke({}).json.endswith("Sampled=0")
    assert function.invoke({}, traceparent=f"00-{TRACE}-{PARENT}-00").json.endswith("Sampled=0")
    assert function.invoke({}, x_amzn_trace_id=sampled + "0").json.endswith("Sampled=0")
    assert function.invoke({}, x_amzn_trace_id="nonsense", traceparent="nonsense").json.endswith("Sampled=0")
    failed = function.invoke("fail", x_amzn_trace_id=sampled + "1")
    assert failed.error == "Unhandled"
    # Whatever is not sent when the node has ended is never sent.
    node.stop()
    [invocation] = collector.named("invocation")
    assert invocation.trace_id.hex() == TRACE and invocation.parent_span_id.hex() == PARENT
    assert attributes(invocation.attributes)["error.type"] == "handler"
    assert invocation.status.code == invocation.status.STATUS_CODE_ERROR


def test_a_collector_that_refuses_harms_nobody(own_node, collector):
    node = own_node(traces_endpoint=collector.endpoint)
    function = node.deploy(SEER).ready()
    collector.refuses = True
    assert "Sampled=1" in function.invoke({}).json
    dropped = lambda: Scrape(node.endpoint).value("rouse_traced_invocations_total", result="dropped")
    wait_until(lambda: dropped() == 1, "the loss is counted")
    assert "traces are lost" in node.log()
    collector.refuses = False
    assert "Sampled=1" in function.invoke({}).json
    wait_until(lambda: len(collector.named("invocation")) == 1, "the next one arrives")
    assert dropped() == 1


def test_without_a_collector_the_caller_s_trace_is_handed_on(own_node):
    node = own_node()
    function = node.deploy(SEER).ready()
    seen = f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=1"
    assert function.invoke({}, traceparent=f"00-{TRACE}-{PARENT}-01").json == seen
    assert function.invoke({}, x_amzn_trace_id=seen).json == seen
