"""Prints what must differ between instances that start from one snapshot: randomness of every kind, and clocks."""

import os
import random
import secrets
import ssl
import tempfile
import time
import uuid

# Everything has been used before the snapshot: each generator has state that a careless clone would share.
USED = [random.random(), ssl.RAND_bytes(16), uuid.uuid1(), uuid.uuid4(), secrets.token_hex(), tempfile.mktemp()]
STARTED = {"monotonic": time.monotonic(), "wall": time.time()}


def handler(event, context):
    return {
        "unique": {
            "urandom": os.urandom(16).hex(),
            "uuid4": str(uuid.uuid4()),
            "uuid1": str(uuid.uuid1()),
            "random": random.random(),
            "shuffle": random.sample(range(1000), 10),
            "secrets": secrets.token_hex(16),
            "ssl": ssl.RAND_bytes(16).hex(),
            "tempfile": os.path.basename(tempfile.mktemp()),
        },
        "clocks": {
            "monotonic_before_snapshot": STARTED["monotonic"],
            "monotonic": time.monotonic(),
            "wall_before_snapshot": STARTED["wall"],
            "wall": time.time(),
        },
        "init_was_shared": USED[4],
    }
