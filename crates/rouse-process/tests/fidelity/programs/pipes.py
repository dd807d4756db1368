"""Pipes, counters, sets: what was in them, and that they go on working."""
from prelude import *

r, w = os.pipe()
os.write(w, b"left in the pipe")
large_r, large_w = os.pipe()
fcntl.fcntl(large_w, 1031, 1 << 18)
LARGE = bytes(range(256)) * 900
os.write(large_w, LARGE)
nonblocking_r, nonblocking_w = os.pipe2(os.O_NONBLOCK)
half_r, half_w = os.pipe()
os.write(half_w, b"last words")
os.close(half_w)
no_reader_r, no_reader = os.pipe()
os.close(no_reader_r)
second_w = os.dup(w)
os.set_inheritable(second_w, True)
high = fcntl.fcntl(r, fcntl.F_DUPFD_CLOEXEC, 200)
counter = os.eventfd(41)
many = os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
mask = ctypes.c_ulong(1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGUSR2 - 1))
signals = syscall(289, -1, ctypes.byref(mask), 8, os.O_NONBLOCK)
os.kill(os.getpid(), signal.SIGUSR1)
inner = select.epoll()
inner.register(r, select.EPOLLIN)
outer = select.epoll()
outer.register(inner.fileno(), select.EPOLLIN)
outer.register(nonblocking_r, select.EPOLLIN | select.EPOLLET)
outer.register(counter, select.EPOLLIN | select.EPOLLONESHOT)
outer.register(signals, 0)
outer.register(many, select.EPOLLOUT | select.EPOLLEXCLUSIVE)


@check
def contents_are_there(me):
    equal(os.read(r, 100), b"left in the pipe")
    equal(fcntl.fcntl(large_r, 1032), 1 << 18)
    data = b""
    while len(data) < len(LARGE):
        data += os.read(large_r, 1 << 20)
    equal(data == LARGE, True)
    os.write(large_w, LARGE)


@check
def pipes_still_connect(me):
    os.write(second_w, me.encode())
    equal(os.read(high, 100), me.encode())
    fails(errno.EAGAIN, lambda: os.read(nonblocking_r, 1))
    equal(os.get_blocking(nonblocking_w), False)
    equal(os.get_blocking(r), True)


@check
def closed_ends_stay_closed(me):
    equal(os.read(half_r, 100), b"last words")
    equal(os.read(half_r, 100), b"")
    fails(errno.EPIPE, lambda: os.write(no_reader, b"x"))


@check
def flags_of_descriptors(me):
    equal([os.get_inheritable(fd) for fd in [r, w, second_w, high]], [False, False, True, False])
    equal(high, 200)


@check
def counters_count_on(me):
    equal(os.eventfd_read(counter), 41)
    for _ in range(3):
        equal(os.eventfd_read(many), 1)
    fails(errno.EAGAIN, lambda: os.eventfd_read(many))
    os.eventfd_write(counter, 5)
    equal(os.eventfd_read(counter), 5)


@check
def signals_are_read(me):
    info = os.read(signals, 128)
    equal(struct.unpack_from("I", info)[0], signal.SIGUSR1)
    fails(errno.EAGAIN, lambda: os.read(signals, 128))
    os.kill(os.getpid(), signal.SIGUSR2)
    equal(struct.unpack_from("I", os.read(signals, 128))[0], signal.SIGUSR2)


@check
def sets_report(me):
    equal(dict(outer.poll(0)), {many: select.EPOLLOUT})
    os.write(w, b"1")
    os.write(nonblocking_w, b"2")
    os.eventfd_write(counter, 1)
    expected = {inner.fileno(): select.EPOLLIN, nonblocking_r: select.EPOLLIN, counter: select.EPOLLIN, many: select.EPOLLOUT}
    equal(dict(outer.poll(0)), expected)
    # Edge-triggered and one-shot: not again.
    equal(dict(outer.poll(0)), {inner.fileno(): select.EPOLLIN, many: select.EPOLLOUT})
    equal(inner.poll(0), [(r, select.EPOLLIN)])
    os.read(r, 1)
    outer.modify(counter, select.EPOLLIN)
    equal(dict(outer.poll(0)), {counter: select.EPOLLIN, many: select.EPOLLOUT})
    outer.unregister(counter)
    fails(errno.ENOENT, lambda: outer.modify(counter, 0))


@again
def nobody_else_wrote(me):
    equal(dict(inner.poll(0)), {})
    data = os.read(large_r, 1 << 20)
    equal(data[:256] == LARGE[:256], True)


serve()
