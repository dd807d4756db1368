"""A real `rouse serve`, and the functions deployed on it."""

import base64
import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
import urllib.parse
import uuid

import boto3
import botocore.config
import requests

from .package import zipped

ROUSE = os.path.abspath(os.environ.get("ROUSE_BIN", "target/debug/rouse"))
ROLE = "arn:aws:iam::000000000000:role/test"
# The boot paths that a snapshot gives, and the one without.
PATHS = ("cold", "restore", "fork")
# Patience, not a measurement: what is waited for this long has failed.
PATIENCE = int(os.environ.get("ROUSE_TEST_PATIENCE", 60))


def wait_until(condition, what, patience=PATIENCE):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain until {what() if callable(what) else what}")
        time.sleep(0.02)


class Reply:
    """The answer to an invocation."""

    def __init__(self, response):
        self.status = response.status_code
        self.headers = response.headers
        self.body = response.content
        self.error = response.headers.get("x-amz-function-error")
        self.boot = response.headers.get("x-rouse-boot")
        self.log = base64.b64decode(response.headers.get("x-amz-log-result", "")).decode(errors="replace")

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<Reply {self.status} {self.boot} {self.error} {self.body[:2000]!r} {self.log!r}>"


class Function:
    """A function that has been deployed."""

    def __init__(self, node, name):
        self.node = node
        self.name = name

    def invoke(self, event=None, boot=None, body=None, **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if boot:
            sent["x-rouse-boot"] = boot
        payload = json.dumps(event).encode() if body is None else body
        path = f"/2015-03-31/functions/{urllib.parse.quote(self.name, safe='')}/invocations"
        return Reply(requests.post(self.node.endpoint + path, data=payload, headers=sent, timeout=PATIENCE))

    def call(self, event=None, boot=None):
        """The result of an invocation that must succeed, on the path asked for."""
        reply = self.invoke(event, boot, x_amz_log_type="Tail")
        assert reply.status == 200 and reply.error is None, reply
        if boot:
            assert reply.boot == boot, reply
        return reply.json

    def failure(self, event=None, boot=None):
        """The error object of an invocation that must end with a function error."""
        reply = self.invoke(event, boot, x_amz_log_type="Tail")
        assert reply.status == 200 and reply.error == "Unhandled", reply
        return reply.json

    def describe(self):
        response = requests.get(f"{self.node.endpoint}/rouse/v1/functions/{self.name}", timeout=PATIENCE)
        assert response.status_code == 200, response.text
        return response.json()

    def snapshot(self):
        """The description of the snapshot, once it is known whether there is one."""
        return wait_until(
            lambda: (lambda found: found if found["state"] != "pending" else None)(self.describe()["snapshot"]),
            lambda: f"the snapshot is no longer pending: {self.describe()['snapshot']}",
        )

    def parent(self):
        """The template of which its snapshot is a delta, as described; None if it is of none."""
        return self.describe()["snapshot"].get("parent")

    def ready(self):
        """Waits for the snapshot, which must exist and be forkable."""
        snapshot = self.snapshot()
        assert snapshot["state"] == "ready", snapshot
        assert snapshot.get("fork_problem") is None, snapshot
        return self

    def logs(self, tail=1000):
        response = requests.get(f"{self.node.endpoint}/rouse/v1/functions/{self.name}/logs?tail={tail}", timeout=PATIENCE)
        return [json.loads(line)["message"] for line in response.text.splitlines() if line]

    def wait_active(self):
        def state():
            found = self.node.aws.get_function_configuration(FunctionName=self.name)
            return found if found["State"] != "Pending" and found["LastUpdateStatus"] != "InProgress" else None

        return wait_until(state, f"{self.name} is no longer pending")

    def delete(self):
        self.node.aws.delete_function(FunctionName=self.name)


class Node:
    """`rouse serve` on a state directory of its own."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.state = folder / "state"
        self.cgroup = f"rouse-test-{uuid.uuid4().hex[:12]}"
        self.settings = {"listen": "127.0.0.1:0", "state_dir": self.state, "cgroup": self.cgroup, **settings}
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.process = None
        self.endpoint = None
        self.aws = None
        self.numbers = itertools.count(1)

    def start(self):
        assert self.process is None
        with contextlib.suppress(FileNotFoundError):
            # What a killed node has left says where that one listened.
            (self.state / "endpoint").unlink()
        arguments = [ROUSE, "serve"]
        for name, value in self.settings.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        with open(self.folder / "node.log", "ab") as log:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.temporary)},
                start_new_session=True,
            )
        wait_until(self.listening, lambda: f"the node listens:\n{self.log()[-4000:]}")
        self.aws = boto3.client(
            "lambda",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=botocore.config.Config(retries={"total_max_attempts": 1}, read_timeout=PATIENCE),
        )
        return self

    def listening(self):
        assert self.process.poll() is None, f"the node ended with {self.process.returncode}:\n{self.log()[-4000:]}"
        try:
            self.endpoint = (self.state / "endpoint").read_text().strip()
        except FileNotFoundError:
            return False
        return bool(self.endpoint)

    def log(self):
        return (self.folder / "node.log").read_text(errors="replace")

    def stop(self):
        """Ends the node as an operator would; it must agree."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.process = None
        assert status == 0, f"the node ended with {status}:\n{self.log()[-4000:]}"

    def kill(self):
        """Ends the node without a warning."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.process = None

    def close(self):
        if self.process is not None:
            self.stop()

    def create(self, package, runtime="python3", handler="app.handler", name=None, **members):
        """CreateFunction; `package` is a zip's bytes or a mapping of names to contents."""
        name = name or f"f{next(self.numbers)}"
        code = package if isinstance(package, bytes) else zipped(package)
        members = {"Timeout": 30, "MemorySize": 512, **members}
        reply = self.aws.create_function(
            FunctionName=name, Runtime=runtime, Role=ROLE, Handler=handler, Code={"ZipFile": code}, **members
        )
        return Function(self, name), reply

    def deploy(self, package, runtime="python3", handler="app.handler", name=None, **members):
        """CreateFunction, and waits until the function is active."""
        function, _ = self.create(package, runtime, handler, name, **members)
        configuration = function.wait_active()
        assert configuration["State"] == "Active", configuration
        return function

    def cli(self, *arguments, check=True):
        result = subprocess.run(
            [ROUSE, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "ROUSE_ENDPOINT": self.endpoint, "NO_COLOR": "1"},
            timeout=PATIENCE,
        )
        assert not check or result.returncode == 0, result
        return result
