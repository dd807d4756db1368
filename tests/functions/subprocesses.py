"""Children during an invocation: run, left as zombies, orphaned, signalled."""

import multiprocessing
import os
import signal
import subprocess
import threading

children = []
signal.signal(signal.SIGCHLD, lambda number, frame: children.append(number))
# One at init, which has ended and been waited for.
assert subprocess.run(["true"]).returncode == 0
children.clear()


def square(number):
    return number * number


def states():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = open(f"/proc/{name}/stat").read()
            except OSError:
                continue
            found[int(name)] = text.rpartition(") ")[2].split()[0]
    return found


def handler(event, context):
    done = subprocess.run(["sh", "-c", "echo $$ $PPID; cat; exit 7"], input=b"piped", capture_output=True)
    shell, parent = done.stdout.split(b"\n")[0].split()
    assert done.returncode == 7 and done.stdout.endswith(b"piped") and int(parent) == os.getpid() and int(shell) > 2, done
    assert children, "no SIGCHLD"

    # A zombie of our own stays one until it is waited for.
    pid = os.fork()
    if pid == 0:
        os._exit(5)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert states()[pid] == "Z"
    assert os.waitpid(pid, 0) == (pid, 5 << 8)

    # An orphan goes to pid 1, which reaps it.
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        orphan = os.fork()
        if orphan == 0:
            while os.getppid() != 1:
                pass
            os.write(write, str(os.getpid()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    orphan = int(os.read(read, 20))
    assert os.read(read, 1) == b""
    while orphan in states():
        pass

    process = subprocess.Popen(["sleep", "1000"])
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    assert threading.active_count() < 5
    return "ok"
