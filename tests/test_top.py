"""`rouse top`: once, as JSON, and on a terminal."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import termios
import threading

import pyte
import pytest

from harness.node import PATIENCE, ROUSE, wait_until
from harness.package import python

ECHO = python("def handler(event, context): return event")


@pytest.fixture
def busy(node):
    """A function that is called all the time."""
    function = node.deploy(ECHO, name="busy").ready()
    over = threading.Event()

    def call():
        while not over.is_set():
            function.call({})

    caller = threading.Thread(target=call)
    caller.start()
    yield function
    over.set()
    caller.join()
    function.delete()


def test_one_interval_as_text_and_as_json(node, busy):
    page = node.cli("top", "--once").stdout
    assert "calls/s" in page and "busy" in page and "sandboxes ready" in page, page
    rates = json.loads(node.cli("top", "--once", "--json").stdout)
    [function] = rates["functions"]
    assert (function["name"], function["version"]) == ("busy", "$LATEST")
    assert function["calls_per_s"] > 0 and function["errors_per_s"] == 0
    assert 0 < function["p50_ms"] <= function["p99_ms"]
    assert sum(function["paths"].values()) == pytest.approx(1)
    assert rates["calls_per_s"] == pytest.approx(function["calls_per_s"])
    assert rates["requests"]["limit"] == 256
    assert rates["tiers"]["disk"]["used"] > 0


def test_json_goes_on_until_it_is_ended(node):
    command = [ROUSE, "top", "--json", "--endpoint", node.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
        lines = [json.loads(top.stdout.readline()) for _ in range(2)]
        top.terminate()
    assert lines[0]["uptime_s"] < lines[1]["uptime_s"]


def test_a_node_that_is_not_there_is_said():
    result = subprocess.run(
        [ROUSE, "top", "--once", "--endpoint", "http://127.0.0.1:1"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 1 and "error:" in result.stderr, result


class Terminal:
    """A program on a terminal of 120 columns."""

    def __init__(self, *command):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.descriptor, self.theirs = ours, theirs
        self.bytes = b""
        self.screen = pyte.Screen(120, 30)
        self.stream = pyte.ByteStream(self.screen)
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)

    def text(self):
        """What is on the screen now."""
        while select.select([self.descriptor], [], [], 0)[0]:
            found = os.read(self.descriptor, 65536)
            self.bytes += found
            self.stream.feed(found)
        return "\n".join(self.screen.display)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)
        os.close(self.theirs)


def test_on_a_terminal(node, busy):
    terminal = Terminal(ROUSE, "top", "--endpoint", node.endpoint)
    try:
        wait_until(lambda: "fork 100%" in terminal.text() or "restore" in terminal.text(), terminal.text)
        shown = terminal.text()
        assert "calls/s" in shown and "sandboxes" in shown, shown
        os.write(terminal.descriptor, b"j")
        os.write(terminal.descriptor, b"q")
        wait_until(lambda: terminal.process.poll() is not None or terminal.text() is None, "it ends")
        terminal.text()
        assert terminal.process.returncode == 0
        # The screen and the terminal's modes are as they were.
        assert terminal.bytes.rindex(b"\x1b[?1049l") > terminal.bytes.rindex(b"\x1b[?1049h")
        assert termios.tcgetattr(terminal.theirs) == terminal.before
    finally:
        terminal.close()
