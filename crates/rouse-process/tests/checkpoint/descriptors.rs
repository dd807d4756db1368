//! Descriptors of each kind.

use rouse_snapshot::model::{DescriptionKind, EpollWatch, InotifyWatch};

use super::subject::{Subject, kind};

#[test]
fn the_log_files_and_devices() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, "0123456789").unwrap();
    let subject = Subject::start(&format!(
        r#"
os.dup2(1, 2)
file = os.open("{}", os.O_RDWR | os.O_APPEND)
os.lseek(file, 4, 0)
duplicate = os.dup(file)
os.set_inheritable(duplicate, True)
again = os.open("{0}", os.O_RDONLY)
directory = os.open("/usr/lib", os.O_RDONLY | os.O_DIRECTORY)
random = os.open("/dev/urandom", os.O_RDONLY)
proc = os.open("/proc/self/status", os.O_RDONLY)
ready(file, duplicate, again, directory, random, proc)
park()
"#,
        path.display()
    ));
    let taken = subject.checkpoint();
    let snapshot = &taken.snapshot;
    let descriptor = |fd: u64| {
        snapshot
            .descriptors
            .iter()
            .find(|descriptor| descriptor.fd as u64 == fd)
            .unwrap()
    };
    assert_eq!(*kind(&taken, 1), DescriptionKind::Log);
    assert_eq!(
        descriptor(1).description,
        descriptor(2).description,
        "2 is a duplicate of 1"
    );
    let DescriptionKind::Path {
        path: null,
        identity: None,
        ..
    } = kind(&taken, 0)
    else {
        panic!("{:?}", kind(&taken, 0));
    };
    assert_eq!(null, b"/dev/null");

    let [file, duplicate, again, directory, random, proc] =
        [0, 1, 2, 3, 4, 5].map(|at| subject.number(at));
    assert_eq!(
        descriptor(file).description,
        descriptor(duplicate).description
    );
    assert_ne!(descriptor(file).description, descriptor(again).description);
    assert!(descriptor(file).close_on_exec && !descriptor(duplicate).close_on_exec);
    let DescriptionKind::Path {
        path: name,
        offset,
        identity: Some(identity),
    } = kind(&taken, file)
    else {
        // The directory for temporary files may be the function's own.
        panic!("{:?}", kind(&taken, file));
    };
    assert_eq!(name, path.as_os_str().as_encoded_bytes());
    assert_eq!((*offset, snapshot.files[identity.0 as usize].size), (4, 10));
    let flags = snapshot.descriptions[descriptor(file).description.0 as usize].flags;
    assert_eq!(
        flags & (libc::O_ACCMODE | libc::O_APPEND) as u32,
        (libc::O_RDWR | libc::O_APPEND) as u32
    );
    for (fd, expected) in [
        (directory, b"/usr/lib".as_slice()),
        (random, b"/dev/urandom"),
    ] {
        let DescriptionKind::Path {
            path,
            identity: None,
            ..
        } = kind(&taken, fd)
        else {
            panic!("{:?}", kind(&taken, fd));
        };
        assert_eq!(path, expected);
    }
    let DescriptionKind::Path { identity: None, .. } = kind(&taken, proc) else {
        panic!("{:?}", kind(&taken, proc));
    };
}

#[test]
fn pipes_with_content() {
    let subject = Subject::start(
        r#"
import fcntl
r, w = os.pipe()
os.write(w, b"in the pipe")
fcntl.fcntl(r, 1031, 1 << 16 << 1)
lonely_r, lonely_w = os.pipe()
os.write(lonely_w, b"left")
os.close(lonely_w)
other_r, other_w = os.pipe()
os.close(other_r)
os.set_blocking(r, False)
ready(r, w, lonely_r, other_w)
park()
"#,
    );
    let taken = subject.checkpoint();
    let pipe = |at: usize| match kind(&taken, subject.number(at)) {
        DescriptionKind::Pipe {
            pipe,
            write_end,
            content,
            capacity,
        } => (*pipe, *write_end, content.as_slice(), *capacity),
        other => panic!("{other:?}"),
    };
    let number = pipe(0).0;
    assert_eq!(pipe(0), (number, false, b"in the pipe".as_slice(), 131_072));
    assert_eq!(pipe(1), (number, true, b"".as_slice(), 131_072));
    assert_eq!(
        (pipe(2).1, pipe(2).2),
        (false, b"left".as_slice()),
        "its other end is closed"
    );
    assert!(pipe(3).1 && pipe(3).0 != pipe(2).0 && pipe(3).0 != number);
}

#[test]
fn counters_timers_signals_and_sets() {
    let subject = Subject::start(
        r#"
counter = syscall(290, 5, 0o4000)
semaphore = syscall(290, 6, 1)
timer = syscall(283, 1, 0)
syscall(286, timer, 0, (ctypes.c_long * 4)(3, 0, 1000, 0), 0)
mask = (ctypes.c_ulong * 1)(1 << (signal.SIGUSR1 - 1))
signals = syscall(289, -1, mask, 8, 0)
set = select.epoll()
set.register(counter, select.EPOLLIN | select.EPOLLET)
set.register(timer, select.EPOLLIN)
watcher = syscall(294, 0)
a = syscall(254, watcher, ctypes.c_char_p(b"/usr/lib"), 0x100)
b = syscall(254, watcher, ctypes.c_char_p(b"/usr/bin"), 0x200)
c = syscall(254, watcher, ctypes.c_char_p(b"/etc/passwd"), 0x8)
syscall(255, watcher, a)
os.read(watcher, 4096)
ready(counter, semaphore, timer, signals, set.fileno(), watcher)
park()
"#,
    );
    let taken = subject.checkpoint();
    let [counter, semaphore, timer, signals, set, watcher] =
        [0, 1, 2, 3, 4, 5].map(|at| subject.number(at));
    assert_eq!(
        *kind(&taken, counter),
        DescriptionKind::EventFd {
            count: 5,
            semaphore: false
        }
    );
    assert_eq!(
        *kind(&taken, semaphore),
        DescriptionKind::EventFd {
            count: 6,
            semaphore: true
        }
    );
    let DescriptionKind::TimerFd {
        clock: 1,
        remaining_ns,
        expires_at_ns: 0,
        cancel_on_set: false,
        interval_ns: 3_000_000_000,
        ticks: 0,
    } = kind(&taken, timer)
    else {
        panic!("{:?}", kind(&taken, timer));
    };
    assert!((1..=1_000_000_000_000).contains(remaining_ns));
    assert_eq!(
        *kind(&taken, signals),
        DescriptionKind::SignalFd {
            mask: 1 << (libc::SIGUSR1 - 1)
        }
    );
    // The kernel always adds errors and hang-ups.
    let watch = |fd: u64, events: i32| EpollWatch {
        fd: fd as i32,
        events: (events | libc::EPOLLERR | libc::EPOLLHUP) as u32,
        data: fd,
    };
    let expected = vec![
        watch(counter, libc::EPOLLIN | libc::EPOLLET),
        watch(timer, libc::EPOLLIN),
    ];
    let DescriptionKind::Epoll { watches } = kind(&taken, set) else {
        panic!("{:?}", kind(&taken, set));
    };
    let watches: Vec<EpollWatch> = watches
        .iter()
        .map(|watch| EpollWatch {
            data: watch.data & 0xffff_ffff,
            ..*watch
        })
        .collect();
    assert_eq!(watches, expected);
    let watch = |wd, path: &[u8], mask| InotifyWatch {
        wd,
        path: path.to_vec(),
        mask,
    };
    assert_eq!(
        *kind(&taken, watcher),
        DescriptionKind::Inotify {
            watches: vec![watch(2, b"/usr/bin", 0x200), watch(3, b"/etc/passwd", 0x8)]
        }
    );
}

#[test]
fn unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _elsewhere = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let subject = Subject::start(&format!(
        r#"
a, b = socket.socketpair()
a.send(b"one ")
a.send(b"two")
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
d.send(b"first")
d.send(b"second")
c.settimeout(5)
elsewhere = socket.socket(socket.AF_UNIX)
elsewhere.connect("{}")
alone, closed = socket.socketpair()
closed.close()
listener = socket.socket(socket.AF_UNIX)
listener.bind("\0rouse-test-" + str(os.getpid()))
listener.listen(7)
inside = socket.socket(socket.AF_UNIX)
inside.connect("\0rouse-test-" + str(os.getpid()))
accepted, _ = listener.accept()
fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
ready(*[s.fileno() for s in [a, b, c, d, elsewhere, alone, listener, inside, accepted, fresh]])
park()
"#,
        path.display()
    ));
    let taken = subject.checkpoint();
    let pair = |at: usize| match kind(&taken, subject.number(at)) {
        DescriptionKind::SocketPair {
            pair,
            second,
            kind,
            queue,
            ..
        } => (*pair, *second, *kind, queue.clone()),
        other => panic!("{other:?}"),
    };
    let (stream, packets) = (pair(0).0, pair(2).0);
    assert_eq!(pair(0), (stream, false, libc::SOCK_STREAM, vec![]));
    assert_eq!(
        pair(1),
        (stream, true, libc::SOCK_STREAM, vec![b"one two".to_vec()])
    );
    assert_eq!(
        pair(2),
        (
            packets,
            false,
            libc::SOCK_SEQPACKET,
            vec![b"first".to_vec(), b"second".to_vec()]
        )
    );
    assert_eq!(pair(3), (packets, true, libc::SOCK_SEQPACKET, vec![]));
    assert_ne!(stream, packets);
    let closed = DescriptionKind::ClosedConnection {
        family: libc::AF_UNIX,
        kind: libc::SOCK_STREAM,
        queue: vec![],
    };
    assert_eq!(*kind(&taken, subject.number(4)), closed);
    assert_eq!(*kind(&taken, subject.number(5)), closed);
    let DescriptionKind::Socket {
        bound: Some(address),
        listen: Some(_),
        ..
    } = kind(&taken, subject.number(6))
    else {
        panic!("{:?}", kind(&taken, subject.number(6)));
    };
    assert_eq!(
        address[2..],
        *format!("\0rouse-test-{}", subject.pid).as_bytes()
    );
    assert_eq!(pair(7).0, pair(8).0);
    let DescriptionKind::Socket {
        family: libc::AF_UNIX,
        kind: libc::SOCK_DGRAM,
        bound: None,
        listen: None,
        ..
    } = kind(&taken, subject.number(9))
    else {
        panic!("{:?}", kind(&taken, subject.number(9)));
    };
}

#[test]
fn internet_sockets() {
    let subject = Subject::start(
        r#"
listener = socket.create_server(("127.0.0.1", 0), backlog=33)
client = socket.create_connection(listener.getsockname())
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
fresh = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
fresh.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.bind(("::1", 0))
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
ready(*[s.fileno() for s in [listener, client, fresh, datagrams, netlink]], listener.getsockname()[1])
park()
"#,
    );
    let taken = subject.checkpoint();
    let socket = |at: usize| match kind(&taken, subject.number(at)) {
        DescriptionKind::Socket {
            family,
            kind,
            bound,
            listen,
            options,
            ..
        } => (*family, *kind, bound.clone(), *listen, options.clone()),
        other => panic!("{other:?}"),
    };
    let (family, kind_of, bound, listen, options) = socket(0);
    assert_eq!(
        (family, kind_of, listen),
        (libc::AF_INET, libc::SOCK_STREAM, Some(33))
    );
    let bound = bound.unwrap();
    assert_eq!(
        u64::from(u16::from_be_bytes([bound[2], bound[3]])),
        subject.number(5)
    );
    assert!(
        options
            .iter()
            .any(|option| option.name == libc::SO_REUSEADDR && option.value == [1, 0, 0, 0])
    );
    assert_eq!(
        *kind(&taken, subject.number(1)),
        DescriptionKind::ClosedConnection {
            family: libc::AF_INET,
            kind: libc::SOCK_STREAM,
            queue: vec![],
        }
    );
    let (_, _, bound, listen, options) = socket(2);
    assert_eq!((bound, listen), (None, None));
    assert!(options.iter().any(|option| {
        option.level == libc::IPPROTO_TCP
            && option.name == libc::TCP_KEEPIDLE
            && option.value == [77, 0, 0, 0]
    }));
    let (family, kind_of, bound, _, options) = socket(3);
    assert_eq!((family, kind_of), (libc::AF_INET6, libc::SOCK_DGRAM));
    assert!(
        bound.is_some()
            && options
                .iter()
                .any(|option| option.name == libc::IPV6_V6ONLY)
    );
    assert_eq!(socket(4).0, libc::AF_NETLINK);
}

/// Runs a script that passes a descriptor to `ready`, and says what the obstacle is at that descriptor.
fn obstacle_at_fd(script: &str) -> String {
    let subject = Subject::start(&format!("{script}\npark()"));
    let obstacle = subject.obstacle();
    let prefix = format!("fd {}: ", subject.words[0]);
    obstacle
        .strip_prefix(&prefix)
        .unwrap_or_else(|| panic!("{obstacle}"))
        .to_owned()
}

#[test]
fn what_cannot_be_brought_back_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    assert_eq!(
        obstacle_at_fd(
            "params = (ctypes.c_byte * 256)(); ready(syscall(425, 4, ctypes.byref(params)))"
        ),
        "io_uring instance"
    );
    assert_eq!(
        obstacle_at_fd(&format!(
            "fd = os.open('{path}/x', os.O_RDWR | os.O_CREAT); os.unlink('{path}/x'); ready(fd)"
        )),
        format!("deleted file {path}/x")
    );
    assert_eq!(
        obstacle_at_fd(
            "a = os.memfd_create('m'); b = os.open(f'/proc/self/fd/{a}', os.O_RDWR); ready(b)"
        ),
        "/memfd:m (deleted) is open twice"
    );
    assert_eq!(
        obstacle_at_fd(&format!(
            "import fcntl; fd = os.open('{path}/y', os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX); ready(fd)"
        )),
        format!("file lock on {path}/y")
    );
    assert_eq!(
        obstacle_at_fd(&format!(
            "os.mkfifo('{path}/z'); ready(os.open('{path}/z', os.O_RDWR))"
        )),
        format!("named pipe {path}/z")
    );
    assert_eq!(
        obstacle_at_fd("ready(os.open('/dev/kmsg', os.O_WRONLY))"),
        "device /dev/kmsg"
    );
    assert!(
        obstacle_at_fd("ready(os.open('/proc/self/ns/uts', os.O_RDONLY))").starts_with("uts:[")
    );
    assert!(obstacle_at_fd("ready(os.pidfd_open(os.getpid()))").contains("pidfd"));
    assert_eq!(
        obstacle_at_fd(
            "e = select.epoll(); r, w = os.pipe(); e.register(w, select.EPOLLOUT); d = os.dup(w); os.close(w); ready(e.fileno(), w)"
        )
        .split(" (")
        .next(),
        Some("epoll set that watches a closed descriptor")
    );
    assert_eq!(
        obstacle_at_fd("a, b = socket.socketpair(); a.shutdown(1); ready(a.fileno())"),
        "half-closed socket pair"
    );
    assert_eq!(
        obstacle_at_fd(
            "a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0]); ready(b.fileno())"
        ),
        "descriptors in flight on a UNIX socket"
    );
    assert_eq!(
        obstacle_at_fd(
            "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); ready(s.fileno())"
        ),
        "socket of address family 17"
    );
}

/// Standard output is a pipe to the test; without the log's inode it is just that.
#[test]
fn a_pipe_to_somebody_else_is_an_obstacle() {
    let subject = Subject::start("ready(); park()");
    subject.wait_until_in(&[libc::SYS_pause]);
    let target = rouse_process::checkpoint::CheckpointTarget {
        pid: subject.pid,
        init_pid: 0,
        api_client_port: 0,
        log_inode: 0,
        host_path: &|path| Some(String::from_utf8(path.to_vec()).ok()?.into()),
        baseline_rlimits: &[],
        lineage: &[],
        specimen: None,
        costs: Default::default(),
        afterwards: rouse_process::checkpoint::Afterwards::Ends,
    };
    let error = rouse_process::checkpoint::checkpoint(&target).unwrap_err();
    assert_eq!(error.to_string(), "fd 1: pipe to another process");
}
