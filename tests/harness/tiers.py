"""Functions whose memory is worth moving, and where the node says that it is."""

import contextlib
import os
import random
import stat
import threading
from pathlib import Path

import requests

from .node import PATIENCE, wait_until
from .package import python

MIB = 1 << 20

# 64 MiB of which every page is another one, and half can be made smaller.
DATA = python(
    """
    import hashlib
    import random
    import os

    SEED = int(os.environ["SEED"])
    PAGES = 16384
    bits = random.Random(SEED)
    data = bytearray().join(b"%8d" % page + bits.randbytes(2040) + bytes(2048) for page in range(PAGES))
    expected = hashlib.blake2b(data).hexdigest()
    # The same every time, and made without looking at the data again.
    words = [int.from_bytes(data[page * 4096:page * 4096 + 8], "little") for page in range(PAGES)]

    def handler(event, context):
        event = event or {}
        if event.get("all"):
            assert hashlib.blake2b(data).hexdigest() == expected
        for page in event.get("pages", ()):
            assert int.from_bytes(data[page * 4096:page * 4096 + 8], "little") == words[page], page
        for page in event.get("write", ()):
            data[page * 4096] ^= 1
        if "signal" in event:
            os.kill(os.getpid(), event["signal"])
        if event.get("spin"):
            print("spinning", flush=True)
        while event.get("spin"):
            assert hashlib.blake2b(data).hexdigest() == expected
        return [SEED, expected]
    """
)


def tiers(node):
    response = requests.get(f"{node.endpoint}/rouse/v1/tiers", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()


def place(function):
    [found] = [place for place in tiers(function.node)["functions"] if place["name"].split(":")[0] == function.name]
    return found


def wait_for(function, residency):
    return wait_until(
        lambda: (lambda found: found if found["residency"] == residency else None)(place(function)),
        lambda: f"{function.name} is {residency}: {place(function)}",
    )


def deploy(node, number):
    function = node.deploy(DATA, name=f"data{number}", Environment={"Variables": {"SEED": str(number)}}, MemorySize=512, Timeout=60)
    function.snapshot()
    return function


def call_concurrently(functions, rounds, whole=False, seed=1):
    """Calls all functions at the same time, and checks each answer."""
    wrong = []

    def run(number, function):
        randomness = random.Random(seed * 1000 + number)
        expected = None
        for _ in range(rounds):
            pages = [randomness.randrange(16384) for _ in range(50)]
            try:
                answer = function.call({"all": whole, "pages": pages, "write": pages[:5]})
                expected = expected or answer
                assert answer == expected
            except BaseException as error:
                wrong.append((function.name, repr(error)))
                return

    threads = [threading.Thread(target=run, args=(number, function)) for number, function in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def files_of(node, directory):
    """The node's descriptors of files in a directory."""
    device = os.stat(directory).st_dev
    found = []
    for link in Path(f"/proc/{node.process.pid}/fd").iterdir():
        # Others come and go.
        with contextlib.suppress(OSError):
            status = os.stat(link)
            if status.st_dev == device and stat.S_ISREG(status.st_mode):
                found.append(link)
    return found
