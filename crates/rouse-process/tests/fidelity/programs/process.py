"""What belongs to the process as a whole: names, limits, priorities, clocks, children."""
import resource, subprocess
from prelude import *

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_NAME, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 1, 2, 15, 29, 30
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE, PR_GET_DUMPABLE = 36, 37, 41, 42, 3
MEMBARRIER_REGISTER_PRIVATE, MEMBARRIER_PRIVATE, MEMBARRIER_REGISTRATIONS = 1 << 4, 1 << 3, 1 << 9
os.umask(0o037)
os.mkdir("/tmp/here")
os.chdir("/tmp/here")
resource.setrlimit(resource.RLIMIT_NOFILE, (321, 654))
resource.setrlimit(resource.RLIMIT_STACK, (16 << 20, 32 << 20))
nice = os.nice(3)
libc.prctl(PR_SET_NAME, b"my name", 0, 0, 0)
libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
libc.prctl(PR_SET_TIMERSLACK, 123_456, 0, 0, 0)
all_cpus = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(all_cpus)})
IDLE = 3 << 13
syscall(251, 1, 0, IDLE)
os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
syscall(324, MEMBARRIER_REGISTER_PRIVATE, 0)
os.environ["ADDED"] = "later"
clocks = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
robust = (ctypes.c_long * 3)()
mutex_attribute, mutex = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
libc.pthread_mutexattr_init(mutex_attribute)
libc.pthread_mutexattr_setrobust(mutex_attribute, 1)
libc.pthread_mutex_init(mutex, mutex_attribute)
hold, held = threading.Event(), threading.Event()


def holder():
    libc.pthread_mutex_lock(mutex)
    held.set()
    hold.wait()


thread = threading.Thread(target=holder)
thread.start()
held.wait()


def asked(option):
    value = ctypes.c_int()
    libc.prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value


@check
def names_and_places(me):
    equal(os.getcwd(), "/tmp/here")
    equal((os.getpid(), os.getppid(), os.getuid(), os.getgid()), (2, 0, 993, 990))
    equal(os.umask(0o037), 0o037)
    with open("/proc/self/comm") as comm:
        equal(comm.read(), "my name\n")
    equal(os.path.realpath("/proc/self/exe"), os.path.realpath(sys.executable))
    with open("/proc/self/cmdline", "rb") as line:
        equal(line.read().split(b"\0")[-2], b"/var/task/main.py")
    equal(os.environ["ADDED"], "later")


@check
def limits(me):
    equal(resource.getrlimit(resource.RLIMIT_NOFILE), (321, 654))
    equal(resource.getrlimit(resource.RLIMIT_STACK), (16 << 20, 32 << 20))


@check
def switches(me):
    equal(asked(PR_GET_CHILD_SUBREAPER), 1)
    equal(asked(PR_GET_PDEATHSIG), signal.SIGUSR1)
    equal(libc.prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1)
    equal(libc.prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 123_456)
    equal(libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 1)
    equal(libc.personality(0xFFFFFFFF), 0)
    with open("/proc/self/status") as status:
        fields = {name: value.strip() for name, value in (line.split(":", 1) for line in status)}
    equal((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"))
    equal({fields[name] for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]}, {"0" * 16})
    equal(fields["Groups"], "")


@check
def priorities(me):
    equal(os.nice(0), nice)
    equal(os.sched_getaffinity(0), {min(all_cpus)})
    equal(syscall(252, 1, 0), IDLE)
    equal(os.sched_getscheduler(0), os.SCHED_BATCH | os.SCHED_RESET_ON_FORK)
    # A child starts without the flag.
    equal(in_child(lambda: equal(os.sched_getscheduler(0), os.SCHED_BATCH)), 0)


@check
def barriers_and_sequences(me):
    equal(syscall(324, MEMBARRIER_REGISTRATIONS, 0), MEMBARRIER_REGISTER_PRIVATE)
    syscall(324, MEMBARRIER_PRIVATE, 0)
    # The restartable sequence is registered when the C library needs no system call for this.
    equal(libc.sched_getcpu(), min(all_cpus))


@check
def a_robust_mutex_outlives_its_owner(me):
    hold.set()
    thread.join(PATIENCE)
    until(lambda: len(os.listdir("/proc/self/task")) == 1)
    equal(errno.errorcode[libc.pthread_mutex_lock(mutex)], "EOWNERDEAD")


@check
def clocks_go_on(me):
    now = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    for before, after in zip(clocks, now):
        assert before < after < before + 3600, (before, after)


@check
def programs_run(me):
    answer = subprocess.run(["/bin/sh", "-c", "echo $ADDED; pwd; umask; exit 5"], stdout=subprocess.PIPE)
    equal((answer.returncode, answer.stdout), (5, b"later\n/tmp/here\n0037\n"))
    # A grandchild that loses its parent comes to the subreaper.
    equal(in_child(lambda: os.fork() or os._exit(0)), 0)
    os.waitpid(-1, 0)
    fails(errno.ECHILD, lambda: os.waitpid(-1, 0))


serve()
