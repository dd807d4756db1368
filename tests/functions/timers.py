"""Interval timers and POSIX timers."""

import ctypes
import signal
import time

libc = ctypes.CDLL(None, use_errno=True)
counts = {signal.SIGALRM: 0, signal.SIGRTMIN + 3: 0}


def count(number, frame):
    counts[number] += 1


for number in counts:
    signal.signal(number, count)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
signal.signal(signal.SIGPROF, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_PROF, 1000, 2000)


class Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Sigevent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("pad", ctypes.c_char * 48)]


def timer(*spec, signo):
    identity = ctypes.c_void_p()
    event = Sigevent(77, signo, 0)
    assert libc.timer_create(1, ctypes.byref(event), ctypes.byref(identity)) == 0
    assert libc.timer_settime(identity, 0, ctypes.byref(Itimerspec(*spec)), None) == 0
    return identity


discarded = timer(0, 0, 1000, 0, signo=signal.SIGRTMIN + 3)
periodic = timer(0, 7_000_000, 0, 7_000_000, signo=signal.SIGRTMIN + 3)
far = timer(5, 0, 3600, 0, signo=signal.SIGRTMIN + 3)
# Ids have a gap now.
assert libc.timer_delete(discarded) == 0


def handler(event, context):
    before = dict(counts)
    while any(counts[number] == before[number] for number in counts):
        time.sleep(0.001)
    left, every = signal.getitimer(signal.ITIMER_PROF)
    # In whole ticks, which may round up.
    assert 900 < left < 1001 and every == 2000, (left, every)
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.01
    found = Itimerspec()
    assert libc.timer_gettime(far, ctypes.byref(found)) == 0
    assert found.every_s == 5 and 0 < found.first_s < 3600, found.first_s
    assert libc.timer_delete(far) == 0 and libc.timer_delete(periodic) == 0
    return "ok"
