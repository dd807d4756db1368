"""Threads blocked in what Python blocks in, all of which go on after a restore."""

import os
import queue
import select
import socket
import threading
import time

requests, answers = queue.Queue(), queue.Queue()
woken = threading.Event()
gate = threading.Lock()
condition = threading.Condition()
poll_in, poll_out = os.pipe()
ours, theirs = socket.socketpair()
ticks = 0
state = {}


def from_queue():
    while True:
        answers.put(("queue", requests.get() * 2))


def from_event():
    woken.wait()
    answers.put(("event", threading.get_ident() == state["ident"]))


def from_lock():
    with gate:
        answers.put(("lock", True))


def from_condition():
    with condition:
        # A timeout far away: an absolute time in a futex that must not have passed.
        answers.put(("condition", condition.wait(3600)))


def from_poll():
    poll = select.poll()
    poll.register(poll_in, select.POLLIN)
    answers.put(("poll", poll.poll() == [(poll_in, select.POLLIN)] and os.read(poll_in, 9)))


def from_socket():
    answers.put(("socket", theirs.recv(9)))


def ticking():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1


gate.acquire()
threads = [
    threading.Thread(target=target, name=target.__name__, daemon=True)
    for target in (from_queue, from_event, from_lock, from_condition, from_poll, from_socket, ticking)
]
for thread in threads:
    thread.start()
state["ident"] = threads[1].ident
natives = [thread.native_id for thread in threads]
while ticks == 0:
    time.sleep(0.001)


def handler(event, context):
    before = ticks
    requests.put(21)
    woken.set()
    gate.release()
    with condition:
        condition.notify()
    os.write(poll_out, b"polled")
    ours.send(b"received")
    got = dict(answers.get() for _ in range(6))
    assert got == {
        "queue": 42, "event": True, "lock": True, "condition": True, "poll": b"polled", "socket": b"received",
    }, got
    while ticks == before:
        time.sleep(0.001)
    assert all(thread.is_alive() for thread in threads if thread.name in ("from_queue", "ticking"))
    # Thread ids are the kernel's: they are the same as before.
    tasks = {int(name) for name in os.listdir("/proc/self/task")}
    assert {natives[0], natives[-1]} <= tasks, (natives, tasks)
    # The others may be ending.
    names = {open(f"/proc/self/task/{tid}/comm").read().strip() for tid in (natives[0], natives[-1])}
    assert all(names), names
    return "ok"
