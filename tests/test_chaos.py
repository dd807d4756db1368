"""Requests go on while processes of every kind are killed at random: each is answered, rightly or with a clear error.

The schedule (what is asked, what is killed when) follows from a seed. `ROUSE_CHAOS_REQUESTS=10000` makes it a long run,
`ROUSE_CHAOS_SEED` another one.
"""

import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import requests

from harness import leaks, victims
from harness.node import wait_until
from harness.package import python

REQUESTS = int(os.environ.get("ROUSE_CHAOS_REQUESTS", 300))
SEED = int(os.environ.get("ROUSE_CHAOS_SEED", 1))
# The spawner is killed at the end of each of so many requests.
UNTIL_THE_SPAWNER = 2500
AT_A_TIME = 8
# One kill for so many requests, and how often which.
BETWEEN_KILLS = 5
KINDS = {"instance": 6, "init": 3, "blank": 3, "pager": 2, "template": 1}
# Whatever an owner or a client may be told of a process that was killed.
STOPPING = "ServiceUnavailableException 503"
REFUSED = {"ServiceException", "ResourceNotReadyException", "TooManyRequestsException", STOPPING.split()[0]}
FAILED = {"Runtime.ExitError"}

# The spawner keeps so many empty slots beyond what it has lately needed (`MOST_UNCLEAN` in slots.rs), each with
# descriptors of some kinds; snapshots that are stored anew lie in a few more or fewer packs. What leaks grows with the number
# of kills, which are many more.
KEPT = 8
# Anonymous memory that the processes that stay may hold beyond what they held before, MiB: heaps and caches.
KEPT_MIB = 24

PAGE = 4096
PAGES = 2048
SOURCE = """
import hashlib
import os
import random
import time

SEED = int(os.environ["SEED"])
data = bytearray(random.Random(SEED).randbytes(4096 * 2048))

def handler(event, context):
    digest = hashlib.sha256()
    for page in event["pages"]:
        digest.update(data[page * 4096 : (page + 1) * 4096])
        # An instance that is used again puts it back.
        first, data[page * 4096] = data[page * 4096], 0
        time.sleep(event["ms"] / 1000 / len(event["pages"]))
        data[page * 4096] = first
    return {"n": event["n"], "digest": digest.hexdigest()}
"""
FUNCTIONS = ("fresh", "other", "reused")
DATA = {name: random.Random(number).randbytes(PAGE * PAGES) for number, name in enumerate(FUNCTIONS)}

# Of some kinds there may be so many, however few there were: four programs for each function, with and without what its
# working set prepares, each made when it is first needed; and one for the waiting room.
MAY_BE_HELD = {"/memfd:rouse-program (deleted)": len(FUNCTIONS) * 4 * 2 + 1}


class Request:
    """The nth request: all about it follows from the seed."""

    def __init__(self, number):
        randomness = random.Random(f"{SEED} request {number}")
        self.number = number
        self.name = randomness.choice(FUNCTIONS)
        self.pages = [randomness.randrange(PAGES) for _ in range(randomness.randrange(1, 20))]
        self.event = {"n": number, "pages": self.pages, "ms": randomness.choice((0, 0, 2, 10))}
        self.boot = randomness.choice((None, None, None, "restore", "fork"))

    def expected(self):
        data = DATA[self.name]
        digest = hashlib.sha256()
        for page in self.pages:
            digest.update(data[page * PAGE : (page + 1) * PAGE])
        return {"n": self.number, "digest": digest.hexdigest()}

    def outcome(self, function):
        """What kind of answer it got; anything that must not be is an error of the test."""
        reply = function.invoke(self.event, self.boot)
        if reply.status == 200 and reply.error is None:
            assert reply.json == self.expected(), (self.event, reply)
            return "answered"
        if reply.status == 200:
            assert reply.error == "Unhandled", reply
            error = reply.json
            assert error["errorType"] in FAILED and error["errorMessage"].startswith("RequestId: "), (self.event, reply)
            return error["errorType"]
        kind = reply.headers.get("x-amzn-errortype")
        error = reply.json
        assert kind in REFUSED and error["Type"] in ("User", "Service") and error["Message"], (self.event, reply)
        return f"{kind} {reply.status}"


class Chaos:
    """Sends a range of requests, and kills meanwhile."""

    def __init__(self, node, functions):
        self.node = node
        self.functions = functions
        self.begun = 0
        self.changed = threading.Condition()
        self.outcomes = collections.Counter()
        self.killed = collections.Counter()
        self.spawner_is_killed = False

    def request(self, number):
        with self.changed:
            self.begun += 1
            self.changed.notify_all()
        # From then on the node may refuse requests and go away at any time, as it says in its log.
        before = self.spawner_is_killed
        request = Request(number)
        try:
            outcome = request.outcome(self.functions[request.name])
            assert outcome != STOPPING or before or self.spawner_is_killed, f"request {number} found the node stopping"
        except requests.exceptions.ConnectionError:
            assert before or self.spawner_is_killed, f"request {number} got no answer"
            outcome = "cut off with the node"
        with self.changed:
            self.outcomes[outcome] += 1

    def wait_for(self, begun):
        with self.changed:
            self.changed.wait_for(lambda: self.begun >= begun)

    def kill_some(self, first, count):
        randomness = random.Random(f"{SEED} kills {first}")
        for begun in range(BETWEEN_KILLS, count, BETWEEN_KILLS):
            kind = randomness.choices(list(KINDS), list(KINDS.values()))[0]
            which = randomness.random()
            self.wait_for(begun)
            self.kill(kind, which)

    def kill(self, kind, which):
        found = victims.by_kind(self.node)[kind]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[int(which * len(found))], signal.SIGKILL)
                self.killed[kind] += 1

    def run(self, first, count):
        self.begun = 0
        killer = threading.Thread(target=self.kill_some, args=(first, count))
        killer.start()
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(self.request, range(first, first + count)))
        killer.join()

    def kill_the_spawner(self, first, count):
        """In the middle of requests. The node ends by itself, and says why."""
        self.begun = 0
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            sent = [pool.submit(self.request, number) for number in range(first, first + count)]
            self.wait_for(count // 2)
            self.spawner_is_killed = True
            self.kill("spawner", 0)
            status = self.node.process.wait(60)
            for one in sent:
                one.result()
        assert status not in (0, None), status
        assert "the spawner has ended" in self.node.log()
        self.node.process = None
        wait_until(
            lambda: not leaks.leftovers(self.node), lambda: f"nothing is left: {leaks.leftovers(self.node)}", 20
        )
        self.node.start()
        self.spawner_is_killed = False


def holdings(node):
    """What must come back: processes, groups, mounts, namespaces. And descriptors of the processes that stay."""
    held = leaks.held(node)
    pids = staying(node)
    counts = collections.Counter({name: held[name] for name in ("cgroups", "mounts", "namespaces")})
    counts.update(collections.Counter(f"process {comm}" for comm in held["processes"]))
    return counts, leaks.descriptors(pids)


def staying(node):
    """Pids of the processes that are there as long as the node."""
    pids = [node.process.pid, victims.keeper(node), victims.pager(node), *victims.by_kind(node)["spawner"]]
    return [pid for pid in pids if pid]


def memory(node):
    """Anonymous memory of these, MiB."""
    return sum(leaks.anonymous_kib(pid) for pid in staying(node)) / 1024


def growth(node, before):
    """What is held beyond what was held before."""
    (counts, descriptors), (counts_before, descriptors_before) = holdings(node), before
    more = {
        kind: number
        for kind, number in (descriptors - descriptors_before).items()
        if number > KEPT and descriptors[kind] > MAY_BE_HELD.get(kind, 0)
    }
    return {**(counts - counts_before), **more}


def calm(functions, node):
    """The most that is held while every function is called on every path, undisturbed."""
    calls = [(function, boot) for function in functions.values() for boot in (None, "restore", "fork")]
    most = collections.Counter(), collections.Counter()
    for number in range(8):
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            event = {"n": number, "pages": [number], "ms": 2}
            answers = list(pool.map(lambda call: call[0].call(event, call[1]), calls))
        assert all(answer["n"] == number for answer in answers), answers
        most = tuple(one | other for one, other in zip(most, holdings(node), strict=True))
    return most


def test_requests_among_kills(own_node):
    node = own_node(
        # The same number of everything, whatever comes.
        ready_sandboxes=2,
        most_ready_sandboxes=2,
        ready_clones=2,
        keep_alive_s=1,
        drain_timeout_s=5,
        # Less than the functions have: pages go to disk and come back.
        memory_dram_bytes=24 << 20,
        memory_compressed_bytes=8 << 20,
    )
    functions = {}
    for number, name in enumerate(FUNCTIONS):
        environment = {"Variables": {"SEED": str(number)}}
        functions[name] = node.deploy(python(SOURCE), name=name, Environment=environment).ready()
    node.cli("configure", "reused", "--isolation", "instance")

    chaos = Chaos(node, functions)
    for first in range(0, REQUESTS, UNTIL_THE_SPAWNER):
        before, memory_before = calm(functions, node), memory(node)
        count = min(UNTIL_THE_SPAWNER, REQUESTS - first)
        last = min(40, count // 4)
        chaos.run(first, count - last)
        wait_until(lambda: not growth(node, before), lambda: f"no more is held than before: {growth(node, before)}")
        grown = memory(node) - memory_before
        print(f"{growth(node, before)}, {grown:.1f} MiB")
        assert grown < KEPT_MIB, f"{grown:.1f} MiB more are held than before"
        chaos.kill_the_spawner(first + count - last, last)
    print(json.dumps({"killed": chaos.killed, "outcomes": chaos.outcomes}, indent=2))

    assert sum(chaos.outcomes.values()) == REQUESTS
    assert all(chaos.killed[kind] for kind in ("instance", "init", "blank", "pager", "spawner")), chaos.killed
    # Most requests have nothing to do with what was killed.
    assert chaos.outcomes["answered"] > REQUESTS // 2, chaos.outcomes
    for function in functions.values():
        for boot in ("restore", "fork", "cold"):
            assert function.call({"n": 7, "pages": [7], "ms": 0}, boot)["n"] == 7
