"""What belongs to the process as a whole."""

import ctypes
import os
import resource
import signal

libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("/tmp/here", exist_ok=True)
os.chdir("/tmp/here")
os.umask(0o027)
resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.nice(3)
libc.prctl(15, b"renamed", 0, 0, 0)  # PR_SET_NAME
libc.prctl(29, 123_456, 0, 0, 0)  # PR_SET_TIMERSLACK
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.environ["SET_AT_INIT"] = "yes"


class Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


alternate = ctypes.create_string_buffer(65536)
assert libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(alternate), 0, 65536)), None) == 0
received = []
signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def picture():
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
    stack = Stack()
    libc.sigaltstack(None, ctypes.byref(stack))
    kept = ("Name", "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff",
            "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "NSpid", "PPid", "Pid", "Tgid", "THP_enabled")
    slack = libc.prctl(30, 0, 0, 0, 0)
    subreaper = ctypes.c_int()
    libc.prctl(37, ctypes.byref(subreaper), 0, 0, 0)
    stat = open("/proc/self/stat").read().rpartition(") ")[2].split()
    return {
        "status": {name: status[name].split() for name in kept if name in status},
        "limits": open("/proc/self/limits").read(),
        "cwd": os.getcwd(),
        "link": os.readlink("/proc/self/cwd"),
        "exe": os.readlink("/proc/self/exe"),
        "root": os.readlink("/proc/self/root"),
        "cmdline": open("/proc/self/cmdline").read(),
        "environ": open("/proc/self/environ").read(),
        "auxv": open("/proc/self/auxv", "rb").read(),
        "nice": os.nice(0),
        "policy": os.sched_getscheduler(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "slack": slack,
        "subreaper": subreaper.value,
        "stack": (stack.pointer, stack.flags, stack.size),
        "session": (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)),
        # Bounds of code, data, stack, arguments and environment.
        "bounds": [stat[index - 3] for index in (26, 27, 28, 45, 46, 48, 49, 50, 51)],
        "dumpable": libc.prctl(3, 0, 0, 0, 0),
    }


BEFORE = picture()


def handler(event, context):
    now = picture()
    different = {name: (BEFORE[name], now[name]) for name in BEFORE if BEFORE[name] != now[name]}
    assert not different, different
    assert os.environ["SET_AT_INIT"] == "yes"
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert received == [signal.SIGUSR1] and signal.sigpending() == {signal.SIGHUP}
    open("new", "w").close()
    assert os.stat("/tmp/here/new").st_mode & 0o777 == 0o640
    return "ok"
