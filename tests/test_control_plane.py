"""The control plane, as the real boto3 drives it."""

import base64
import hashlib
import io
import json
import zipfile

import botocore.exceptions
import pytest
import requests

from harness.node import ROLE, wait_until
from harness.package import python, zipped

ECHO = {"app.py": "def handler(event, context): return event\n"}


def refused(code, action, **arguments):
    """Calls an operation that must be refused with an error code, and returns the message."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        action(**arguments)
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    return error["Message"]


def test_life_of_a_function(node):
    aws = node.aws
    package = zipped(ECHO)
    reply = aws.create_function(
        FunctionName="life",
        Runtime="python3.11",
        Role=ROLE,
        Handler="app.handler",
        Code={"ZipFile": package},
        Description="lives",
        Timeout=7,
        MemorySize=192,
        Environment={"Variables": {"ONE": "1"}},
        Tags={"team": "x"},
    )
    assert reply["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert reply["State"] == "Pending" and reply["StateReasonCode"] == "Creating"
    assert reply["FunctionArn"] == "arn:aws:lambda:us-east-1:000000000000:function:life"
    assert reply["CodeSize"] == len(package)
    assert reply["CodeSha256"] == base64.b64encode(hashlib.sha256(package).digest()).decode()
    aws.get_waiter("function_active_v2").wait(FunctionName="life", WaiterConfig={"Delay": 1})

    found = aws.get_function(FunctionName="life")
    configuration = found["Configuration"]
    assert configuration["State"] == "Active" and configuration["LastUpdateStatus"] == "Successful"
    assert (configuration["Timeout"], configuration["MemorySize"], configuration["Version"]) == (7, 192, "$LATEST")
    assert configuration["Environment"] == {"Variables": {"ONE": "1"}} and configuration["Description"] == "lives"
    assert requests.get(found["Code"]["Location"], timeout=60).content == package
    assert aws.get_function_configuration(FunctionName="life")["RevisionId"] == configuration["RevisionId"]
    # By its ARN, percent-encoded by the client.
    assert aws.get_function(FunctionName=reply["FunctionArn"])["Configuration"]["FunctionName"] == "life"

    answer = aws.invoke(FunctionName="life", Payload=b'{"n": 1}')
    assert json.load(answer["Payload"]) == {"n": 1}
    assert answer["StatusCode"] == 200 and answer["ExecutedVersion"] == "$LATEST" and "FunctionError" not in answer

    aws.update_function_code(FunctionName="life", ZipFile=zipped({"app.py": "def handler(e, c): return 'new'\n"}))
    aws.get_waiter("function_updated_v2").wait(FunctionName="life", WaiterConfig={"Delay": 1})
    assert json.load(aws.invoke(FunctionName="life", Payload=b"{}")["Payload"]) == "new"
    changed = aws.update_function_configuration(FunctionName="life", Timeout=9, Environment={"Variables": {"TWO": "2"}})
    assert changed["LastUpdateStatus"] == "InProgress"
    aws.get_waiter("function_updated_v2").wait(FunctionName="life", WaiterConfig={"Delay": 1})
    found = aws.get_function_configuration(FunctionName="life")
    assert found["Timeout"] == 9 and found["Environment"] == {"Variables": {"TWO": "2"}} and found["MemorySize"] == 192
    assert found["RevisionId"] != configuration["RevisionId"]

    assert "life" in [one["FunctionName"] for one in aws.list_functions()["Functions"]]
    aws.delete_function(FunctionName="life")
    message = refused("ResourceNotFoundException", aws.get_function, FunctionName="life")
    assert message == "Function not found: arn:aws:lambda:us-east-1:000000000000:function:life"
    refused("ResourceNotFoundException", aws.invoke, FunctionName="life", Payload=b"{}")
    refused("ResourceNotFoundException", aws.delete_function, FunctionName="life")


def test_list_in_pages(node):
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        node.create(ECHO, name=name)
    pages = node.aws.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2})
    found = [one["FunctionName"] for page in pages for one in page["Functions"]]
    assert set(names) <= set(found) and len(found) == len(set(found))
    for name in names:
        node.aws.delete_function(FunctionName=name)


def test_refusals(node):
    aws = node.aws
    function, _ = node.create(ECHO, name="taken")
    good = {"FunctionName": "other", "Runtime": "python3.11", "Role": ROLE, "Handler": "app.handler"}
    code = {"ZipFile": zipped(ECHO)}
    message = refused("ResourceConflictException", aws.create_function, **{**good, "FunctionName": "taken"}, Code=code)
    assert "already exist" in message
    for change in (
        {"Runtime": "python2.7"},
        {"Runtime": "java21"},
        {"Timeout": 0},
        {"MemorySize": 1},
        {"MemorySize": 10**6},
        {"FunctionName": "no spaces"},
        {"FunctionName": "x" * 65},
        {"PackageType": "Image"},
    ):
        with pytest.raises((botocore.exceptions.ClientError, botocore.exceptions.ParamValidationError)) as caught:
            aws.create_function(**{**good, **change}, Code=code)
        if isinstance(caught.value, botocore.exceptions.ClientError):
            response = caught.value.response
            assert 400 <= response["ResponseMetadata"]["HTTPStatusCode"] < 500, (change, response)
            assert response["Error"]["Code"] in ("InvalidParameterValueException", "ValidationException"), (change, response)
    refused("PreconditionFailedException", aws.update_function_code, FunctionName="taken", RevisionId="0" * 8, **code)
    function.delete()


def escape(name):
    return zipped({**ECHO, name: "x"})


def symbolic_link():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", ECHO["app.py"])
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc")
        archive.writestr("link/passwd", "x")
    return buffer.getvalue()


BAD_ZIPS = {
    "empty": b"",
    "no zip": b"this is no zip file",
    "cut short": zipped(ECHO)[:-30],
    "damaged": zipped({"app.py": "x" * 10000}).replace(b"PK\x01\x02", b"PK\x01\x09", 1),
    "parent": escape("../outside.py"),
    "hidden parent": escape("a/../../outside.py"),
    "absolute": escape("/tmp/outside.py"),
    "through a link": symbolic_link(),
}


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_bad_zips(node, name):
    with pytest.raises((botocore.exceptions.ClientError, botocore.exceptions.ParamValidationError)) as caught:
        node.create(BAD_ZIPS[name], name="bad-zip")
    assert caught.value.response["Error"]["Code"] == "InvalidParameterValueException", caught.value
    refused("ResourceNotFoundException", node.aws.get_function, FunctionName="bad-zip")


def test_invocation_types(node):
    function = node.deploy(
        python(
            """
            def handler(event, context):
                print('seen', event)
                return 'done'
            """
        )
    )
    reply = node.aws.invoke(FunctionName=function.name, InvocationType="DryRun", Payload=b"{}")
    assert reply["StatusCode"] == 204 and reply["Payload"].read() == b""
    reply = node.aws.invoke(FunctionName=function.name, InvocationType="Event", Payload=b'"asynchronous"')
    assert reply["StatusCode"] == 202 and reply["Payload"].read() == b""
    wait_until(lambda: any("seen asynchronous" in line for line in function.logs()), "the event has been handled")
    reply = node.aws.invoke(FunctionName=function.name, LogType="Tail", Payload=b'"now"')
    log = base64.b64decode(reply["LogResult"]).decode()
    request_id = reply["ResponseMetadata"]["RequestId"]
    assert f"START RequestId: {request_id} Version: $LATEST" in log and "seen now" in log
    assert f"END RequestId: {request_id}" in log and f"REPORT RequestId: {request_id}\tDuration: " in log
    assert not any("seen {}" in line for line in function.logs())
    message = refused("InvalidRequestContentException", node.aws.invoke, FunctionName=function.name, Payload=b"{no json")
    assert "Could not parse request body into json" in message


def test_payload_limits(node):
    function = node.deploy(
        python(
            """
            def handler(event, context):
                return 'x' * event if isinstance(event, int) else len(event)
            """
        )
    ).ready()
    for path in ("cold", "restore", "fork"):
        assert function.call("y" * (6 * 1024 * 1024 - 100), path) == 6 * 1024 * 1024 - 100
        assert len(function.call(6_000_000, path)) == 6_000_000
        error = function.failure(7_000_000, path)
        assert error["errorType"] == "Function.ResponseSizeTooLarge", error
        assert "Response payload size exceeded maximum allowed payload size (6291556 bytes)." in error["errorMessage"]
    reply = function.invoke("y" * (7 * 1024 * 1024))
    assert reply.status == 413, reply.status


def test_client_context(node):
    function = node.deploy(
        python("def handler(event, context): return context.client_context and context.client_context.custom\n")
    ).ready()
    context = base64.b64encode(json.dumps({"custom": {"k": "v"}}).encode()).decode()
    reply = node.aws.invoke(FunctionName=function.name, ClientContext=context, Payload=b"{}")
    assert json.load(reply["Payload"]) == {"k": "v"}


def test_headers_tell_path_and_stages(node):
    function = node.deploy(ECHO).ready()
    for path in ("cold", "restore", "fork"):
        reply = function.invoke({}, path)
        assert reply.boot == path
        stages = dict(part.strip().split(";dur=") for part in reply.headers["server-timing"].split(","))
        assert stages and all(float(value) >= 0 for value in stages.values()), stages


def test_command_line(node, tmp_path):
    (tmp_path / "app.py").write_text("def handler(event, context):\n    print('logged')\n    return event\n")
    deployed = json.loads(node.cli("deploy", tmp_path, "--name", "by-hand", "--json").stdout)
    assert "by-hand" in json.dumps(deployed)
    assert json.loads(node.cli("invoke", "by-hand", "--payload", '{"a": 1}').stdout.splitlines()[-1]) == {"a": 1}
    assert "by-hand" in node.cli("list").stdout
    assert "by-hand" in [one["FunctionName"] for one in json.loads(node.cli("list", "--json").stdout)]
    described = json.loads(node.cli("describe", "by-hand", "--json").stdout)
    assert described["snapshot"]["state"] == "ready"
    assert "logged" in node.cli("logs", "by-hand").stdout
    node.cli("delete", "by-hand")
    failed = node.cli("describe", "by-hand", check=False)
    assert failed.returncode == 1 and "not found" in failed.stderr.lower()
