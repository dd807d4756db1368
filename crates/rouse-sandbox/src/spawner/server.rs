//! The spawner process: a loop over requests, messages of sandboxes in the making, and ended children.
//!
//! It has one thread and waits for nothing but the loop: several sandboxes may be in the making at a time, and each
//! builds itself in its own init.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use super::nursery::Nursery;
use super::populate::Porter;
use super::protocol::{Event, Request};
use super::{BlankMain, tell};
use crate::cgroup::Cgroups;
use crate::config::SandboxConfig;
use crate::kernel::{namespace, process, socket};
use crate::root::{self, Roots};
use crate::seccomp::memory_calls;

/// Nanoseconds between two looks for ended children while a sandbox is going down, and otherwise.
///
/// Children that are made with `exit_signal = 0` (fork clones may be) end without a `SIGCHLD`, and the init of a
/// sandbox cannot finish dying before they are reaped.
const BUSY_WAIT_NS: i64 = 2_000_000;
const IDLE_WAIT_NS: i64 = 500_000_000;

/// Runs the spawner to its end; `node` is the process that forked it.
pub fn run(
    socket: OwnedFd,
    node: Pid,
    config: SandboxConfig,
    blank_main: BlankMain,
    template_main: BlankMain,
) -> i32 {
    // Sockets and files of the node must not stay open because the spawner has them too.
    let Ok(socket) = process::keep_one_descriptor(socket) else {
        return 1;
    };
    // First of all: its descriptors are to have low numbers.
    let porter = Porter::new().map_err(|error| format!("cannot reserve descriptors: {error}"));
    let setup = porter.and_then(|porter| Ok((set_up(&config, node)?, porter)));
    let (setup, porter) = match setup {
        Ok(setup) => setup,
        Err(reason) => {
            tell(&socket, &Event::NotStarted { reason }, &[]);
            return 1;
        }
    };
    let Setup {
        signals,
        cgroups,
        warnings,
        host_mounts,
        roots,
        memory_calls,
    } = setup;
    let descriptors: Vec<_> = memory_calls.iter().map(AsFd::as_fd).collect();
    tell(&socket, &Event::Started { warnings }, &descriptors);
    // The node's copy is the only one: when the node is gone, no call waits for it.
    drop(memory_calls);
    let mut nursery = Nursery::new(
        socket,
        cgroups,
        host_mounts,
        roots,
        config.uid_base,
        blank_main,
        porter,
    );
    serve(&mut nursery, &signals, template_main);
    nursery.end();
    0
}

struct Setup {
    signals: OwnedFd,
    cgroups: Cgroups,
    warnings: Vec<String>,
    host_mounts: OwnedFd,
    roots: Roots,
    memory_calls: Option<OwnedFd>,
}

/// Writes an error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The order matters:
/// - signals are blocked before the node's death is asked for as one, so that it ends the loop and not the process;
/// - the control groups are opened by the host's paths, so before the root changes;
/// - the clock offset is written through the host's `/proc`, and before the first child;
/// - memory calls are handed over last: from then on calls of this process wait for the node, too.
fn set_up(config: &SandboxConfig, node: Pid) -> Result<Setup, String> {
    let explain = |step: &'static str| move |error: io::Error| format!("cannot {step}: {error}");
    process::reset_signals();
    process::block_signals();
    let signals = signal_descriptor().map_err(explain("wait for signals"))?;
    // A terminal's interrupt is for the node, which ends its spawner in order.
    rustix::process::setsid().map_err(|error| explain("start a session")(error.into()))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| explain("follow the node")(error.into()))?;
    if rustix::process::getppid() != Some(node) {
        return Err("the node has ended".into());
    }
    // Adopts the children of a template host that dies.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| explain("adopt orphans")(error.into()))?;
    process::forget_keys();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    process::retitle(c"rouse-spawner").map_err(explain("hide the command line"))?;
    raise_descriptor_limit();

    let (cgroups, warnings) = Cgroups::open(&config.cgroup).map_err(|error| chain(&error))?;
    let open = |path: &str| {
        rustix::fs::open(
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
    };
    let prepared = (|| {
        let host_mounts = open("/proc/self/ns/mnt")
            .map_err(|error| explain("open the host's mounts")(error.into()))?;
        if let Some((monotonic, boottime)) = config.clock_offset {
            shift_clocks(monotonic, boottime).map_err(explain("shift the clocks"))?;
        }
        let roots = root::enter(config).map_err(|error| chain(&error))?;
        let memory_calls = config
            .hand_over_memory_calls
            .then(memory_calls::install)
            .transpose()
            .map_err(explain("answer memory calls of functions"))?;
        Ok((host_mounts, roots, memory_calls))
    })();
    match prepared {
        Ok((host_mounts, roots, memory_calls)) => Ok(Setup {
            signals,
            cgroups,
            warnings,
            host_mounts,
            roots,
            memory_calls,
        }),
        Err(reason) => {
            cgroups.remove();
            Err(reason)
        }
    }
}

/// A descriptor that is readable when a child has ended or the spawner is asked to end.
fn signal_descriptor() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the set is initialised before it is used; the new descriptor has no other owner.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigaddset(&mut set, libc::SIGTERM);
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// Reads all pending signals; `true` if one of them asks to end.
fn is_asked_to_end(signals: &OwnedFd) -> bool {
    let mut end = false;
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
    while let Ok(length) = rustix::io::read(signals, &mut buffer) {
        let Some(number) = buffer[..length].first_chunk::<4>() else {
            break;
        };
        end |= u32::from_ne_bytes(*number) == libc::SIGTERM as u32;
    }
    end
}

/// A pidfd and a socket for each sandbox in the making add up.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Fails only for values above the hard limit.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Goes to a time namespace whose clocks are ahead by so many nanoseconds, with all later children.
///
/// The spawner itself too: before Linux 6.1 a process that has sent its children elsewhere cannot lend its memory.
fn shift_clocks(monotonic: i64, boottime: i64) -> io::Result<()> {
    namespace::leave(libc::CLONE_NEWTIME)?;
    let line = |clock: &str, offset: i64| {
        format!(
            "{clock} {} {}\n",
            offset.div_euclid(1_000_000_000),
            offset.rem_euclid(1_000_000_000)
        )
    };
    std::fs::write(
        "/proc/self/timens_offsets",
        line("monotonic", monotonic) + &line("boottime", boottime),
    )?;
    let children = std::fs::File::open("/proc/self/ns/time_for_children")?;
    namespace::enter(&children, libc::CLONE_NEWTIME)
}

fn serve(nursery: &mut Nursery, signals: &OwnedFd, template_main: BlankMain) {
    loop {
        let growing: Vec<_> = nursery.growing().collect();
        let mut polled = vec![
            PollFd::from_borrowed_fd(nursery.socket(), PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        polled.extend(
            growing
                .iter()
                .map(|(_, status)| PollFd::from_borrowed_fd(*status, PollFlags::IN)),
        );
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: if nursery.is_taking_down() {
                BUSY_WAIT_NS
            } else {
                IDLE_WAIT_NS
            },
        };
        // Signals are blocked, so the only interruption is a stopped and continued process.
        let _ = poll(&mut polled, Some(&wait));
        let ready: Vec<bool> = polled
            .iter()
            .map(|entry| !entry.revents().is_empty())
            .collect();
        let grown: Vec<u64> = growing
            .iter()
            .zip(&ready[2..])
            .filter(|(_, ready)| **ready)
            .map(|((id, _), _)| *id)
            .collect();

        if ready[1] && is_asked_to_end(signals) {
            return;
        }
        for id in grown {
            nursery.advance(id);
        }
        nursery.reap();
        nursery.tidy();
        if ready[0] {
            let Ok(Some((bytes, _))) = socket::receive(nursery.socket()) else {
                return;
            };
            match serde_json::from_slice(&bytes) {
                Ok(Request::Create {
                    request,
                    limits,
                    kind,
                }) => nursery.create(request, limits, kind),
                Ok(Request::CreateTemplateHost { request }) => {
                    nursery.create_template_host(request, template_main)
                }
                Ok(Request::Release { sandbox }) => nursery.release(sandbox),
                Ok(Request::LendGroup { request, limits }) => nursery.lend(request, &limits),
                Ok(Request::ReturnGroup { group }) => nursery.take_back(group),
                Ok(Request::Shutdown) | Err(_) => return,
            }
        }
    }
}
