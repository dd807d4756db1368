"""Does harm to itself, and to those beside it if it can, for as many seconds as the event says."""
import os
import sys
import time


def fork(end):
    me = os.getpid()
    while time.monotonic() < end:
        try:
            # Children do the same.
            os.fork()
        except OSError:
            pass
    if os.getpid() != me:
        os._exit(0)


def memory(end):
    held = []
    while time.monotonic() < end:
        held.append(bytearray(1 << 20))


def disk(end):
    chunk = bytes(1 << 20)
    while time.monotonic() < end:
        try:
            with open("/tmp/filler", "ab", 0) as file:
                file.write(chunk)
        except OSError:
            os.unlink("/tmp/filler")


def output(end):
    lines = ("x" * 1000 + "\n") * 100
    while time.monotonic() < end:
        sys.stdout.write(lines)


def handler(event, context):
    globals()[event["do"]](time.monotonic() + event["seconds"])
    return event["do"]
