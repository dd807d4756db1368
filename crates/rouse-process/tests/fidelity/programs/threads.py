"""Threads that sleep in all kinds of system calls, and that wake up after a restore as if nothing had happened."""
import queue
from prelude import *

woken = {}
release = []
threads = {}


def sleeper(name, work, wake):
    def run():
        libc.prctl(15, name.encode(), 0, 0, 0)
        tids[name] = threading.get_native_id()
        woken[name] = work()
    thread = threading.Thread(target=run, name=name, daemon=True)
    threads[name] = thread
    release.append((name, wake))
    thread.start()


tids = {}
lock, lock2, never_free = threading.Lock(), threading.Lock(), threading.Lock()
lock.acquire(), lock2.acquire(), never_free.acquire()
condition, waits = threading.Condition(), threading.Event()
event = threading.Event()
things = queue.Queue()
poll_r, poll_w = os.pipe()
select_r, select_w = os.pipe()
read_r, read_w = os.pipe()
epoll_r, epoll_w = os.pipe()
full_r, full_w = os.pipe()
os.set_blocking(full_w, False)
filled = 0
try:
    while True:
        filled += os.write(full_w, b"f" * 4096)
except BlockingIOError:
    os.set_blocking(full_w, True)
epoll = select.epoll()
epoll.register(epoll_r, select.EPOLLIN)
near, far = socket.socketpair()
listener = socket.create_server(("127.0.0.1", 0))
counter = os.eventfd(0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])


def wait_condition():
    with condition:
        waits.set()
        return condition.wait(1000)


def notify():
    # Set under the lock, which is free again when the thread waits.
    waits.wait()
    with condition:
        condition.notify_all()


def polled():
    poll = select.poll()
    poll.register(poll_r, select.POLLIN)
    return len(poll.poll(1000_000))


def slept(seconds):
    time.sleep(seconds)
    return "slept"


def slept_relative():
    # nanosleep(2) itself, with a structure of its own for the rest.
    request, rest = (ctypes.c_long * 2)(0, 300_000_000), (ctypes.c_long * 2)()
    return libc.nanosleep(request, rest)


def timespec(seconds):
    return (ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 10**9))


def slept_until():
    # Not before that moment, and not long after it either.
    moment = time.monotonic() + 0.3
    result = libc.clock_nanosleep(1, 1, timespec(moment), None)
    return result, time.monotonic() >= moment


def futex_wait(value, timeout):
    word = ctypes.c_int(value)
    words.append(word)
    result = libc.syscall(202, ctypes.byref(word), 128, value, timespec(timeout), None, 0)
    return result if result == 0 else errno.errorcode[ctypes.get_errno()]


def futex_wake(value):
    # The thread may not have come to its call yet.
    until(lambda: any(syscall(202, ctypes.byref(word), 129, 1, None, None, 0) == 1 for word in words if word.value == value))


def ppolled(fd, timeout):
    # The mask lets through what the thread itself blocks, but for what another waits for.
    entry = ctypes.create_string_buffer(struct.pack("ihh", fd, select.POLLIN, 0))
    mask = ctypes.create_string_buffer(struct.pack("Q", 1 << signal.SIGUSR1 - 1), 128)
    return libc.ppoll(entry, 1, timespec(timeout), mask)


def epolled(timeout):
    events = ctypes.create_string_buffer(12)
    return libc.syscall(441, epoll.fileno(), events, 1, timespec(timeout), None, 8)


def sem_waited():
    # Until a moment of the wall clock.
    semaphore = ctypes.create_string_buffer(32)
    libc.sem_init(semaphore, 0, 0)
    result = libc.sem_timedwait(semaphore, timespec(time.time() + 0.3))
    return result, errno.errorcode[ctypes.get_errno()]


words = []
ppoll_r, ppoll_w = os.pipe()
never_r, never_w = os.pipe()
sleeper("ppoll", lambda: ppolled(ppoll_r, 1000), lambda: os.write(ppoll_w, b"x"))
sleeper("ppoll ends", lambda: ppolled(never_r, 0.3), lambda: None)
sleeper("epoll_pwait2", lambda: epolled(1000), lambda: None)
sleeper("sleep until", slept_until, lambda: None)
sleeper("raw futex", lambda: futex_wait(71, 1000), lambda: futex_wake(71))
sleeper("raw futex ends", lambda: futex_wait(72, 0.3), lambda: None)
sleeper("lock ends", lambda: never_free.acquire(timeout=0.3), lambda: None)
sleeper("sem_timedwait", sem_waited, lambda: None)
sleeper("sigwait ends", lambda: signal.sigtimedwait([signal.SIGUSR2], 0.3), lambda: None)
sleeper("nanosleep", slept_relative, lambda: None)
sleeper("clock_nanosleep", lambda: slept(0.3), lambda: None)
sleeper("poll", polled, lambda: os.write(poll_w, b"x"))
sleeper("select", lambda: len(select.select([select_r], [], [], 1000)[0]), lambda: os.write(select_w, b"x"))
sleeper("epoll_wait", lambda: epoll.poll(1000)[0][1], lambda: os.write(epoll_w, b"x"))
sleeper("recv", lambda: far.recv(10), lambda: near.send(b"hello"))
sleeper("read", lambda: os.read(read_r, 10), lambda: os.write(read_w, b"world"))
sleeper("write", lambda: os.write(full_w, b"g" * 4096), lambda: os.read(full_r, 8192))
sleeper("accept", lambda: listener.accept()[0].recv(10), lambda: socket.create_connection(listener.getsockname()).send(b"client"))
sleeper("eventfd", lambda: os.eventfd_read(counter), lambda: os.eventfd_write(counter, 7))
sleeper("futex", lambda: lock.acquire(), lambda: lock.release())
sleeper("futex timeout", lambda: lock2.acquire(timeout=1000), lambda: lock2.release())
sleeper("condition", wait_condition, notify)
sleeper("queue", things.get, lambda: things.put("thing"))
sleeper("sigwait", lambda: signal.sigwait([signal.SIGUSR1]), lambda: os.kill(os.getpid(), signal.SIGUSR1))
for number in range(60):
    sleeper(f"event {number}", event.wait, event.set)
EXPECTED = {
    "nanosleep": 0, "clock_nanosleep": "slept", "poll": 1, "select": 1, "epoll_wait": select.EPOLLIN, "recv": b"hello",
    "read": b"world", "write": 4096, "accept": b"client", "eventfd": 7, "futex": True, "futex timeout": True,
    "ppoll": 1, "ppoll ends": 0, "epoll_pwait2": 1, "sleep until": (0, True), "raw futex": 0, "raw futex ends": "ETIMEDOUT",
    "lock ends": False, "sem_timedwait": (-1, "ETIMEDOUT"), "sigwait ends": None,
    "condition": True, "queue": "thing", "sigwait": signal.SIGUSR1, **{f"event {n}": True for n in range(60)},
}
until(lambda: len(tids) == len(threads))


@check
def names_and_ids(me):
    for name, tid in tids.items():
        try:
            with open(f"/proc/self/task/{tid}/comm") as comm:
                found = comm.read().strip()
        except (FileNotFoundError, ProcessLookupError):
            # Those that wait with a limit end by themselves, at any moment.
            threads[name].join(PATIENCE)
            assert not threads[name].is_alive() and name in woken, f"{name} is gone"
        else:
            equal(found, name)


@check
def all_wake_up(me):
    for name, wake in release:
        wake()
    for name, thread in threads.items():
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{name} still sleeps"
    equal(woken, EXPECTED)


@check
def new_threads_start(me):
    done = []
    new = [threading.Thread(target=done.append, args=(n,)) for n in range(20)]
    [thread.start() for thread in new]
    [thread.join(PATIENCE) for thread in new]
    equal(sorted(done), list(range(20)))


@check
def none_is_left(me):
    until(lambda: len(os.listdir("/proc/self/task")) == 1)


serve()
