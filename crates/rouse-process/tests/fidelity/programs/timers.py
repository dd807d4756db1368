"""Timers of every kind: short ones go on ringing, long ones still have their time to go."""
from prelude import *

rung = {"itimer": 0, "posix": 0, "thread": 0, "queued": []}


def handler(name):
    def ring(*_):
        rung[name] += 1
    return ring


class Event(ctypes.Structure):
    _fields_ = [("value", ctypes.c_long), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
                ("tid", ctypes.c_int), ("pad", ctypes.c_byte * 44)]


class ThreadEvent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_long), ("signo", ctypes.c_int), ("notify", ctypes.c_int),
                ("function", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("pad", ctypes.c_byte * 32)]


def create(clock, event):
    timer = ctypes.c_int()
    syscall(222, clock, ctypes.byref(event), ctypes.byref(timer))
    return timer.value


def arm(timer, first, interval, flags=0):
    spec = (ctypes.c_long * 4)(*divmod(interval, 10**9), *divmod(first, 10**9))
    syscall(223, timer, flags, ctypes.byref(spec), 0)


def left(timer):
    spec = (ctypes.c_long * 4)()
    syscall(224, timer, ctypes.byref(spec))
    return spec[2] * 10**9 + spec[3], spec[0] * 10**9 + spec[1]


MS = 10**6
SECOND = 10**9
signal.signal(signal.SIGALRM, handler("itimer"))
signal.signal(signal.SIGUSR1, handler("posix"))
signal.signal(signal.SIGUSR2, handler("thread"))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
signal.setitimer(signal.ITIMER_VIRTUAL, 5000)
deleted = create(1, Event(1, 0, 1))
ringing = create(1, Event(0x1234, signal.SIGUSR1, 0))
to_thread = create(0, Event(2, signal.SIGUSR2, 4, threading.get_native_id()))
long_one = create(7, Event(3, 0, 1))
unarmed = create(2, Event(4, signal.SIGUSR2, 0))
syscall(226, deleted)
arm(ringing, 20 * MS, 20 * MS)
arm(to_thread, 20 * MS, 20 * MS)
arm(long_one, 100_000 * SECOND, 7 * SECOND)

# SIGEV_THREAD: a helper thread of glibc takes the signal and starts threads.
by_thread = []
function = ctypes.CFUNCTYPE(None, ctypes.c_long)(by_thread.append)
rt_timer = ctypes.c_void_p()
call(libc.timer_create(1, ctypes.byref(ThreadEvent(0x77, 0, 2, ctypes.cast(function, ctypes.c_void_p))), ctypes.byref(rt_timer)))
call(libc.timer_settime(rt_timer, 0, ctypes.byref((ctypes.c_long * 4)(0, 20 * MS, 0, 20 * MS)), None))


def timerfd(clock, first, interval, flags=0):
    fd = syscall(283, clock, os.O_NONBLOCK)
    spec = (ctypes.c_long * 4)(*divmod(interval, SECOND), *divmod(first, SECOND))
    syscall(286, fd, flags, ctypes.byref(spec), 0)
    return fd


def fd_left(fd):
    spec = (ctypes.c_long * 4)()
    syscall(287, fd, ctypes.byref(spec))
    return spec[2] * SECOND + spec[3], spec[0] * SECOND + spec[1]


def ticks(fd):
    return struct.unpack("Q", os.read(fd, 8))[0]


periodic = timerfd(1, 5 * MS, 5 * MS)
over = timerfd(1, 1, 0)
several = timerfd(1, 1, 1)
time.sleep(0.01)
far_away = timerfd(1, 100_000 * SECOND, 11 * SECOND)
TFD_ABSTIME, TFD_CANCEL_ON_SET = 1, 2
wall_time = time.time_ns() + 3000 * SECOND
at_wall_time = timerfd(0, wall_time, 0, TFD_ABSTIME | TFD_CANCEL_ON_SET)
monotonic_time = time.monotonic_ns() + 3000 * SECOND
at_monotonic = timerfd(1, monotonic_time, 0, TFD_ABSTIME)
never = syscall(283, 1, os.O_NONBLOCK)
# Rings while it is blocked: the signal is pending in the snapshot.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 5])
pending_timer = create(1, Event(0x55, signal.SIGRTMIN + 5, 0))
arm(pending_timer, 1, 0)
until(lambda: signal.SIGRTMIN + 5 in signal.sigpending())
# Repeats while its signal waits: the signal says how often, beyond the first time.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 6, signal.SIGRTMIN + 7])
overrunning = create(1, Event(0x66, signal.SIGRTMIN + 6, 0))
of_thread = create(1, Event(0x67, signal.SIGRTMIN + 7, 4, threading.get_native_id()))
for timer in [overrunning, of_thread]:
    arm(timer, 1, MS)
time.sleep(0.01)


@check
def interval_timers_ring_on(me):
    for name in ["itimer", "posix", "thread"]:
        before = rung[name]
        until(lambda: rung[name] >= before + 3)
    value, interval = signal.getitimer(signal.ITIMER_VIRTUAL)
    # The kernel rounds up to its ticks.
    assert 4000 < value < 5001 and interval == 0, value


@check
def posix_timers_keep_their_time(me):
    value, interval = left(long_one)
    assert 99_000 * SECOND < value <= 100_000 * SECOND and interval == 7 * SECOND, (value, interval)
    equal(left(unarmed), (0, 0))
    fails(errno.EINVAL, lambda: left(deleted))
    timer = create(1, Event(9, 0, 1))
    assert timer not in (ringing, to_thread, long_one, unarmed, pending_timer)
    syscall(226, timer)


@check
def timers_start_threads(me):
    before = len(by_thread)
    until(lambda: len(by_thread) >= before + 3)
    equal(set(by_thread), {0x77})


@check
def timer_descriptors(me):
    assert ticks(periodic) >= 1
    equal(ticks(over), 1)
    fails(errno.EAGAIN, lambda: ticks(over))
    equal(fd_left(over), (0, 0))
    assert ticks(several) > 1000
    value, interval = fd_left(far_away)
    assert 99_000 * SECOND < value <= 100_000 * SECOND and interval == 11 * SECOND, (value, interval)
    equal(fd_left(never), (0, 0))
    fails(errno.EAGAIN, lambda: ticks(never))


@check
def absolute_timers_mean_the_same_moment(me):
    for fd, moment, now in [(at_wall_time, wall_time, time.time_ns), (at_monotonic, monotonic_time, time.monotonic_ns)]:
        early = now()
        value, _ = fd_left(fd)
        late = now()
        # The snapshot reads the timer and the clock one after the other.
        assert moment - late - 10 * SECOND < value < moment - early + 10 * SECOND, moment - late - value


@check
def a_signal_of_a_timer_is_still_pending(me):
    info = ctypes.create_string_buffer(128)
    equal(libc.sigwaitinfo(ctypes.byref(ctypes.c_ulong(1 << (signal.SIGRTMIN + 4))), info), signal.SIGRTMIN + 5)
    equal(struct.unpack_from("i", info, 8)[0], -2)
    equal(struct.unpack_from("Q", info, 24)[0], 0x55)


@check
def a_signal_says_how_often_it_would_have_come(me):
    for number, timer, value in [(signal.SIGRTMIN + 6, overrunning, 0x66), (signal.SIGRTMIN + 7, of_thread, 0x67)]:
        info = ctypes.create_string_buffer(128)
        for is_first in [True, False]:
            equal(libc.sigwaitinfo(ctypes.byref(ctypes.c_ulong(1 << number - 1)), info), number)
            code, timer_id, overrun, found = struct.unpack_from("i4xiiQ", info, 8)
            equal((code, timer_id, found), (-2, timer, value))
            # Ten intervals had passed before the snapshot.
            assert not is_first or overrun >= 9, overrun


@check
def sleeps_take_time(me):
    before = time.monotonic()
    time.sleep(0.01)
    assert time.monotonic() - before >= 0.01


serve()
