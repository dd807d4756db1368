//! The namespaces of a slot that serve one sandbox after the other: user, network, uts and cgroup.
//!
//! Making and destroying a network namespace costs the kernel more than everything else in a sandbox together. The
//! function has no capability in these namespaces, so the host name, the interfaces, the addresses, the routes and the
//! settings stay as they were made. What it may leave behind is sockets; [`Home::is_clean`] counts them.
//!
//! ```text
//! spawner                                   maker (a copy of the spawner in new namespaces)
//!   clone3 ------------------------------->   waits
//!   uid and gid maps, control groups
//!   "go" --------------------------------->   host name, loopback, cgroup namespace
//!   <----------------------------- "ready"
//!   opens the namespaces, kills it
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::process::Signal;

use crate::kernel::{loopback, namespace, process, socket};
use crate::{GID, HOSTNAME, UID};

/// The namespaces that the maker is born in. The cgroup namespace comes later: its root is the group that a process is
/// in when it is made.
pub const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWUTS;

/// Message from the maker when everything is made.
pub const READY: &[u8] = b"ready";
/// Message from the spawner that lets it go on.
pub const GO: &[u8] = b"go";

/// Namespaces, held by their descriptors.
#[derive(Debug)]
pub struct Home {
    user: OwnedFd,
    network: OwnedFd,
    others: [OwnedFd; 2],
    /// `/proc/PID/net/sockstat` and `ip6_flowlabel` of the network namespace.
    sockets: File,
    flow_labels: Option<File>,
}

impl Home {
    /// Opens the namespaces of a maker that is ready.
    pub fn of(maker: i32) -> io::Result<Home> {
        let open = |name: &str| File::open(format!("/proc/{maker}/{name}"));
        Ok(Home {
            user: open("ns/user")?.into(),
            network: open("ns/net")?.into(),
            others: [open("ns/uts")?.into(), open("ns/cgroup")?.into()],
            sockets: open("net/sockstat")?,
            // Absent where IPv6 is.
            flow_labels: open("net/ip6_flowlabel").ok(),
        })
    }

    /// Moves the calling process in, where it has all capabilities and should become uid 0.
    ///
    /// The user namespace comes first: what is entered afterwards belongs to it.
    pub fn enter(&self) -> io::Result<()> {
        namespace::enter(&self.user, libc::CLONE_NEWUSER)?;
        namespace::enter(&self.network, libc::CLONE_NEWNET)?;
        namespace::enter(&self.others[0], libc::CLONE_NEWUTS)?;
        namespace::enter(&self.others[1], libc::CLONE_NEWCGROUP)
    }

    /// The user namespace.
    pub fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// The network namespace.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// Whether nothing is left of the sandboxes before. Only meaningful when all their processes have ended.
    pub fn is_clean(&self) -> bool {
        let labels = self.flow_labels.as_ref();
        // A line with the columns' names is always there.
        has_no_sockets(&read(&self.sockets))
            && labels.is_none_or(|file| read(file).lines().count() <= 1)
    }
}

fn read(file: &File) -> String {
    let mut buffer = [0; 1024];
    // What cannot be read does not count as clean: it is not the text that is looked for.
    let length = file.read_at(&mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Whether `/proc/net/sockstat` counts no sockets.
///
/// `used` counts each socket of any family (netlink and UNIX too) and in any state, those without an owner that still
/// say goodbye included; `tw` the connections that are remembered after their end; `FRAG` the packets in parts.
fn has_no_sockets(text: &str) -> bool {
    let value = |line: &str, field: &str| {
        let mut words = text
            .lines()
            .find_map(|found| found.strip_prefix(line))?
            .split(' ');
        words.find(|word| *word == field)?;
        words.next()?.parse::<u64>().ok()
    };
    value("sockets:", "used") == Some(0)
        && value("TCP:", "tw") == Some(0)
        && value("FRAG:", "inuse") == Some(0)
}

/// Maps the users of a maker: uid 0 and the function's, to `first` and the one after it.
pub fn map_users(maker: i32, first: u32) -> io::Result<()> {
    let second = first.saturating_add(1);
    let map = |file: &str, inside: u32| {
        std::fs::write(
            format!("/proc/{maker}/{file}"),
            format!("0 {first} 1\n{inside} {second} 1\n"),
        )
    };
    map("uid_map", UID)?;
    map("gid_map", GID)
}

/// Runs the maker; `status` is its socket to the spawner.
pub fn run_maker(status: OwnedFd) -> ! {
    process::run_child(|| {
        process::block_signals();
        let Ok(status) = process::keep_one_descriptor(status) else {
            return 1;
        };
        match socket::receive(&status) {
            Ok(Some((message, _))) if message == GO => {}
            _ => return 1,
        }
        let words = match make() {
            Ok(()) => READY.to_vec(),
            Err((step, error)) => {
                format!("the sandbox's namespaces: cannot {step}: {error}").into_bytes()
            }
        };
        let _ = socket::send(&status, &words, &[]);
        // Until the spawner has taken what it needs, or is gone.
        let _ = socket::receive(&status);
        0
    })
}

/// Becoming uid 0 clears the parent-death signal, so that is asked for afterwards.
fn make() -> Result<(), (&'static str, io::Error)> {
    let at = |step| move |error: io::Error| (step, error);
    process::become_user(0, 0).map_err(at("become uid 0"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| at("tie themselves to the spawner")(error.into()))?;
    namespace::leave(libc::CLONE_NEWCGROUP).map_err(at("make a cgroup namespace"))?;
    rustix::system::sethostname(HOSTNAME.as_bytes())
        .map_err(|error| at("set the host name")(error.into()))?;
    loopback::bring_up().map_err(at("switch the loopback interface on"))
}

#[cfg(test)]
mod tests {
    use super::has_no_sockets;

    fn sockstat(used: u32, waiting: u32, fragments: u32) -> String {
        format!(
            "sockets: used {used}\nTCP: inuse 0 orphan 0 tw {waiting} alloc 9 mem 0\nUDP: inuse 0 mem 0\n\
             UDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse {fragments} memory 0\n"
        )
    }

    #[test]
    fn every_kind_of_leftover_counts() {
        assert!(has_no_sockets(&sockstat(0, 0, 0)));
        assert!(!has_no_sockets(&sockstat(1, 0, 0)));
        assert!(!has_no_sockets(&sockstat(0, 1, 0)));
        assert!(!has_no_sockets(&sockstat(0, 0, 1)));
        assert!(!has_no_sockets(""));
    }
}
