"""What a function's serving policy decides, on real sandboxes."""

import http.client
import json
import urllib.parse

import botocore.exceptions
import pytest

from harness.node import PATIENCE, wait_until
from harness.package import python

COUNTER = """
import os
calls = 0
def handler(event, context):
    global calls
    calls += 1
    return {"calls": calls, "pid": os.getpid()}
"""


def test_isolation_by_instance_uses_copies_of_the_snapshot_again(node):
    function = node.deploy(python(COUNTER))
    function.ready()
    assert [function.call({})["calls"] for _ in range(3)] == [1, 1, 1]
    node.cli("configure", function.name, "--isolation", "instance")
    first = function.invoke({})
    assert first.boot in ("fork", "restore", "parked"), first
    for calls in (2, 3, 4):
        reply = function.invoke({})
        assert (reply.boot, reply.json["calls"]) == ("warm", calls), reply
    assert function.describe()["instances"]["idle"] == 1
    # Longer than that nobody keeps it.
    node.cli("configure", function.name, "--keep-alive", "0")
    wait_until(lambda: function.describe()["instances"]["idle"] == 0, "the idle instance is ended")
    node.cli("configure", function.name, "--reset", "isolation,keep-alive")
    assert [function.call({})["calls"] for _ in range(2)] == [1, 1]
    assert function.describe()["serving"]["policy"] == {}
    function.delete()


def test_the_policy_comes_with_a_deployment_and_is_shown(node, tmp_path):
    (tmp_path / "app.py").write_text(COUNTER)
    node.cli("deploy", tmp_path, "--name", "shown", "--isolation", "request", "--keep-alive", "histogram")
    shown = node.cli("describe", "shown").stdout
    assert "isolation request" in shown and "keep_alive histogram" in shown, shown
    said = json.loads(node.cli("configure", "shown", "--json").stdout)
    assert said["policy"] == {"isolation": "request", "keep_alive": "histogram"}, said
    wrong = node.cli("configure", "shown", "--parked-min", "3", "--parked-max", "1", check=False)
    assert wrong.returncode != 0 and "parked_min must not be greater" in wrong.stderr, wrong
    node.cli("delete", "shown")


def test_provisioned_instances_are_ready_before_the_first_request(node):
    function = node.deploy(python(COUNTER)).ready()
    with pytest.raises(botocore.exceptions.ClientError, match="unpublished function versions"):
        node.aws.put_provisioned_concurrency_config(
            FunctionName=function.name, Qualifier="$LATEST", ProvisionedConcurrentExecutions=2
        )
    version = node.aws.publish_version(FunctionName=function.name)["Version"]
    where = {"FunctionName": function.name, "Qualifier": version}
    node.aws.get_waiter("published_version_active").wait(**where, WaiterConfig={"Delay": 1})
    with pytest.raises(node.aws.exceptions.ProvisionedConcurrencyConfigNotFoundException):
        node.aws.get_provisioned_concurrency_config(**where)
    asked = node.aws.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=2)
    assert asked["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert asked["RequestedProvisionedConcurrentExecutions"] == 2
    ready = wait_until(
        lambda: (lambda now: now if now["Status"] == "READY" else None)(
            node.aws.get_provisioned_concurrency_config(**where)
        ),
        "the instances are ready",
    )
    assert ready["AvailableProvisionedConcurrentExecutions"] == 2
    reply = node.aws.invoke(**where, Payload=b"{}")
    assert reply["ResponseMetadata"]["HTTPHeaders"]["x-rouse-boot"] == "parked", reply
    listed = node.aws.list_provisioned_concurrency_configs(FunctionName=function.name)
    assert [one["FunctionArn"] for one in listed["ProvisionedConcurrencyConfigs"]] == [
        f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}:{version}"
    ]
    node.aws.delete_provisioned_concurrency_config(**where)
    wait_until(
        lambda: node.cli("describe", f"{function.name}:{version}", "--json").stdout.count('"parked": 0'),
        "nothing waits any more",
    )
    function.delete()


HOLD = """
import os, time
def handler(event, context):
    if event.get("hold"):
        # `/tmp` is the sandbox's own: the test sees a call that waits by what the node says of it.
        time.sleep(600)
    return "done"
"""


def test_reserved_concurrency_as_boto3_sets_it(node):
    function = node.deploy(python(HOLD), Timeout=60).ready()
    name = function.name
    assert "ReservedConcurrentExecutions" not in node.aws.get_function_concurrency(FunctionName=name)
    put = node.aws.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    assert put["ReservedConcurrentExecutions"] == 0
    with pytest.raises(node.aws.exceptions.TooManyRequestsException) as refused:
        node.aws.invoke(FunctionName=name)
    answer = refused.value.response
    assert answer["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", answer
    assert answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1", answer
    assert node.aws.get_function(FunctionName=name)["Concurrency"] == {"ReservedConcurrentExecutions": 0}
    with pytest.raises(botocore.exceptions.ClientError, match="below its minimum"):
        node.aws.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=256)
    node.aws.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=5)
    assert node.aws.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 251
    node.aws.delete_function_concurrency(FunctionName=name)
    assert function.call({}) == "done"
    function.delete()


def serving(function):
    return function.describe()["serving"]


def test_a_client_that_goes_away_takes_its_request_along(node):
    function = node.deploy(python(HOLD), Timeout=60).ready()
    node.cli("configure", function.name, "--max-instances", "1")
    url = f"{node.endpoint}/2015-03-31/functions/{function.name}/invocations"
    running = Client(url, {"hold": True})
    wait_until(lambda: function.describe()["instances"]["busy"] == 1, "the first one runs")
    waiting = [Client(url, {}) for _ in range(2)]
    wait_until(lambda: serving(function)["waiting"] == 2, "the others wait")
    waiting[0].close()
    wait_until(lambda: serving(function)["waiting"] == 1, "the one that went away does not wait any more")
    running.close()
    assert waiting[1].answer() == "done"
    wait_until(lambda: function.describe()["instances"]["busy"] == 0, "the instance of the first one has ended")
    function.delete()


class Client:
    """An invocation on a connection that can be cut."""

    def __init__(self, url, event):
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        self.connection.request("POST", parts.path, json.dumps(event))

    def answer(self):
        return json.loads(self.connection.getresponse().read())

    def close(self):
        self.connection.close()
