//! VMM processes that were started and jailed ahead.
//!
//! ```text
//!  supervisor                         warden                    VMM (jailed)
//!  Ready::start ──── exec ──────────> namespaces, fork ───────> opens KVM, makes a machine, jail::enter
//!       <───────────────────────────────────────────── Ready ── waits
//!  Ready::restore ── Order, snapshot, pools, devices ─────────> maps
//!       <──────────────────────────────── Mapped, userfaultfd ─ waits
//!  the pager has it ─ Go ─────────────────────────────────────> restores, runs
//!       <──────────────────────────────────────────── Restored
//!  or: Ready::boot ── Order, kernel, devices ─────────────────> loads the kernel, runs
//!       <────────────────────────────────────────────── Booted
//!  Running::rewind ── Rewind ─────────────────────────────────> pauses, puts back, goes on
//!       <───────────────────────────────────────────── Rewound
//!  Running::snapshot ── Snapshot ─────────────────────────────> pauses, writes down, goes on
//!       <────────────────────────────── Written, snapshot, pool
//!       <─────────────────────────────────────────────── Ended
//! ```
//!
//! What takes long and needs no function is done before a request: starting a program, opening KVM, namespaces, the jail.
//! The VMM reads the snapshot inside of its jail; where its memory is mapped says the supervisor by the snapshot that *it* has,
//! so that a VMM cannot make the pager believe something else.

mod inside;
mod messages;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rouse_pool::keeper::PoolMapping;
use rouse_pool::{PinnedPool, Pool, RegisteredPool};
use rouse_sandbox::confine::{self, SlotGroups};
use rouse_snapshot::manifest::Subject;
use rouse_snapshot::model::MachineSnapshot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::devices::virtio::Disk;
use crate::devices::virtio::block::DiskError;
use crate::given::GivenFile;
use crate::jail::Jail;
use crate::kernel::Kernel;
use crate::layout::MemorySize;
use crate::machine::Ended;
use crate::vcpu::VcpuCount;
use messages::{Answer, Fresh, GivenLayer, Order, Parts};

pub use crate::devices::virtio::vsock::{Connections, Incoming, Ports};
pub use inside::main as vmm_main;

/// The VMM's control socket.
const CONTROL: i32 = 3;

/// A VMM process failed.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    /// It cannot be started.
    #[error("cannot start a VMM")]
    Start(#[source] io::Error),
    /// A disk of its machine cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nor its kernel.
    #[error("cannot open {file}")]
    Kernel {
        /// Which file of it.
        file: GivenFile,
        /// Why.
        source: io::Error,
    },
    /// It cannot be talked to.
    #[error("cannot talk to a VMM")]
    Talk(#[source] io::Error),
    /// It has ended; why is in its standard error.
    #[error("a VMM has ended unexpectedly")]
    Gone,
    /// It could not do what it was told.
    #[error("a VMM failed: {0}")]
    Failed(String),
    /// It says something that it has no reason to say.
    #[error("a VMM does not keep to the protocol")]
    Protocol,
    /// Its memory could not be watched.
    #[error("the memory of a VMM cannot be watched")]
    Watch(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A pool that a machine's memory lies in, as its supervisor has it.
#[derive(Debug)]
pub enum GivenPool<'a> {
    /// All its pages are there. With its identity, if it is on disk: only then a child can refer to it.
    Whole(&'a Pool, Option<[u8; 32]>),
    /// The pager has brought all of them, and they must stay until the VMM has ended. With its identity, as above.
    Pinned(&'a PinnedPool, Option<[u8; 32]>),
    /// The pager brings them. With its identity, as above.
    Registered(&'a RegisteredPool, Option<[u8; 32]>),
    /// The image of a disk, with what it is to be known by. Its last block does not count if it is not whole.
    Image(BorrowedFd<'a>, u64, [u8; 32]),
}

impl GivenPool<'_> {
    fn layer(&self) -> GivenLayer {
        match self {
            Self::Whole(pool, identity) => GivenLayer {
                pages: pool.pages(),
                pool: None,
                identity: *identity,
            },
            Self::Pinned(pool, identity) => GivenLayer {
                pages: pool.pool().pages(),
                pool: None,
                identity: *identity,
            },
            Self::Image(_, pages, identity) => GivenLayer {
                pages: *pages,
                pool: None,
                identity: Some(*identity),
            },
            Self::Registered(pool, identity) => GivenLayer {
                pages: pool.pool().pages(),
                pool: Some(pool.pool().id().0),
                identity: *identity,
            },
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Whole(pool, _) => pool.as_fd(),
            Self::Pinned(pool, _) => pool.as_fd(),
            Self::Registered(pool, _) => pool.as_fd(),
            Self::Image(file, ..) => *file,
        }
    }
}

/// What a machine has beside memory, processors, a console and a balloon: as it had when it was written down.
#[derive(Debug, Default)]
pub struct GivenDevices<'a> {
    /// Its disks, with the same contents, but for one that no driver had.
    pub disks: &'a [Disk],
    /// How its connections come out of the jail, if it can have any.
    pub connections: Option<GivenConnections<'a>>,
}

impl GivenDevices<'_> {
    /// The images of its disks, each opened for this machine alone.
    fn open(&self) -> Result<Vec<File>, DiskError> {
        self.disks.iter().map(Disk::open).collect()
    }

    fn parts(&self, layers: Vec<GivenLayer>) -> Parts {
        let connections = self.connections.as_ref();
        Parts {
            layers,
            disks: self.disks.iter().map(|disk| disk.name.clone()).collect(),
            ports: connections.map(|connections| connections.ports.to_vec()),
        }
    }

    fn descriptors<'b>(&'b self, images: &'b [File]) -> impl Iterator<Item = BorrowedFd<'b>> {
        let connections = self.connections.as_ref();
        let images = images.iter().map(AsFd::as_fd);
        images.chain(connections.map(|connections| connections.socket))
    }
}

/// A machine that is to be booted, but for its devices.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Its memory.
    pub memory: MemorySize,
    /// Its processors.
    pub vcpus: VcpuCount,
    /// What is added to the kernel's command line.
    pub command_line: &'a str,
    /// Its kernel.
    pub kernel: &'a Kernel,
}

/// A console that nobody reads must not hold a processor up: what does not fit is lost.
fn make_impatient(console: BorrowedFd<'_>) -> Result<(), ZygoteError> {
    let talk = |error: rustix::io::Errno| ZygoteError::Talk(error.into());
    let flags = rustix::fs::fcntl_getfl(console).map_err(talk)?;
    rustix::fs::fcntl_setfl(console, flags | OFlags::NONBLOCK).map_err(talk)
}

/// How a machine's connections come out of its jail.
#[derive(Debug)]
pub struct GivenConnections<'a> {
    /// The VMM's end of [`Connections::pair`].
    pub socket: BorrowedFd<'a>,
    /// To which its guest may connect.
    pub ports: &'a [u32],
}

/// The process. It ends when this is dropped.
#[derive(Debug)]
struct Vmm {
    control: OwnedFd,
    warden: Child,
}

impl Vmm {
    fn receive(&self) -> Result<(Answer, Vec<OwnedFd>), ZygoteError> {
        let (bytes, descriptors) = confine::receive(&self.control)
            .map_err(ZygoteError::Talk)?
            .ok_or(ZygoteError::Gone)?;
        let answer = postcard::from_bytes(&bytes).map_err(|_| ZygoteError::Protocol)?;
        match answer {
            Answer::Failed(why) => Err(ZygoteError::Failed(why)),
            answer => Ok((answer, descriptors)),
        }
    }

    /// Pid of the VMM itself, the only child of its warden.
    fn pid(&self) -> io::Result<u32> {
        let warden = self.warden.id();
        let children = std::fs::read_to_string(format!("/proc/{warden}/task/{warden}/children"))?;
        let pid = children.split_whitespace().next();
        pid.and_then(|pid| pid.parse().ok())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Has it closed its end of the socket? Nobody else has that.
    fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.control, PollFlags::empty())];
        let at_once = Timespec::default();
        let found = poll(&mut polled, Some(&at_once));
        found.is_ok() && polled[0].revents().contains(PollFlags::HUP)
    }

    fn send(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> Result<(), ZygoteError> {
        let bytes = messages::encode(order);
        confine::send(&self.control, &bytes, descriptors).map_err(ZygoteError::Talk)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // The VMM dies with its warden. Either may have ended already.
        drop(self.warden.kill());
        drop(self.warden.wait());
        // It may still be ending. The socket closes when its memory is gone, and only then may pages that it had mapped go.
        while let Ok(Some(_)) = confine::receive(&self.control) {}
    }
}

/// In the new process: enters the control group, in each hierarchy, and puts the socket where it is expected.
fn prepare(control: RawFd, groups: &[RawFd]) -> io::Result<()> {
    let checked = |result: isize| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    for procs in groups {
        // SAFETY: one byte that is there; 0 is the calling process.
        checked(unsafe { libc::write(*procs, c"0".as_ptr().cast(), 1) })?;
    }
    // All others are closed by execve. `dup2` leaves the flag of the copy clear, unless it is the same one.
    confine::close_on_exec_from(3)?;
    let result = match control == CONTROL {
        // SAFETY: numbers only.
        true => unsafe { libc::fcntl(control, libc::F_SETFD, 0) },
        // SAFETY: as above; nobody uses the number in the new program.
        false => unsafe { libc::dup2(control, CONTROL) },
    };
    checked(result as isize)
}

/// A VMM that is jailed and waits for a machine.
#[derive(Debug)]
pub struct Ready(Vmm);

impl Ready {
    /// Starts `program`, which must call [`vmm_main`] when its first argument is `vmm`, in the control group `group`.
    ///
    /// # Errors
    /// If it cannot be started or jailed, or the host runs no machines.
    pub fn start(
        program: &Path,
        jail: &Jail,
        group: Option<&SlotGroups>,
    ) -> Result<Self, ZygoteError> {
        let (ours, theirs) = confine::pair().map_err(ZygoteError::Start)?;
        let mut command = Command::new(program);
        command
            .args(["vmm", &jail.uid.to_string(), &jail.gid.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let raw = theirs.as_raw_fd();
        let groups = group.into_iter().flat_map(SlotGroups::procs);
        let groups: Vec<RawFd> = groups.map(|procs| procs.as_raw_fd()).collect();
        // SAFETY: between fork and execve only system calls are made, with descriptors that live until `spawn` returns.
        unsafe { command.pre_exec(move || prepare(raw, &groups)) };
        let warden = command.spawn().map_err(ZygoteError::Start)?;
        drop(theirs);
        let vmm = Vmm {
            control: ours,
            warden,
        };
        match vmm.receive()? {
            (Answer::Ready, _) => Ok(Self(vmm)),
            _ => Err(ZygoteError::Protocol),
        }
    }

    /// Has it ended? It does when it is told to, or killed.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// Boots a machine in it. What the guest writes to its console goes to `console`.
    ///
    /// # Errors
    /// If a file cannot be opened, or the VMM cannot boot it. The VMM is gone then.
    pub fn boot(
        self,
        machine: &Boot<'_>,
        devices: &GivenDevices<'_>,
        console: BorrowedFd<'_>,
    ) -> Result<Running, ZygoteError> {
        make_impatient(console)?;
        let open = |file: &GivenFile| {
            file.open().map_err(|source| ZygoteError::Kernel {
                file: file.clone(),
                source,
            })
        };
        let kernel = open(&machine.kernel.image)?;
        let initramfs = open(&machine.kernel.initramfs)?;
        let images = devices.open()?;
        let order = Order::Boot(Fresh {
            memory_mib: machine.memory.in_mib(),
            vcpus: machine.vcpus.get(),
            command_line: machine.command_line.to_owned(),
            kernel: machine.kernel.format,
            parts: devices.parts(Vec::new()),
        });
        let mut descriptors = vec![console, kernel.as_fd(), initramfs.as_fd()];
        descriptors.extend(devices.descriptors(&images));
        let vmm = self.0;
        vmm.send(&order, &descriptors)?;
        match vmm.receive()? {
            (Answer::Booted, _) => Ok(Running(vmm)),
            _ => Err(ZygoteError::Protocol),
        }
    }

    /// Restores a machine in it. `pools` are those of the snapshot: its own, then its parents', images among them. Connections that were open go on,
    /// for its guest: they come out anew. `watch` gives the userfaultfd to the
    /// pager, if pages may be absent. What the guest writes to its console goes to `console`.
    ///
    /// # Errors
    /// If the VMM cannot restore it. The VMM is gone then.
    pub fn restore(
        self,
        snapshot: &MachineSnapshot,
        pools: &[GivenPool<'_>],
        devices: &GivenDevices<'_>,
        console: BorrowedFd<'_>,
        watch: impl FnOnce(
            OwnedFd,
            &[PoolMapping],
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<Running, ZygoteError> {
        make_impatient(console)?;
        let manifest = messages::memory_file(&snapshot.encode(None)).map_err(ZygoteError::Talk)?;
        let layers: Vec<GivenLayer> = pools.iter().map(GivenPool::layer).collect();
        let images = devices.open()?;
        let parts = devices.parts(layers.clone());
        let mut descriptors = vec![manifest.as_fd(), console];
        descriptors.extend(pools.iter().map(GivenPool::fd));
        descriptors.extend(devices.descriptors(&images));
        let vmm = self.0;
        vmm.send(&Order::Restore(parts), &descriptors)?;
        let (Answer::Mapped { base }, mut uffd) = vmm.receive()? else {
            return Err(ZygoteError::Protocol);
        };
        let mappings = messages::mappings(base, snapshot, &layers);
        match (uffd.pop(), mappings.is_empty()) {
            (None, true) => {}
            (Some(uffd), false) => watch(uffd, &mappings).map_err(ZygoteError::Watch)?,
            _ => return Err(ZygoteError::Protocol),
        }
        vmm.send(&Order::Go, &[])?;
        match vmm.receive()? {
            (Answer::Restored, _) => Ok(Running(vmm)),
            _ => Err(ZygoteError::Protocol),
        }
    }

    /// Pid of the warden, in the supervisor's namespace.
    pub fn pid(&self) -> u32 {
        self.0.warden.id()
    }

    /// Pid of the VMM, in the supervisor's namespace.
    ///
    /// # Errors
    /// If it has ended.
    pub fn vmm_pid(&self) -> io::Result<u32> {
        self.0.pid()
    }
}

/// A VMM whose machine runs. Dropping it ends both.
#[derive(Debug)]
pub struct Running(Vmm);

impl Running {
    /// Puts the machine back to its snapshot, from where it goes on with another identity. Returns how many pages it had written.
    ///
    /// # Errors
    /// If it cannot be put back, or has ended. The VMM must not be used then.
    pub fn rewind(&mut self) -> Result<u64, ZygoteError> {
        self.0.send(&Order::Rewind, &[])?;
        match self.0.receive()? {
            (Answer::Rewound { pages }, _) => Ok(pages),
            _ => Err(ZygoteError::Protocol),
        }
    }

    /// Writes the machine down, which then goes on: to be stored, or to be given to any number of others as [`GivenPool::Whole`]. The
    /// pools of its parents are those that it was restored from, and those of `images`, the images of its disks, of which pages lie in its memory.
    ///
    /// # Errors
    /// If it cannot be written down, or has ended. The VMM must not be used then.
    pub fn snapshot(
        &mut self,
        images: &[GivenPool<'_>],
    ) -> Result<(MachineSnapshot, Pool), ZygoteError> {
        let layers = images.iter().map(GivenPool::layer).collect();
        let descriptors: Vec<_> = images.iter().map(GivenPool::fd).collect();
        self.0.send(&Order::Snapshot(layers), &descriptors)?;
        let (Answer::Written, descriptors) = self.0.receive()? else {
            return Err(ZygoteError::Protocol);
        };
        // The VMM may be its guest's by now: what it says is a file like any other.
        let [snapshot, pool]: [OwnedFd; 2] =
            descriptors.try_into().map_err(|_| ZygoteError::Protocol)?;
        let snapshot = messages::read_snapshot(snapshot).map_err(ZygoteError::Failed)?;
        let pool = Pool::adopt(pool).map_err(ZygoteError::Talk)?;
        match snapshot.pool_pages == pool.pages() {
            true => Ok((snapshot, pool)),
            false => Err(ZygoteError::Protocol),
        }
    }

    /// Waits until the guest ends.
    ///
    /// # Errors
    /// If the VMM ends in another way.
    pub fn wait(self) -> Result<Ended, ZygoteError> {
        match self.0.receive()? {
            (Answer::Ended(ended), _) => Ok(ended),
            _ => Err(ZygoteError::Protocol),
        }
    }

    /// Pid of the warden, in the supervisor's namespace.
    pub fn pid(&self) -> u32 {
        self.0.warden.id()
    }

    /// Pid of the VMM, in the supervisor's namespace.
    ///
    /// # Errors
    /// If it has ended.
    pub fn vmm_pid(&self) -> io::Result<u32> {
        self.0.pid()
    }
}
