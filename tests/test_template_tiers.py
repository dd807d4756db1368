"""A language template's memory moves while functions that are made of it run, and they stay right."""

import os
import signal
import threading

import pytest
import requests

from harness import victims
from harness.metrics import Scrape
from harness.node import Reply, wait_until
from harness.package import python
from harness.tiers import MIB, place, tiers

# Everything that the template has brought along and that does not change: the code of all functions.
CODE = python(
    """
    import argparse
    import base64
    import collections
    import datetime
    import decimal
    import email.message
    import hashlib
    import http.client
    import inspect
    import json
    import logging
    import random
    import re
    import sys
    import types
    import urllib.request

    # What a template has loaded shows up once it is imported.
    OWNERS = [vars(module) for name, module in sorted(sys.modules.items())]
    OWNERS += [vars(one) for owner in OWNERS[:] for one in list(owner.values()) if isinstance(one, type)]
    FOUND = [one for owner in OWNERS for one in list(owner.values()) if isinstance(one, types.FunctionType)]
    CODES = [one.__code__ for one in FOUND]
    assert len(CODES) > 500, len(CODES)

    def digest():
        state = hashlib.blake2b()
        for code in CODES:
            state.update(code.co_code)
            state.update(repr((code.co_names, code.co_varnames)).encode())
        return state.hexdigest()

    EXPECTED = digest()

    def handler(event, context):
        rounds = (event or {}).get("rounds", 1)
        done = 0
        while done < rounds:
            assert digest() == EXPECTED
            done += 1
            if rounds > 1:
                print("round", done, flush=True)
        return [len(CODES), EXPECTED]
    """
)
FOREVER = 1 << 40


def deploy(node, name):
    function = node.deploy(CODE, name=name, Timeout=600)
    function.snapshot()
    assert function.parent() is not None, function.describe()
    return function


def template(node):
    [found] = tiers(node)["templates"]
    return found


def wait_for_template(node, condition, what):
    return wait_until(
        lambda: (lambda found: found if condition(found) else None)(template(node)),
        lambda: f"the template {what}: {template(node)}",
    )


def evicted(node):
    return Scrape(node.endpoint).value("rouse_pager_evicted_pages_total")


def rounds(function):
    """The number of the last one."""
    lines = [line.split() for line in function.logs(20)]
    return max([int(line[1]) for line in lines if line[:1] == ["round"]], default=0)


class Running:
    """An instance that compares for as long as it lives."""

    def __init__(self, function, boot):
        self.function = function
        self.reply = None
        self.thread = threading.Thread(target=self.run, args=(boot,))
        self.thread.start()
        self.goes_on()

    def run(self, boot):
        path = f"/2015-03-31/functions/{self.function.name}/invocations"
        sent = {"x-rouse-boot": boot}
        # It takes as long as it takes: no limit.
        response = requests.post(self.function.node.endpoint + path, json={"rounds": FOREVER}, headers=sent)
        self.reply = Reply(response)

    def goes_on(self):
        """Everything was compared twice from now on, so once from beginning to end."""
        wanted = rounds(self.function) + 2
        wait_until(
            lambda: self.reply is not None or rounds(self.function) >= wanted,
            lambda: f"{rounds(self.function)} rounds of {wanted}",
        )
        assert self.reply is None, self.reply

    def end(self):
        for pid in victims.by_kind(self.function.node)["instance"]:
            os.kill(pid, signal.SIGKILL)
        self.thread.join()
        assert "AssertionError" not in str(self.reply), self.reply


def test_a_template_sleeps_and_wakes_while_its_functions_run(own_node):
    node = own_node(language_templates="true", memory_idle_s=1)
    first, second = (deploy(node, name) for name in ("first", "second"))
    answers = [function.call({}) for function in (first, second)]
    # Nobody is called: neither functions nor the template hold memory.
    slept = wait_for_template(node, lambda found: found["residency"] == "loaded" and found["dram_bytes"] < 2 * MIB, "sleeps")
    assert slept["tier"] == "disk" and slept["pages"] > 1000, slept
    running = Running(first, "restore")
    # Its function is idle again by now: the template's pages go, and come back to who runs.
    taken = evicted(node)
    wait_until(
        lambda: evicted(node) > taken + 500,
        lambda: f"pages of the template are taken out: {template(node)}",
    )
    running.goes_on()
    # Another function brings all of it back, while that one runs.
    wait_until(
        lambda: second.call({}) == answers[1] and template(node)["residency"] == "resident",
        lambda: f"the template wakes: {template(node)}",
    )
    running.goes_on()
    assert second.call({}, "fork") == answers[1]
    running.goes_on()
    running.end()
    assert first.call({}) == answers[0]


@pytest.mark.parametrize("boot", ["restore", "fork"])
def test_a_template_moves_to_far_memory_and_back_while_its_functions_run(own_node, tmp_path, boot):
    far = tmp_path.parent / f"{tmp_path.name}-far"
    far.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=300m", "far", str(far)]
    assert os.spawnlp(os.P_WAIT, mounted[0], *mounted) == 0
    try:
        # Too little for the template, enough for what functions have of their own.
        settings = {"memory_dram_bytes": 9 * MIB, "memory_compressed_bytes": 0, "memory_far_dir": str(far)}
        node = own_node(language_templates="true", **settings)
        first, second = (deploy(node, name) for name in ("first", "second"))
        answers = [function.call({}) for function in (first, second)]
        running = Running(first, boot)
        wait_until(
            lambda: second.call({}) == answers[1] and template(node)["tier"] == "far",
            lambda: f"the template is on far memory: {tiers(node)}",
        )
        running.goes_on()
        for _ in range(3):
            assert second.call({}, "fork") == answers[1]
        other = Running(second, "restore")
        other.goes_on()
        # Far memory is taken away: everything comes from elsewhere, for who starts now.
        assert os.spawnlp(os.P_WAIT, "umount", "umount", "-l", str(far)) == 0
        wait_for_template(node, lambda found: found["tier"] != "far", "leaves far memory")
        running.goes_on()
        other.goes_on()
        assert [function.call({}) for function in (first, second)] == answers
        running.end()
        other.end()
    finally:
        if os.path.ismount(far):
            os.spawnlp(os.P_WAIT, "umount", "umount", "-l", str(far))


def test_damage_in_a_template_that_slept_is_noticed(own_node):
    """Pages come from the template's packs again, and what is damaged there reaches no function."""
    node = own_node(language_templates="true", memory_idle_s=1)
    function = deploy(node, "first")
    answer = function.call({})
    wait_for_template(node, lambda found: found["residency"] == "loaded" and found["dram_bytes"] < 2 * MIB, "sleeps")
    wait_until(lambda: place(function)["residency"] == "stored", lambda: f"it sleeps: {place(function)}")
    for path in (node.state / "packs").iterdir():
        with open(path, "r+b") as file:
            length = file.seek(0, os.SEEK_END)
            for offset in range(length // 3, length - 4096, 4096):
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 0x10]))
    reply = function.invoke({})
    # Refused, or started from nothing, but never wrong.
    assert reply.status == 500 or (reply.error is None and reply.boot == "cold"), (reply, answer)
    wait_until(lambda: function.invoke({}).status == 200, lambda: f"it is served: {function.describe()['snapshot']}")
