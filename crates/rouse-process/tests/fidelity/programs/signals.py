"""Handlers, masks, stacks for handlers, pending signals, and default actions."""
from prelude import *

seen = []
signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2, signal.SIGHUP])
os.kill(os.getpid(), signal.SIGTERM)
signal.pthread_kill(threading.main_thread().ident, signal.SIGHUP)
for value in [11, 22, 33]:
    call(libc.sigqueue(os.getpid(), signal.SIGRTMIN + 1, ctypes.c_void_p(value)))

# Of several kinds and origins, for one thread, in an order that is not that of their numbers.
sources = [signal.SIGRTMIN + 5, signal.SIGRTMIN + 4, signal.SIGRTMIN + 5]
signal.pthread_sigmask(signal.SIG_BLOCK, sources)
libc.pthread_sigqueue.argtypes = [ctypes.c_ulong, ctypes.c_int, ctypes.c_void_p]
for number, value in zip(sources, [0x51, 0x41, 0x52]):
    assert libc.pthread_sigqueue(threading.main_thread().ident, number, value) == 0
syscall(234, os.getpid(), threading.get_native_id(), signal.SIGRTMIN + 4)
call(libc.sigqueue(os.getpid(), signal.SIGRTMIN + 4, ctypes.c_void_p(0x42)))

worker_mask = []
go = threading.Event()


def worker():
    # What is pending for the process must stay blocked everywhere.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGRTMIN + 3])
    signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN + 3)
    ready.set()
    go.wait()
    worker_mask.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    worker_mask.append(signal.sigwait([signal.SIGRTMIN + 3]))


ready = threading.Event()
thread = threading.Thread(target=worker, daemon=True)
thread.start()
ready.wait()


class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]


SS_ONSTACK, SA_ONSTACK, SA_SIGINFO = 1, 0x08000000, 4
area = mmap.mmap(-1, 1 << 20)
area_at = ctypes.addressof(ctypes.c_char.from_buffer(area))
call(libc.sigaltstack(ctypes.byref(Stack(area_at, 0, 1 << 20)), None))
on_stack = []


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def raw_handler(number):
    stack = Stack()
    libc.sigaltstack(None, ctypes.byref(stack))
    on_stack.append((number, bool(stack.flags & SS_ONSTACK), stack.sp, stack.size))


action = Action(ctypes.cast(raw_handler, ctypes.c_void_p), (ctypes.c_ulong * 16)(0x40), SA_ONSTACK)
call(libc.sigaction(signal.SIGRTMIN + 7, ctypes.byref(action), None))


@check
def handlers_run(me):
    os.kill(os.getpid(), signal.SIGUSR1)
    until(lambda: seen == [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR2)
    equal(signal.getsignal(signal.SIGUSR2), signal.SIG_IGN)


@check
def the_handler_runs_on_its_own_stack(me):
    libc.raise_ = libc["raise"]
    libc.raise_(int(signal.SIGRTMIN + 7))
    equal(on_stack, [(signal.SIGRTMIN + 7, True, area_at, 1 << 20)])
    found = Action()
    call(libc.sigaction(signal.SIGRTMIN + 7, None, ctypes.byref(found)))
    equal((found.handler, found.mask[0], found.flags & SA_ONSTACK), (action.handler, 0x40, SA_ONSTACK))


@check
def signals_are_still_pending(me):
    expected = {signal.SIGTERM, signal.SIGHUP, signal.SIGRTMIN + 1, *sources}
    equal(signal.sigpending(), expected)
    equal(signal.pthread_sigmask(signal.SIG_BLOCK, []), expected | {signal.SIGRTMIN + 2})
    values = []
    for _ in range(3):
        info = ctypes.create_string_buffer(128)
        libc.sigwaitinfo(ctypes.byref(ctypes.c_ulong(1 << signal.SIGRTMIN)), info)
        code, pid = struct.unpack_from("i4xi", info, 8)
        equal((code, pid), (-1, os.getpid()))
        values.append(struct.unpack_from("Q", info, 24)[0])
    equal(values, [11, 22, 33])
    info = signal.sigtimedwait([signal.SIGTERM], 0)
    equal((info.si_signo, info.si_pid, info.si_uid), (signal.SIGTERM, os.getpid(), os.getuid()))
    equal(signal.sigtimedwait([signal.SIGHUP], 0).si_signo, signal.SIGHUP)
    # The thread's own come before the process's: value, a code that says who sent it.
    # The C library shows what tgkill(2) has sent (SI_TKILL) as from kill(2).
    SI_QUEUE, SI_USER = -1, 0
    found = []
    for _ in range(5):
        libc.sigwaitinfo(ctypes.byref(ctypes.c_ulong(sum(1 << number - 1 for number in set(sources)))), info_at := ctypes.create_string_buffer(128))
        number, code, pid, uid, value = struct.unpack_from("i4xi4xiiQ", info_at)
        equal((pid, uid), (os.getpid(), os.getuid()))
        found.append((number - signal.SIGRTMIN, code, value if code == SI_QUEUE else None))
    equal(found, [(4, SI_QUEUE, 0x41), (4, SI_USER, None), (5, SI_QUEUE, 0x51), (5, SI_QUEUE, 0x52), (4, SI_QUEUE, 0x42)])
    equal(signal.sigpending(), set())


@check
def threads_keep_their_own(me):
    go.set()
    thread.join(PATIENCE)
    inherited = {signal.SIGTERM, signal.SIGRTMIN + 1, signal.SIGRTMIN + 2, signal.SIGHUP, *sources}
    equal(worker_mask, [inherited | {signal.SIGINT, signal.SIGRTMIN + 3}, signal.SIGRTMIN + 3])


@check
def default_actions_hold(me):
    def end():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
    status = in_child(end)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM, status


@check
def a_child_that_ended_is_reported(me):
    seen_child = []
    signal.signal(signal.SIGCHLD, lambda *_: seen_child.append(1))
    equal(in_child(lambda: None), 0)
    until(lambda: seen_child)
    fails(errno.ECHILD, lambda: os.waitpid(-1, os.WNOHANG))


serve()
