"""Functions that fail in every way they can, and what the caller is told."""

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness import leaks
from harness.node import PATHS, wait_until
from harness.package import python


@pytest.mark.parametrize(
    "files, handler, error_type, message",
    [
        ({"other.py": ""}, "app.handler", "Runtime.ImportModuleError", "Unable to import module 'app'"),
        ({"app.py": ""}, "app.handler", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'app'"),
        ({"app.py": "def"}, "app.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'app'"),
        ({"app.py": "1 / 0"}, "app.handler", "ZeroDivisionError", "division by zero"),
        ({"app.py": "import sys; sys.exit(3)"}, "app.handler", "Runtime.ExitError", "exit status 3"),
        ({"app.py": "import os; os.kill(os.getpid(), 9)"}, "app.handler", "Runtime.ExitError", "signal: killed"),
    ],
    ids=["no module", "no handler", "syntax", "exception", "exit", "killed"],
)
def test_init_that_fails(node, files, handler, error_type, message):
    function, _ = node.create(files, handler=handler)
    function.wait_active()
    snapshot = function.snapshot()
    assert snapshot["state"] == "failed" and snapshot["reason"], snapshot
    error = function.failure()
    assert error["errorType"] == error_type and message in error["errorMessage"], error


def test_provided_without_bootstrap(node):
    function, _ = node.create({"other": "x"}, "provided", "x")
    function.wait_active()
    error = function.failure()
    assert error["errorType"] == "Runtime.InvalidEntrypoint", error


def test_init_that_forks(node):
    """Children of an init that are gone by its end are no obstacle; their output is the function's."""
    function = node.deploy(
        python(
            """
            import os
            for _ in range(5):
                if os.fork() == 0:
                    print('from a child', flush=True)
                    os._exit(0)
            for _ in range(5):
                os.wait()
            def handler(event, context): return 'served'
            """
        )
    ).ready()
    assert all(function.call({}, path) == "served" for path in PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_timeout(node, path):
    function = deploy_once(node, "timeout", "import time\ndef handler(event, context): time.sleep(event)\n", Timeout=1)
    error = function.failure(3600, path)
    assert error["errorType"] == "Sandbox.Timedout", error
    assert error["errorMessage"].endswith("Error: Task timed out after 1.00 seconds"), error
    # The next one is not affected; on a slow machine its own second may be over.
    answer = wait_until(lambda: (lambda reply: reply if reply.error is None else None)(function.invoke(0, path)), "it answers")
    assert (answer.status, answer.json, answer.boot) == (200, None, path), answer


@pytest.mark.parametrize("path", PATHS)
def test_end_of_the_process(node, path):
    function = deploy_once(
        node,
        "ends",
        """
        import os, threading
        def handler(event, context):
            if event == 'exit':
                os._exit(4)
            if event == 'kill':
                os.kill(os.getpid(), 9)
            if event == 'abort':
                os.abort()
            if event == 'crash':
                import ctypes
                ctypes.string_at(0)
            return 'alive'
        """,
    )
    for event, text in (
        ("exit", "exit status 4"),
        ("kill", "signal: killed"),
        ("abort", "signal: aborted"),
        ("crash", "signal: segmentation fault"),
    ):
        error = function.failure(event, path)
        assert error["errorType"] == "Runtime.ExitError" and text in error["errorMessage"], error
        assert error["errorMessage"].startswith("RequestId: "), error
    assert function.call("", path) == "alive"


@pytest.mark.parametrize("path", PATHS)
def test_out_of_memory(node, path):
    function = deploy_once(
        node, "hungry", "def handler(event, context): return len(bytearray(b'x') * event)\n", MemorySize=128
    )
    error = function.failure(1 << 30, path)
    # Python may see the limit itself, if the kernel refuses instead of killing.
    assert error["errorType"] in ("Runtime.ExitError", "Runtime.OutOfMemory", "MemoryError"), error
    assert function.call(10, path) == 10


@pytest.mark.parametrize("path", PATHS)
def test_full_tmp(node, path):
    function = deploy_once(
        node,
        "writer",
        """
        import errno
        def handler(event, context):
            try:
                with open('/tmp/file', 'wb') as file:
                    for _ in range(event):
                        file.write(bytes(1 << 20))
            except OSError as error:
                return errno.errorcode[error.errno]
            return 'written'
        """,
        MemorySize=2048,
        EphemeralStorage={"Size": 512},
    )
    assert function.call(1000, path) == "ENOSPC"
    assert function.call(10, path) == "written"


@pytest.mark.parametrize("path", PATHS)
def test_too_many_processes(node, path):
    function = deploy_once(
        node,
        "forks",
        """
        import os, time
        def handler(event, context):
            children = []
            try:
                while len(children) < 5000:
                    pid = os.fork()
                    if pid == 0:
                        time.sleep(1000)
                    children.append(pid)
            except OSError as error:
                return error.strerror
            return 'endless'
        """,
    )
    assert function.call({}, path) == "Resource temporarily unavailable"


@pytest.mark.parametrize("path", PATHS)
def test_killed_in_the_middle(node, path):
    """Somebody on the host kills the function while it works."""
    function = deploy_once(
        node,
        "victim",
        """
        import time
        def handler(event, context):
            if event:
                print('ready to die', event, flush=True)
                time.sleep(1000)
            return 'alive'
        """,
    )
    answers = []
    mark = f"{path}-mark"
    thread = threading.Thread(target=lambda: answers.append(function.failure(mark, path)))
    thread.start()
    wait_until(lambda: any(f"ready to die {mark}" in line for line in function.logs()), "the function works")

    def victim():
        for pid, _ in leaks.processes(node):
            with contextlib.suppress(OSError):
                arguments = open(f"/proc/{pid}/cmdline").read()
                inside = open(f"/proc/{pid}/status").read().split("NSpid:")[1].split("\n")[0].split()
                call = open(f"/proc/{pid}/syscall").read().split()[0]
                # Only the one at work has a sleeping main thread (clock_nanosleep, nanosleep); idle ones are parked in a read.
                if "bootstrap.py" in arguments and inside[-1] == "2" and call in ("230", "35"):
                    return pid
        return None

    # It comes to its sleep after it has said so.
    os.kill(wait_until(victim, "it sleeps"), signal.SIGKILL)
    thread.join()
    assert answers[0]["errorType"] == "Runtime.ExitError" and "signal: killed" in answers[0]["errorMessage"], answers
    assert function.call("", path) == "alive"


def test_concurrent_invocations_are_separate(node):
    function = deploy_once(node, "many", "import os\ndef handler(event, context): return [event, os.urandom(8).hex()]\n")
    for path in ("restore", "fork"):
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda number: function.call(number, path), range(64)))
        assert [answer[0] for answer in answers] == list(range(64))
        assert len({answer[1] for answer in answers}) == 64


def test_nothing_is_held_by_functions_that_are_gone(node):
    """After all of the above."""
    for function in DEPLOYED.values():
        function.delete()
    for one in node.aws.list_functions()["Functions"]:
        node.aws.delete_function(FunctionName=one["FunctionName"])
    wait_until(
        lambda: leaks.held(node)["code"] == [] and {"python3", "node"}.isdisjoint(leaks.held(node)["processes"]),
        lambda: f"nothing is held: {leaks.held(node)}",
    )
    assert leaks.temporary(node) == []


DEPLOYED = {}


def deploy_once(node, name, source, **members):
    if name not in DEPLOYED:
        DEPLOYED[name] = node.deploy(python(source), name=name, **members)
    return DEPLOYED[name].ready()
