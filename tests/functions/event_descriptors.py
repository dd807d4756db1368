"""eventfd, timerfd, signalfd, epoll and inotify."""

import ctypes
import os
import select
import signal
import struct
import threading

libc = ctypes.CDLL(None, use_errno=True)

counter = os.eventfd(7, os.EFD_NONBLOCK)
semaphore = os.eventfd(2, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)


class Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


def timerfd(*spec, clock=1, flags=0):
    fd = libc.timerfd_create(clock, 0)
    assert libc.timerfd_settime(fd, flags, ctypes.byref(Itimerspec(*spec)), None) == 0
    return fd


periodic = timerfd(0, 5_000_000, 0, 5_000_000)
far = timerfd(0, 0, 3600, 0)
disarmed = timerfd(0, 0, 0, 0, clock=0)

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN})
mask = struct.pack("Q", 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGRTMIN - 1))
signals = libc.signalfd(-1, mask, 0)
# Unread signals of all kinds: to the process, to a thread, and queued ones with their values.
os.kill(os.getpid(), signal.SIGUSR1)
signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
for value in (11, 12):
    libc.sigqueue(os.getpid(), signal.SIGRTMIN, ctypes.c_void_p(value))

readable, writable = os.pipe()
inner = select.epoll()
inner.register(readable, select.EPOLLIN)
outer = select.epoll()
outer.register(inner.fileno(), select.EPOLLIN)
outer.register(counter, select.EPOLLIN | select.EPOLLET)
once = select.epoll()
once.register(semaphore, select.EPOLLIN | select.EPOLLONESHOT)

os.makedirs("/tmp/watched")
inotify = libc.inotify_init1(os.O_NONBLOCK)
watch = libc.inotify_add_watch(inotify, b"/tmp/watched", 0x100)  # IN_CREATE


def handler(event, context):
    assert [fd for fd, _ in once.poll(0)] == [semaphore]
    assert once.poll(0) == []
    assert [fd for fd, _ in outer.poll(0)] == [counter]
    assert os.eventfd_read(counter) == 7
    assert [os.eventfd_read(semaphore), os.eventfd_read(semaphore)] == [1, 1]

    assert struct.unpack("Q", os.read(periodic, 8))[0] > 0
    left = Itimerspec()
    assert libc.timerfd_gettime(far, ctypes.byref(left)) == 0
    assert 0 < left.first_s < 3600, left.first_s
    assert libc.timerfd_gettime(disarmed, ctypes.byref(left)) == 0 and (left.first_s, left.first_ns) == (0, 0)
    assert libc.timerfd_gettime(periodic, ctypes.byref(left)) == 0 and left.every_ns == 5_000_000

    pending = signal.sigpending()
    assert pending == {signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN}, pending
    got = []
    for _ in range(3):
        info = os.read(signals, 128)
        got.append((struct.unpack_from("I", info)[0], struct.unpack_from("i", info, 44)[0]))
    assert sorted(got) == sorted([(signal.SIGUSR1, 0), (signal.SIGRTMIN, 11), (signal.SIGRTMIN, 12)]), got
    assert [value for number, value in got if number == signal.SIGRTMIN] == [11, 12], got
    assert signal.sigpending() == {signal.SIGUSR2}

    os.write(writable, b"x")
    assert [fd for fd, _ in outer.poll(0)] == [inner.fileno()]

    open("/tmp/watched/new", "w").close()
    data = os.read(inotify, 4096)
    assert struct.unpack_from("iI", data) == (watch, 0x100) and b"new" in data, data
    return "ok"
