"""Asynchronous invocations: nothing that was accepted is lost, and who is to be told is told."""

import json
import random

import botocore.exceptions
import pytest

from harness import leaks
from harness.node import wait_until
from harness.package import python

QUEUE = "arn:aws:sqs:us-east-1:000000000000:"
# Prints first, so that a test can see that it has begun.
HANDLER = """
import time
def handler(event, context):
    print('handled', event['n'], flush=True)
    time.sleep(event.get('sleep', 0))
    if event.get('fail'):
        raise ValueError('no good')
    return event['n']
"""


def send(node, function, event):
    reply = node.aws.invoke(FunctionName=function.name, InvocationType="Event", Payload=json.dumps(event).encode())
    assert reply["StatusCode"] == 202, reply
    return reply["ResponseMetadata"]["RequestId"]


def queued(node, name):
    return [json.loads(path.read_text()) for path in sorted((node.state / "queues" / name).glob("*.json"))]


def tell(node, function, **config):
    return node.aws.put_function_event_invoke_config(FunctionName=function.name, **config)


def to(name):
    return {"Destination": QUEUE + name}


@pytest.mark.parametrize("seed", range(3))
def test_all_that_was_accepted_arrives_whenever_the_node_is_killed(own_node, seed):
    """The node is killed while events wait, are handled, fail, and while their destinations are told."""
    randomness = random.Random(seed)
    node = own_node(async_retry_s="0,0", max_async_concurrency=4)
    function = node.deploy(python(HANDLER), name="events").ready()
    tell(node, function, DestinationConfig={"OnSuccess": to("good"), "OnFailure": to("bad")})
    accepted = {}
    for _ in range(4):
        for _ in range(randomness.randrange(3, 9)):
            n = len(accepted)
            event = {"n": n, "fail": randomness.random() < 0.3, "sleep": randomness.choice((0, 0, 0.05))}
            accepted[n] = (send(node, function, event), event["fail"])
        # Somewhere on their way: some are done, some are not.
        wanted = randomness.randrange(len(accepted))
        wait_until(lambda: len(queued(node, "good")) + len(queued(node, "bad")) >= wanted, "some are done")
        node.kill()
        node.start()
    wait_until(
        lambda: {record["requestPayload"]["n"] for name in ("good", "bad") for record in queued(node, name)}
        == set(accepted),
        lambda: f"all have arrived: {accepted} {function.logs()}",
    )
    for name, condition in (("good", "Success"), ("bad", "RetriesExhausted")):
        for record in queued(node, name):
            request_id, fails = accepted[record["requestPayload"]["n"]]
            assert record["requestContext"]["requestId"] == request_id, record
            assert record["requestContext"]["condition"] == condition, record
            assert fails == (name == "bad"), record
    # The collection that follows a start removes what a kill has left.
    wait_until(lambda: not leaks.temporary(node), lambda: f"nothing is half written: {leaks.temporary(node)}")


def test_the_configuration_as_boto3_sees_it(node):
    function = node.deploy(python(HANDLER), DeadLetterConfig={"TargetArn": QUEUE + "letters"})
    where = {"FunctionName": function.name}
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}"
    assert node.aws.get_function_configuration(**where)["DeadLetterConfig"] == {"TargetArn": QUEUE + "letters"}
    with pytest.raises(node.aws.exceptions.ResourceNotFoundException, match="doesn't have an EventInvokeConfig"):
        node.aws.get_function_event_invoke_config(**where)
    put = tell(node, function, MaximumRetryAttempts=0, DestinationConfig={"OnSuccess": {"Destination": arn}})
    assert put["FunctionArn"] == f"{arn}:$LATEST", put
    node.aws.update_function_event_invoke_config(**where, MaximumEventAgeInSeconds=60)
    found = node.aws.get_function_event_invoke_config(**where)
    assert found["MaximumRetryAttempts"] == 0 and found["MaximumEventAgeInSeconds"] == 60, found
    assert found["DestinationConfig"] == {"OnSuccess": {"Destination": arn}, "OnFailure": {}}, found
    listed = node.aws.list_function_event_invoke_configs(**where)["FunctionEventInvokeConfigs"]
    assert [one["FunctionArn"] for one in listed] == [f"{arn}:$LATEST"]
    with pytest.raises(botocore.exceptions.ClientError, match="neither the ARN of a function nor that of a queue"):
        tell(node, function, DestinationConfig={"OnFailure": {"Destination": "arn:aws:sns:us-east-1:0:t"}})
    node.aws.delete_function_event_invoke_config(**where)
    with pytest.raises(node.aws.exceptions.ResourceNotFoundException):
        node.aws.delete_function_event_invoke_config(**where)
    # The dead-letter queue is of another configuration, and stays.
    node.aws.put_function_event_invoke_config(**where, MaximumRetryAttempts=0)
    request_id = send(node, function, {"n": 1, "fail": True})
    letter = wait_until(lambda: queued(node, "letters"), "the letter is in the queue")[0]
    assert json.loads(letter["MessageBody"]) == {"n": 1, "fail": True}
    assert letter["MessageAttributes"]["RequestID"]["StringValue"] == request_id
    function.delete()
