import os

# With the interpreter itself, 64 MiB resident. Random, so that no page is like another.
DATA = [os.urandom(1 << 20) for _ in range(50)]


def handler(event, context):
    return {"n": event["n"], "bytes": sum(map(len, DATA))}
