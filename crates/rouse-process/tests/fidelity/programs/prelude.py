"""What every program starts with: the runtime API by hand, and checks that name themselves."""
import ctypes, errno, faulthandler, fcntl, mmap, os, select, signal, socket, struct, sys, threading, time, traceback

# What kills a program is to be read in its log.
faulthandler.enable()
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = 4096
PATIENCE = int(os.environ["PATIENCE"])


def call(result):
    """The result of a libc function that says -1 for failure."""
    if result in (-1, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(*args):
    return call(libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args]))


def poke(address, data):
    ctypes.memmove(address, data, len(data))


def peek(address, length):
    return ctypes.string_at(address, length)


def equal(found, expected):
    if found != expected:
        raise AssertionError(f"{found!r} instead of {expected!r}")


def until(condition):
    """Waits for something that happens soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen")
        time.sleep(0.001)


def fails(number, work):
    """Does `work` fail with this errno?"""
    try:
        found = work()
    except OSError as error:
        return equal(errno.errorcode[error.errno], errno.errorcode[number])
    raise AssertionError(f"{found!r} instead of an error")


def in_child(work):
    """Runs `work` in a forked child; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


api = socket.create_connection(("127.0.0.1", 9001))
# Each instance is asked twice: its checks, then whether what they left behind is still its own.
checks, later = [], []


def check(function):
    checks.append(function)
    return function


def again(function):
    later.append(function)
    return function


def request(text):
    api.sendall(text.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            part = api.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            # The node has gone away: it looks for this code.
            os._exit(98)
        data += part
    return data.split(b"\r\n\r\n", 1)[1].decode()


def serve():
    round_of = [checks, later]
    while True:
        me = request("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: x\r\n\r\n")
        lines = []
        for function in [] if me == "PASS" else round_of.pop(0):
            try:
                function(me)
                lines.append(f"ok {function.__name__}")
            except BaseException:
                text = traceback.format_exc().strip().replace("\n", " / ")
                lines.append(f"failed {function.__name__}: {text}")
        answer = "\n".join(lines)
        request(f"POST /answer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(answer)}\r\n\r\n{answer}")
