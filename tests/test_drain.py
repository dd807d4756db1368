"""The node is told to end while requests run, wait and come."""

import json
import signal
import threading

import requests

from harness import leaks
from harness.node import PATIENCE, wait_until
from harness.package import python

HANDLER = """
import time
def handler(event, context):
    print('begun', event['n'], flush=True)
    time.sleep(event.get('sleep', 0))
    print('finished', event['n'], flush=True)
    return event['n']
"""


class Call(threading.Thread):
    def __init__(self, function, event):
        super().__init__(daemon=True)
        self.function, self.event, self.reply, self.error = function, event, None, None
        self.start()

    def run(self):
        try:
            self.reply = self.function.invoke(self.event)
        except requests.RequestException as error:
            self.error = error


def begun(function, n):
    wait_until(lambda: f"begun {n}" in function.logs(), lambda: f"call {n} has begun: {function.logs()}")


def test_what_runs_is_finished_and_what_waits_is_told_to_go_elsewhere(own_node):
    node = own_node(max_concurrency=1, drain_timeout_s=PATIENCE)
    function = node.deploy(python(HANDLER), name="drained", Timeout=60).ready()
    running = Call(function, {"n": 1, "sleep": 3})
    begun(function, 1)
    waiting = Call(function, {"n": 2})
    wait_until(lambda: function.describe()["serving"]["waiting"] == 1, "the second call waits")
    node.process.send_signal(signal.SIGTERM)
    waiting.join()
    assert waiting.reply.status == 503, waiting.reply
    assert waiting.reply.headers["x-amzn-errortype"] == "ServiceUnavailableException"
    assert waiting.reply.headers["retry-after"] == "1"
    running.join()
    assert running.reply.status == 200 and running.reply.json == 1, running.reply
    assert node.process.wait(PATIENCE) == 0
    node.process = None


def test_the_deadline_ends_what_does_not_end(own_node):
    node = own_node(drain_timeout_s=1)
    function = node.deploy(
        python(
            """
            import signal, time
            def handler(event, context):
                for number in range(1, 32):
                    if number not in (signal.SIGKILL, signal.SIGSTOP):
                        signal.signal(number, signal.SIG_IGN)
                print('begun 1', flush=True)
                while True:
                    time.sleep(1000)
            """
        ),
        name="deaf",
        Timeout=900,
    ).ready()
    running = Call(function, {})
    begun(function, 1)
    node.stop()
    running.join()
    assert running.error is not None or running.reply.status >= 500, running.reply
    wait_until(lambda: not leaks.processes(node), lambda: f"nobody is left: {leaks.processes(node)}")
    assert "requests still run after the drain timeout" in node.log()


def test_events_that_wait_are_delivered_after_the_restart(own_node):
    node = own_node(max_async_concurrency=1, drain_timeout_s=PATIENCE)
    function = node.deploy(python(HANDLER), name="later", Timeout=60).ready()
    for n, sleep in ((1, 2), (2, 0), (3, 0)):
        event = json.dumps({"n": n, "sleep": sleep}).encode()
        node.aws.invoke(FunctionName="later", InvocationType="Event", Payload=event)
    begun(function, 1)
    node.stop()
    node.start()
    wait_until(
        lambda: all(f"finished {n}" in function.logs() for n in (1, 2, 3)),
        lambda: f"all are handled: {function.logs()}",
    )
    # The one that ran was waited for, so that nobody saw it twice.
    assert [line for line in function.logs() if line == "begun 1"] == ["begun 1"]
