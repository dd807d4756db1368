"""A thread stopped deep in a recursion, and the main stack grown far."""

import sys
import threading

sys.setrecursionlimit(20000)
threading.stack_size(64 << 20)
go, done = threading.Event(), threading.Event()
total = []


def descend(depth):
    if depth == 0:
        go.wait()
        return 0
    return depth + descend(depth - 1)


def run():
    total.append(descend(8000))
    done.set()


thread = threading.Thread(target=run, daemon=True)
thread.start()


def touch(depth):
    # `sorted` puts a C frame between the Python frames, so that the C stack itself grows.
    return depth and sorted([depth], key=lambda _: touch(depth - 1)) and depth


assert touch(300) == 300


def handler(event, context):
    go.set()
    done.wait()
    assert total == [8000 * 8001 // 2]
    assert touch(1200) == 1200
    return "ok"
