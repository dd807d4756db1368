//! What a jailed process can still do. Needs root, and no KVM.
//!
//! Each attempt is a process of its own: this program, started again. Most attempts end it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use rouse_sandbox::confine;
use rouse_vmm::devices::virtio::vsock::{Dialer, Ports};
use rouse_vmm::devices::virtio::{Bus, DeviceConfig, OpenDevices, OpenDisk, Worker};
use rouse_vmm::jail::{self, Jail};
use rouse_vmm::{host, zygote};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const JAIL: Jail = Jail {
    uid: 64_123,
    gid: 64_124,
};
/// The attempt did what it should.
const AS_IT_SHOULD: i32 = 42;

type Attempt = (&'static str, fn() -> bool);

/// Things that are still possible, or fail without ending the process.
const POSSIBLE: &[Attempt] = &[
    ("threads", || {
        let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(move || n * 2)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<i32>()
            == 12
    }),
    ("memory", || {
        vec![1_u8; 64 << 20]
            .iter()
            .map(|byte| u64::from(*byte))
            .sum::<u64>()
            == 64 << 20
    }),
    ("files", || {
        std::fs::File::open("/etc/passwd").is_err() && std::fs::read("/").is_err()
    }),
    ("connections of a guest", || {
        let socketpair = |kind| {
            let flags = SocketFlags::CLOEXEC;
            rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
        };
        let (supervisor, node) = socketpair(SocketType::SEQPACKET);
        let dialer = Dialer::Handed {
            node,
            ports: vec![7],
        };
        let ports = Ports { guest: 9, host: 7 };
        let mut guest = dialer.dial(ports).unwrap();
        let (told, descriptors) = confine::receive(&supervisor).unwrap().unwrap();
        let [stream] = <[_; 1]>::try_from(descriptors).unwrap();
        let mut stream = UnixStream::from(stream);
        guest.write_all(b"there").unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        let mut peeked = [0; 8];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (_, count) = rustix::net::recv(&stream, &mut peeked[..], flags).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        told == [7, 0, 0, 0, 9, 0, 0, 0] && (count, text.as_str()) == (5, "there")
    }),
    ("devices", || {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let image = rustix::fs::memfd_create("image", flags).unwrap();
        rustix::fs::ftruncate(&image, 8192).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let (_supervisor, node) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        let devices = OpenDevices {
            disks: vec![OpenDisk {
                name: "/".into(),
                image: image.into(),
            }],
            vsock: Some(Dialer::Handed {
                node,
                ports: vec![7],
            }),
            ..DeviceConfig::default().open().unwrap()
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let bus = Arc::new(Bus::of(devices, &memory).unwrap());
        drop(Worker::start(&bus).unwrap());
        let saved = bus.save();
        bus.restore(&saved).is_ok() && saved.len() == 3
    }),
    ("randomness", || {
        let mut bytes = [0; 16];
        // SAFETY: the place has 16 bytes.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), 16, 0) == 16 }
    }),
    ("a processor that serves devices", || {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let event = rustix::event::eventfd(0, flags).unwrap();
        let lock = std::sync::Mutex::new(0_usize);
        as_processor(|| {
            rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
            let mut count = [0; 8];
            rustix::io::read(&event, &mut count).unwrap();
            // From the kernel, not from what the allocator has.
            let memory = vec![1_u8; 8 << 20];
            *lock.lock().unwrap() += memory.iter().map(|byte| usize::from(*byte)).sum::<usize>();
            u64::from_ne_bytes(count) == 1
        }) && *lock.lock().unwrap() == 8 << 20
    }),
    ("a process in which a processor has ended", || {
        as_processor(|| true);
        // The shorter list was that thread's alone.
        for (_, number, arguments) in MAIN_ONLY {
            call(*number, *arguments);
        }
        true
    }),
];

/// What the main thread may do and a processor may not: calls that do no harm, or fail, where they are allowed.
const MAIN_ONLY: &[(&str, libc::c_long, [libc::c_long; 5])] = &[
    // All of KVM but what runs a guest: KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION.
    ("the version of KVM", libc::SYS_ioctl, [-1, 0xae00, 0, 0, 0]),
    ("a machine", libc::SYS_ioctl, [-1, 0xae01, 0, 0, 0]),
    (
        "memory for its machine",
        libc::SYS_ioctl,
        [-1, 0x4020_ae46, 0, 0, 0],
    ),
    ("orders", libc::SYS_recvmsg, [-1, 0, 0, 0, 0]),
    ("answers", libc::SYS_sendmsg, [-1, 0, 0, 0, 0]),
    ("blocks of a disk", libc::SYS_pread64, [-1, 0, 0, 0, 0]),
    ("pages of a snapshot", libc::SYS_pwrite64, [-1, 0, 0, 0, 0]),
    (
        "a connection",
        libc::SYS_socketpair,
        [libc::AF_UNIX as _, -1, 0, 0, 0],
    ),
    ("a memory file", libc::SYS_memfd_create, [0; 5]),
    ("a length", libc::SYS_ftruncate, [-1, 0, 0, 0, 0]),
    ("its own randomness", libc::SYS_getrandom, [0; 5]),
    ("handlers of signals", libc::SYS_rt_sigaction, [0; 5]),
    (
        "a copy of a descriptor",
        libc::SYS_fcntl,
        [-1, libc::F_DUPFD_CLOEXEC as _, 0, 0, 0],
    ),
];

/// Runs `body` in a thread that has given up what a processor's thread gives up.
fn as_processor<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            jail::enter_vcpu().unwrap();
            body()
        });
        thread.join().unwrap()
    })
}

/// What a system call returns, if it returns.
fn call(number: libc::c_long, [a, b, c, d, e]: [libc::c_long; 5]) -> libc::c_long {
    // SAFETY: none of those in the lists does anything to this process: it is ended before, or the call fails.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

/// The name of an attempt that a processor's thread makes begins so.
const BY_A_PROCESSOR: &str = "by a processor: ";

/// Things that end the process: a system call with its arguments.
const FATAL: &[(&str, libc::c_long, [libc::c_long; 5])] = &[
    (
        "a socket",
        libc::SYS_socket,
        [libc::AF_UNIX as _, libc::SOCK_STREAM as _, 0, 0, 0],
    ),
    (
        "a pair of other sockets",
        libc::SYS_socketpair,
        [libc::AF_TIPC as _, libc::SOCK_STREAM as _, 0, 0, 0],
    ),
    ("data for an address", libc::SYS_sendto, [-1, 0, 0, 0, 4096]),
    ("another process", libc::SYS_fork, [0; 5]),
    (
        "a process by clone",
        libc::SYS_clone,
        [libc::SIGCHLD as _, 0, 0, 0, 0],
    ),
    ("another program", libc::SYS_execve, [0; 5]),
    (
        "memory with code",
        libc::SYS_mmap,
        [
            0,
            4096,
            (libc::PROT_READ | libc::PROT_EXEC) as _,
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as _,
            -1,
        ],
    ),
    ("tracing", libc::SYS_ptrace, [0; 5]),
    ("an unmount", libc::SYS_umount2, [0; 5]),
    (
        "namespaces",
        libc::SYS_unshare,
        [libc::CLONE_NEWUSER as _, 0, 0, 0, 0],
    ),
    ("rights", libc::SYS_setresuid, [0; 5]),
    (
        "an ioctl of terminals",
        libc::SYS_ioctl,
        [0, libc::TIOCSTI as _, 0, 0, 0],
    ),
    ("a signal to others", libc::SYS_kill, [-1, 0, 0, 0, 0]),
    ("io_uring", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
    (
        "dumping itself",
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as _, 1, 0, 0, 0],
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--attempt", name] => return attempt(name),
        ["vmm", uid, gid] => return zygote::vmm_main(uid.parse().unwrap(), gid.parse().unwrap()),
        _ => {}
    }
    let mut failed = 0;
    let mut check = |name: &str, expected: Result<i32, i32>| {
        let own = std::env::current_exe().unwrap();
        let status = Command::new(own)
            .args(["--attempt", name])
            .status()
            .unwrap();
        // The warden says how its child has ended: a signal as 128 and its number.
        let code = status.code().unwrap_or(-status.signal().unwrap_or(0));
        let found = if code > 128 {
            Err(code - 128)
        } else {
            Ok(code)
        };
        if found == expected {
            println!("test {name} ... ok");
        } else {
            println!("test {name} ... FAILED: {found:?}, not {expected:?}");
            failed += 1;
        }
    };
    POSSIBLE
        .iter()
        .for_each(|(name, _)| check(name, Ok(AS_IT_SHOULD)));
    FATAL
        .iter()
        .for_each(|(name, ..)| check(name, Err(libc::SIGSYS)));
    // A call that ends a process ends it from each of its threads, and a processor's has a shorter list.
    FATAL
        .iter()
        .chain(MAIN_ONLY)
        .for_each(|(name, ..)| check(&format!("{BY_A_PROCESSOR}{name}"), Err(libc::SIGSYS)));
    if let Err(reason) = host::usable() {
        let own = std::env::current_exe().unwrap();
        let error = zygote::Ready::start(&own, &JAIL, None).unwrap_err();
        assert_eq!(error.to_string(), format!("a VMM failed: {reason}"));
        println!("test a_host_without_kvm_says_so ... ok");
    }
    println!("{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn attempt(name: &str) -> ExitCode {
    let possible = POSSIBLE.iter().find(|(other, _)| *other == name);
    let (by_processor, name) = match name.strip_prefix(BY_A_PROCESSOR) {
        Some(name) => (true, name),
        None => (false, name),
    };
    let fatal = FATAL
        .iter()
        .chain(MAIN_ONLY)
        .find(|(other, ..)| *other == name);
    let body = || match (possible, fatal) {
        (Some((_, body)), _) => body(),
        (_, Some((_, number, arguments))) if by_processor => {
            as_processor(|| call(*number, *arguments) == 0)
        }
        (_, Some((_, number, arguments))) => call(*number, *arguments) == 0,
        _ => panic!("there is no attempt {name}"),
    };
    jail::unshare().unwrap();
    // SAFETY: the process has a single thread, which was just checked.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let code = match jail::enter(&JAIL) {
                Ok(()) if body() => AS_IT_SHOULD,
                Ok(()) => 1,
                Err(error) => {
                    eprintln!("{error}: {error:?}");
                    2
                }
            };
            // SAFETY: ends the process.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: a valid place, and a child of this process.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            let code = match libc::WIFSIGNALED(status) {
                true => 128 + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            };
            ExitCode::from(code as u8)
        }
    }
}
