//! A program in namespaces of its own, as in a sandbox.

use rouse_snapshot::model::{DescriptionKind, TmpKind};

use super::subject::{Subject, kind};

const LOOPBACK_UP: &str = r#"
import fcntl
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1))
"#;

#[test]
fn ids_are_those_of_the_sandbox() {
    let subject = Subject::start_in_sandbox("spawn('other', park); ready(os.getpid()); park()");
    subject.wait_until_in(&[libc::SYS_pause, libc::SYS_pause]);
    let taken = subject.checkpoint();
    assert_eq!(subject.words, ["2"]);
    let tids: Vec<i32> = taken
        .snapshot
        .threads
        .iter()
        .map(|thread| thread.tid)
        .collect();
    assert_eq!(tids, [2, 3]);
    assert_eq!(taken.snapshot.process.cwd, b"/");
    assert_eq!(taken.snapshot.tmp, []);
}

#[test]
fn other_processes_of_the_sandbox_are_obstacles() {
    // An orphan: it belongs to the namespace's first process now.
    let subject = Subject::start_in_sandbox(
        r#"
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        name("orphan")
        os.write(w, str(os.getpid()).encode())
        park()
    os._exit(0)
os.wait()
pid = os.read(r, 10).decode()
os.close(r)
os.close(w)
ready(pid)
park()
"#,
    );
    assert_eq!(
        subject.obstacle(),
        format!(
            "process {} (orphan): child processes cannot be snapshotted",
            subject.words[0]
        )
    );
}

#[test]
fn the_api_connection_is_told_from_others() {
    let subject = Subject::start_in_sandbox(&format!(
        r#"
{LOOPBACK_UP}
server = socket.create_server(("127.0.0.1", 9001))
api = socket.create_connection(("127.0.0.1", 9001))
api.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
other = socket.create_connection(("127.0.0.1", 9001))
accepted, _ = server.accept()
ready(api.getsockname()[1], api.fileno(), other.fileno(), accepted.fileno())
park()
"#
    ));
    let port = subject.number(0) as u16;
    subject.wait_until_in(&[libc::SYS_pause]);
    let taken = subject.try_checkpoint(port).unwrap();
    let DescriptionKind::RuntimeApi { options } = kind(&taken, subject.number(1)) else {
        panic!("{:?}", kind(&taken, subject.number(1)));
    };
    assert!(
        options
            .iter()
            .any(|option| option.name == libc::TCP_NODELAY && option.value == [1, 0, 0, 0])
    );
    let closed = DescriptionKind::ClosedConnection {
        family: libc::AF_INET,
        kind: libc::SOCK_STREAM,
        queue: vec![],
    };
    assert_eq!(*kind(&taken, subject.number(2)), closed);
    assert_eq!(*kind(&taken, subject.number(3)), closed);
}

#[test]
fn temporary_files_are_part_of_it() {
    let subject = Subject::start_in_sandbox(
        r#"
os.mkdir("/tmp/dir", 0o750)
with open("/tmp/dir/file", "wb") as f:
    f.write(b"x" * 5000)
open("/tmp/empty", "wb").close()
os.symlink("/etc/passwd", "/tmp/link")
kept = open("/tmp/dir/file", "rb")
kept.seek(10)
import tempfile
nameless = tempfile.TemporaryFile()
nameless.write(b"nameless")
nameless.flush()
listener = socket.socket(socket.AF_UNIX)
listener.bind("/tmp/socket")
listener.listen()
area = mmap.mmap(kept.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=1)
ready(kept.fileno(), listener.fileno(), nameless.fileno())
park()
"#,
    );
    let taken = subject.checkpoint();
    let tmp = &taken.snapshot.tmp;
    let entry = |path: &str| {
        tmp.iter()
            .find(|entry| entry.path == path.as_bytes())
            .unwrap()
    };
    assert_eq!(tmp.len(), 5, "{tmp:?}");
    assert_eq!(entry("/tmp/socket").kind, TmpKind::Socket);
    assert_eq!(
        (entry("/tmp/dir").mode, &entry("/tmp/dir").kind),
        (0o750, &TmpKind::Directory)
    );
    assert_eq!(
        entry("/tmp/link").kind,
        TmpKind::Symlink {
            target: b"/etc/passwd".to_vec()
        }
    );
    let TmpKind::File { size: 0, .. } = entry("/tmp/empty").kind else {
        panic!("{:?}", entry("/tmp/empty"));
    };
    let TmpKind::File { size: 5000, saved } = &entry("/tmp/dir/file").kind else {
        panic!("{:?}", entry("/tmp/dir/file"));
    };
    let pool_page = saved[0].pool_page;
    let mut content = [0; 8192];
    rustix::io::pread(&taken.pool, &mut content, pool_page * 4096).unwrap();
    assert!(content[..5000].iter().all(|byte| *byte == b'x'));
    assert!(content[5000..].iter().all(|byte| *byte == 0));
    let DescriptionKind::Path {
        path,
        offset: 10,
        identity: None,
    } = kind(&taken, subject.number(0))
    else {
        panic!("{:?}", kind(&taken, subject.number(0)));
    };
    assert_eq!(path, b"/tmp/dir/file");
    let DescriptionKind::Socket {
        bound: Some(address),
        ..
    } = kind(&taken, subject.number(1))
    else {
        panic!("{:?}", kind(&taken, subject.number(1)));
    };
    assert!(address[2..].starts_with(b"/tmp/socket"));
    let DescriptionKind::MemFd {
        size: 8,
        offset: 8,
        saved,
        ..
    } = kind(&taken, subject.number(2))
    else {
        panic!("{:?}", kind(&taken, subject.number(2)));
    };
    rustix::io::pread(&taken.pool, &mut content[..8], saved[0].pool_page * 4096).unwrap();
    assert_eq!(&content[..8], b"nameless");
}

#[test]
fn what_cannot_be_kept_in_tmp_is_named() {
    let subject = Subject::start_in_sandbox(
        "open('/tmp/x', 'w').close(); os.setxattr('/tmp/x', 'user.a', b'b'); ready(); park()",
    );
    assert_eq!(subject.obstacle(), "/tmp/x: file with extended attributes");
    let subject = Subject::start_in_sandbox("open('/dev/shm/named', 'w').close(); ready(); park()");
    assert_eq!(subject.obstacle(), "/dev/shm/named: named shared memory");
}

#[test]
fn system_v_objects_of_the_sandbox_are_obstacles() {
    for (make, what) in [
        ("syscall(29, 0, 4096, 0o1600)", "shared memory"),
        ("syscall(68, 0, 0o1600)", "message queues"),
        ("syscall(64, 0, 1, 0o1600)", "semaphores"),
    ] {
        let script = format!("syscall(272, 0x08000000); {make}; ready(); park()");
        let subject = Subject::start_in_sandbox(&script);
        assert_eq!(
            subject.obstacle(),
            format!("ipc namespace: System V {what}")
        );
    }
}

#[test]
fn message_queues_of_the_sandbox_are_obstacles() {
    let open = "syscall(272, 0x08000000); fd = syscall(240, b'queue', 0o102, 0o600, None)";
    for (then, expected) in [
        ("os.close(fd)", "ipc namespace: POSIX message queue /queue"),
        // One without a name has a descriptor, or is gone.
        (
            "syscall(241, b'queue')",
            "fd 3: POSIX message queue /queue (deleted)",
        ),
    ] {
        let subject = Subject::start_in_sandbox(&format!("{open}; {then}; ready(); park()"));
        assert_eq!(subject.obstacle(), expected);
    }
    let script = format!("{open}; syscall(241, b'queue'); os.close(fd); ready(); park()");
    Subject::start_in_sandbox(&script).checkpoint();
}

#[test]
fn memberships_of_multicast_groups_are_kept() {
    let subject = Subject::start_in_sandbox(&format!(
        r#"
{LOOPBACK_UP}
def udp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_DGRAM)
member, other, six = udp(), udp(), udp(socket.AF_INET6)
member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.3.2.1") + bytes(4) + struct.pack("i", 1))
other.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 9)
other.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
six.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.3.2.1") + bytes(4) + struct.pack("i", 1))
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::77") + struct.pack("i", 1))
ready(member.fileno(), other.fileno(), six.fileno())
park()
"#
    ));
    let taken = subject.checkpoint();
    let options = |index: usize| match kind(&taken, subject.number(index)) {
        DescriptionKind::Socket { options, .. } => options
            .iter()
            .filter(|option| option.name != libc::IPV6_V6ONLY)
            .map(|option| (option.level, option.name, option.value.clone()))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let membership = [239, 3, 2, 1, 0, 0, 0, 0, 1, 0, 0, 0].to_vec();
    let join = (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, membership);
    assert_eq!(options(0), std::slice::from_ref(&join));
    let device = [127, 0, 0, 1].to_vec();
    let hops = [9, 0, 0, 0].to_vec();
    let settings = [
        (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, device),
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, hops),
    ];
    assert_eq!(options(1), settings);
    let mut membership = vec![0; 20];
    (membership[0], membership[1], membership[15], membership[16]) = (0xff, 2, 0x77, 1);
    let join_six = (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, membership);
    assert_eq!(options(2), [join, join_six]);
}

#[test]
fn multicast_groups_that_no_new_sandbox_can_join_are_obstacles() {
    let subject = Subject::start_in_sandbox(&format!(
        r#"
{LOOPBACK_UP}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
group, device, source = [socket.inet_aton(a) for a in ["239.3.2.1", "127.0.0.1", "127.0.0.9"]]
s.setsockopt(socket.IPPROTO_IP, 39, group + device + source)
ready(s.fileno())
park()
"#
    ));
    assert_eq!(
        subject.obstacle(),
        format!(
            "fd {}: multicast group with a list of senders",
            subject.words[0]
        )
    );
}
