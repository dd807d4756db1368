"""Threads blocked in bare system calls: none of them may see EINTR, which Python itself would hide by calling again."""

import ctypes
import os
import socket
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129
SYS_FUTEX, SYS_NANOSLEEP, SYS_CLOCK_NANOSLEEP = 202, 35, 230


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class PollFd(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]


results = {}
threads = {}


def blocked(function):
    def run():
        ctypes.set_errno(0)
        results[function.__name__] = function(), ctypes.get_errno()

    threads[function.__name__] = threading.Thread(target=run, daemon=True)
    return function


poll_in, poll_out = os.pipe()
timed_in, timed_out = os.pipe()
select_in, select_out = os.pipe()
read_in, read_out = os.pipe()
epoll = libc.epoll_create1(0)
epoll_in, epoll_out = os.pipe()
endless_epoll = libc.epoll_create1(0)
event = os.eventfd(0)
word = ctypes.c_int(7)
listener = socket.create_server(("127.0.0.1", 0))
lock_file = os.open("/tmp/lock", os.O_CREAT | os.O_RDWR)


class EpollEvent(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


for one in (epoll, endless_epoll):
    assert libc.epoll_ctl(one, 1, epoll_in, ctypes.byref(EpollEvent(1, 99))) == 0


@blocked
def poll_for_ever():
    return libc.poll(ctypes.byref(PollFd(poll_in, 1, 0)), 1, -1)


@blocked
def poll_with_a_timeout():
    return libc.poll(ctypes.byref(PollFd(timed_in, 1, 0)), 1, 3_600_000)


@blocked
def short_poll():
    # Runs out, before or after the snapshot.
    return libc.poll(None, 0, 1500)


@blocked
def read_a_pipe():
    return libc.read(read_in, ctypes.create_string_buffer(8), 8)


@blocked
def read_an_eventfd():
    return libc.read(event, ctypes.create_string_buffer(8), 8)


@blocked
def epoll_wait_for_ever():
    return libc.epoll_wait(endless_epoll, ctypes.byref(EpollEvent()), 1, -1)


@blocked
def epoll_wait_with_a_timeout():
    return libc.epoll_wait(epoll, ctypes.byref(EpollEvent()), 1, 3_600_000)


@blocked
def futex_with_a_timeout():
    return libc.syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAIT_PRIVATE, 7, ctypes.byref(Timespec(3600, 0)), None, 0)


@blocked
def futex_for_ever():
    return libc.syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAIT_PRIVATE, 7, None, None, 0)


@blocked
def nanosleep():
    return libc.syscall(SYS_NANOSLEEP, ctypes.byref(Timespec(1, 500_000_000)), ctypes.byref(Timespec()))


@blocked
def sleep_until():
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 1_500_000_000
    return libc.syscall(SYS_CLOCK_NANOSLEEP, 1, 1, ctypes.byref(Timespec(now // 10**9, now % 10**9)), None)


@blocked
def accept():
    return libc.accept(listener.fileno(), None, None) >= 0


for thread in threads.values():
    thread.start()


def state(thread):
    """The system call that a thread is in."""
    with open(f"/proc/self/task/{thread.native_id}/wchan") as file:
        return file.read()


def handler(_event, context):
    for fd in (poll_out, timed_out, read_out, epoll_out):
        os.write(fd, b"x")
    os.write(event, (1).to_bytes(8, "little"))
    socket.create_connection(listener.getsockname()).close()
    # Two waiters; one may not have been there yet had a thread died.
    woken = 0
    while woken < 2:
        woken += libc.syscall(SYS_FUTEX, ctypes.byref(word), FUTEX_WAKE_PRIVATE, 2, None, None, 0)
        time.sleep(0.001)
    for thread in threads.values():
        thread.join()
    wrong = {name: result for name, result in results.items() if result[1] != 0 or result[0] < 0}
    assert not wrong and len(results) == len(threads), (wrong, results)
    expected = {
        "poll_for_ever": 1, "poll_with_a_timeout": 1, "short_poll": 0, "read_a_pipe": 1, "read_an_eventfd": 8,
        "epoll_wait_for_ever": 1, "epoll_wait_with_a_timeout": 1, "futex_with_a_timeout": 0, "futex_for_ever": 0,
        "nanosleep": 0, "sleep_until": 0, "accept": True,
    }
    assert {name: result[0] for name, result in results.items()} == expected, results
    return "ok"
