"""What a function can leave behind, by class: how it is planted, and how another function looks for it.

`plant` prints, for each class, `planted` or why it could not be; then, still in the same sandbox, what `look` finds there.
"""
import ctypes, errno, fcntl, json, os, resource, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
kept = []
MARK = "canary-5b1f"
KEY = 0x5B1F
# A file of the host that every sandbox sees.
SHARED = "/usr/bin/python3"


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def sock(family, kind, address=None, listen=False):
    made = socket.socket(family, kind)
    if address is not None:
        made.bind(address)
    if listen:
        made.listen()
    kept.append(made)
    return made


def write(path):
    with open(path, "w") as file:
        file.write(MARK)


def has(path):
    return os.path.exists(path)


def table(name, needle):
    with open("/proc/net/" + name) as file:
        return needle in file.read()


def net_port(name, port):
    return lambda: table(name, ":%04X " % port)


# --- processes

def plant_process():
    named, name = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            libc.prctl(15, MARK.encode(), 0, 0, 0)
            os.write(name, b"x")
            # Whoever reads what this program prints waits for the end of the pipe.
            for number in range(3):
                os.close(number)
            while True:
                time.sleep(1000)
        os._exit(0)
    os.close(name)
    os.read(named, 1)
    os.close(named)


def look_process():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/comm" % pid) as file:
                if file.read().strip() == MARK:
                    return True
        except OSError:
            pass
    return False


# --- System V and POSIX ipc

def plant_shm():
    shm = call(libc.shmget(KEY, 4096, 0o1666))
    ctypes.memmove(libc.shmat(shm, None, 0), MARK.encode(), len(MARK))


def plant_posix_semaphore():
    if not libc.sem_open(MARK.encode(), os.O_CREAT, 0o666, 1):
        call(-1)


# --- keyrings

def plant_key():
    call(libc.syscall(248, b"user", MARK.encode(), MARK.encode(), len(MARK), ctypes.c_int(-4)))


def look_key():
    with open("/proc/keys") as file:
        return MARK in file.read()


# --- locks and watches

def locks():
    with open("/proc/locks") as file:
        return file.read()


def plant_flock():
    file = open(SHARED)
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    kept.append(file)


def look_flock():
    file = open(SHARED)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK


def plant_posix_lock():
    file = open(SHARED)
    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    kept.append(file)


def plant_lease():
    file = open(SHARED)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    kept.append(file)


def plant_inotify():
    watch = call(libc.inotify_init1(0))
    call(libc.inotify_add_watch(watch, SHARED.encode(), 0xFFF))


def inotify_of(pid):
    for number in os.listdir("/proc/%s/fd" % pid):
        try:
            if "inotify" in os.readlink("/proc/%s/fd/%s" % (pid, number)):
                return True
        except OSError:
            pass
    return False


def look_inotify():
    mine = str(os.getpid())
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and pid != mine]
    found = False
    for pid in pids:
        try:
            found = found or inotify_of(pid)
        except OSError:
            pass
    return found


# --- network

def plant_time_wait():
    server = sock(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 7104), True)
    client = socket.create_connection(("127.0.0.1", 7104))
    accepted, _ = server.accept()
    client.close()
    accepted.recv(1)
    accepted.close()
    # The last packet may be on its way.
    while not look_time_wait():
        time.sleep(0.001)


def look_time_wait():
    with open("/proc/net/sockstat") as file:
        return " tw 0 " not in file.read()


def netlink(kind, flags, body):
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    made.sendto(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body, (0, 0))
    answer = made.recv(4096)
    error = struct.unpack_from("=i", answer, 16)[0]
    if struct.unpack_from("=H", answer, 4)[0] == 2 and error:
        raise OSError(-error, os.strerror(-error))


def plant_address():
    # RTM_NEWADDR for 127.0.0.77 on the loopback interface.
    attribute = struct.pack("=HH4s", 8, 2, bytes([127, 0, 0, 77]))
    netlink(20, 0x605, struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 1) + attribute)


def plant_route():
    # RTM_NEWROUTE to 10.77.0.0/16 over the loopback interface.
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 16, 0, 0, 254, 4, 253, 1, 0)
    body += struct.pack("=HH4s", 8, 1, bytes([10, 77, 0, 0])) + struct.pack("=HHI", 8, 4, 1)
    netlink(24, 0x605, body)


def look_route():
    return table("fib_trie", "10.77.0.0")


def plant_multicast():
    made = sock(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.7.7.7") + socket.inet_aton("127.0.0.1"))


def plant_flow_label():
    made = sock(socket.AF_INET6, socket.SOCK_DGRAM)
    # struct in6_flowlabel_req: ::1, label, GET, share ANY, CREATE, expires, linger.
    request = socket.inet_pton(socket.AF_INET6, "::1") + struct.pack("=IBBHHHI", socket.htonl(0x77777), 0, 255, 1, 60, 60, 0)
    made.setsockopt(socket.IPPROTO_IPV6, 32, request)


def look_flow_label():
    return table("ip6_flowlabel", "77777")


def plant_conntrack():
    sock(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 7177))


def look_conntrack():
    # Only the host's root may read it: the test looks from there.
    return os.access("/proc/net/nf_conntrack", os.R_OK) and table("nf_conntrack", "dport=7177")


def in_flight():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    # A descriptor that is only in a message: nobody's until it is received.
    socket.send_fds(one, [MARK.encode()], [sock(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 7107)).fileno()])
    kept.append((one, other))
    kept[-2].close()


# --- names, settings, counters

def plant_hostname():
    call(libc.sethostname(MARK.encode(), len(MARK)))


def look_hostname():
    return os.uname().nodename == MARK


def sysctl(path, value):
    def plant():
        with open(path, "w") as file:
            file.write(value)

    return plant


def read(path):
    with open(path) as file:
        return file.read().strip()


def plant_limits():
    resource.setrlimit(resource.RLIMIT_NOFILE, (77, 77))


def plant_nice():
    os.nice(7)


def plant_mount():
    call(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))


def plant_oom():
    sysctl("/proc/self/oom_score_adj", "777")()


CLASSES = {
    "processes": (plant_process, look_process),
    "/tmp": (lambda: write("/tmp/" + MARK), lambda: has("/tmp/" + MARK)),
    "/dev/shm": (lambda: write("/dev/shm/" + MARK), lambda: has("/dev/shm/" + MARK)),
    "/var/task": (lambda: write("/var/task/" + MARK), lambda: has("/var/task/" + MARK)),
    "root": (lambda: write("/" + MARK), lambda: has("/" + MARK)),
    "mounts": (plant_mount, lambda: " /tmp rw" in read("/proc/self/mountinfo").replace(" /tmp rw", "", 1)),
    "System V shared memory": (plant_shm, lambda: libc.shmget(KEY, 0, 0) >= 0),
    "System V semaphores": (lambda: call(libc.semget(KEY, 1, 0o1666)), lambda: libc.semget(KEY, 0, 0) >= 0),
    "System V queues": (lambda: call(libc.msgget(KEY, 0o1666)), lambda: libc.msgget(KEY, 0) >= 0),
    "POSIX queues": (
        lambda: call(libc.mq_open(b"/" + MARK.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)),
        lambda: libc.mq_open(b"/" + MARK.encode(), os.O_RDWR) >= 0,
    ),
    "POSIX semaphores": (plant_posix_semaphore, lambda: has("/dev/shm/sem." + MARK)),
    "keyrings": (plant_key, look_key),
    "flock": (plant_flock, look_flock),
    "POSIX locks": (plant_posix_lock, lambda: " POSIX " in locks()),
    "leases": (plant_lease, lambda: " LEASE " in locks()),
    "inotify": (plant_inotify, look_inotify),
    "abstract sockets": (
        lambda: sock(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + MARK, True),
        lambda: table("unix", "@" + MARK),
    ),
    "listening TCP": (lambda: sock(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 7101), True), net_port("tcp", 7101)),
    "listening TCP over IPv6": (lambda: sock(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 7102), True), net_port("tcp6", 7102)),
    "UDP": (lambda: sock(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 7103)), net_port("udp", 7103)),
    "remembered connections": (plant_time_wait, look_time_wait),
    "descriptors in flight": (in_flight, net_port("udp", 7107)),
    "addresses": (plant_address, lambda: table("fib_trie", "127.0.0.77")),
    "routes": (plant_route, look_route),
    "multicast groups": (plant_multicast, lambda: table("igmp", "070707E0")),
    "IPv6 flow labels": (plant_flow_label, look_flow_label),
    "connection tracking": (plant_conntrack, look_conntrack),
    "host name": (plant_hostname, look_hostname),
    "network settings": (sysctl("/proc/sys/net/ipv4/ip_default_ttl", "77"), lambda: read("/proc/sys/net/ipv4/ip_default_ttl") == "77"),
    "ipc settings": (sysctl("/proc/sys/kernel/shmmni", "77"), lambda: read("/proc/sys/kernel/shmmni") == "77"),
    "resource limits": (plant_limits, lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 77),
    "priority": (plant_nice, lambda: os.nice(0) == 7),
    "oom score": (plant_oom, lambda: read("/proc/self/oom_score_adj") == "777"),
}


def look():
    found = {}
    for name, (_, find) in CLASSES.items():
        try:
            found[name] = bool(find())
        except OSError as error:
            found[name] = "cannot look: " + errno.errorcode[error.errno]
    return found


def plant():
    planted = {}
    for name, (put, _) in CLASSES.items():
        try:
            put()
            planted[name] = "planted"
        except OSError as error:
            planted[name] = errno.errorcode[error.errno]
    # Another process of the same sandbox: what is not seen here could not be seen later either. It inherits limits and
    # priority, and not the locks.
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(look()).encode())
        os._exit(0)
    os.close(writer)
    seen = json.loads(os.fdopen(reader).read())
    return {"planted": planted, "seen": seen}


def fields():
    """Everything that a process can read about the place that it lives in."""
    found = {}

    def file(path):
        try:
            with open(path, errors="replace") as opened:
                found[path] = opened.read(1 << 16)
        except OSError as error:
            found[path] = errno.errorcode.get(error.errno, "?")

    for name in sorted(os.listdir("/proc/self")):
        path = "/proc/self/" + name
        if os.path.isfile(path):
            file(path)
    for folder in ("/proc/self/net", "/proc/sys/net", "/proc/sys/kernel", "/proc/sys/fs", "/proc/sys/user", "/proc/sysvipc"):
        for where, _, names in os.walk(folder):
            for name in sorted(names):
                file(os.path.join(where, name))
    for name in sorted(os.listdir("/proc/self/ns")):
        found["/proc/self/ns/" + name] = os.readlink("/proc/self/ns/" + name)
    for name in ("/proc/mounts", "/proc/keys", "/proc/key-users", "/proc/locks"):
        file(name)
    for where in ("/", "/tmp", "/dev", "/dev/shm", "/var/task", "/var/runtime", "/run", "/proc/self/fd"):
        found["ls " + where] = sorted(os.listdir(where))
    for where in ("/", "/tmp", "/dev/shm", "/dev"):
        status = os.stat(where)
        found["stat " + where] = [status.st_mode, status.st_uid, status.st_gid, status.st_nlink]
        space = os.statvfs(where)
        found["space " + where] = [space.f_blocks, space.f_bfree, space.f_files, space.f_ffree] if where != "/" else []
    found["pids"] = sorted(filter(str.isdigit, os.listdir("/proc")))
    found["umask"] = os.umask(0)
    found["environment"] = dict(os.environ)
    return found


print(json.dumps({"plant": plant, "look": look, "fields": fields}[sys.argv[1]]()), flush=True)
