"""A runtime client for the tests: plain processes on the host, no sandbox.

With PARKED_PORT it plays the copy of a snapshot: it connects, sends nothing, and reads the answer to a request
that it never made."""
import http.client
import importlib
import json
import os
import socket
import sys

sys.path.insert(0, os.getcwd())
PREFIX = "/2018-06-01/runtime"
host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
connection = http.client.HTTPConnection(host, int(port))
protocol = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start" and os.environ.get("POINT") != "next"


def request(method, path, body=None, headers={}):
    connection.request(method, PREFIX + path, body, headers)
    reply = connection.getresponse()
    return reply.status, reply.headers, reply.read()


def answer(event, headers):
    request_id = headers["Lambda-Runtime-Aws-Request-Id"]
    try:
        result = json.dumps(handler(json.loads(event), dict(headers.items())))
    except Exception as error:
        body = json.dumps({"errorMessage": str(error), "errorType": type(error).__name__, "stackTrace": []})
        request("POST", f"/invocation/{request_id}/error", body)
    else:
        request("POST", f"/invocation/{request_id}/response", result)


# First, as a copy is connected before its first instruction: whatever fails afterwards is told to somebody who listens.
if "PARKED_PORT" in os.environ:
    parked = socket.create_connection(("127.0.0.1", int(os.environ["PARKED_PORT"])))

try:
    module, name = os.environ["_HANDLER"].rsplit(".", 1)
    handler = getattr(importlib.import_module(module), name)
except Exception as error:
    body = json.dumps({"errorMessage": str(error), "errorType": "Runtime.ImportModuleError"})
    request("POST", "/init/error", body, {"Lambda-Runtime-Function-Error-Type": "Runtime.ImportModuleError"})
    sys.exit(1)

if "PARKED_PORT" in os.environ:
    connection.sock = parked
    reply = http.client.HTTPResponse(connection.sock, method="GET")
    reply.begin()
    body = reply.read()
    if not protocol:
        answer(body, reply.headers)
elif protocol:
    request("GET", "/restore/next")
while True:
    _, headers, event = request("GET", "/invocation/next")
    answer(event, headers)
