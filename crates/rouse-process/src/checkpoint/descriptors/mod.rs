//! File descriptors, and what they refer to.

mod fdinfo;
mod inotify;
mod multicast;
mod pipes;
mod socket_options;
mod socket_pairs;
mod sockets;
mod unix_peers;
mod unix_queues;

use std::fs::Metadata;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rouse_snapshot::model::{Description, DescriptionId, DescriptionKind, Descriptor, EpollWatch};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use self::fdinfo::FdInfo;
use self::multicast::Group;
use self::pipes::PipeEnd;
use self::socket_pairs::UnixSocket;
use self::sockets::SocketKind;
use super::error::{CheckpointError, Obstacle};
use super::files::FileTable;
use super::kcmp;
use super::pages::PageSaver;
use super::proc_files;
use super::shared_memory::SharedObjects;
use super::{Afterwards, CheckpointTarget};

/// `/dev/null`, `zero`, `full`, `random`, `urandom`: they hold no state.
const HARMLESS_DEVICES: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];
/// Where POSIX message queues are.
const MQUEUE: i64 = 0x1980_0202;
/// Memfds, anonymous shared memory, `/tmp` and `/dev/shm`.
const TMPFS: i64 = 0x0102_1994;
/// File systems of the kernel, whose files have no lasting identity: `/proc`, `/sys`, `/sys/fs/cgroup`.
const KERNEL_FILE_SYSTEMS: [i64; 4] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x27_e0eb];

/// What descriptors are read with.
pub(super) struct DescriptorReader<'a, 'f> {
    pid: i32,
    pidfd: OwnedFd,
    api_client_port: u16,
    log_inode: u64,
    afterwards: Afterwards,
    files: &'a mut FileTable<'f>,
    pages: &'a mut PageSaver,
    shared: &'a mut SharedObjects,
    /// Shared-memory objects that have a descriptor.
    memfds: Vec<u32>,
    pipes: Vec<PipeEnd>,
    unix_sockets: Vec<UnixSocket>,
    /// Of the network namespace; read when there is a socket.
    multicast_groups: Option<Vec<Group>>,
}

/// A descriptor that stands for its description.
struct Open {
    fd: i32,
    /// Index of the description.
    index: usize,
    link: Vec<u8>,
    info: FdInfo,
    metadata: Metadata,
}

impl Open {
    fn link_path(&self, pid: i32) -> String {
        format!("/proc/{pid}/fd/{}", self.fd)
    }

    fn obstacle(&self, reason: impl Into<String>) -> CheckpointError {
        Obstacle::descriptor(self.fd, reason).into()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }
}

impl<'a, 'f> DescriptorReader<'a, 'f> {
    pub(super) fn new(
        target: &CheckpointTarget<'_>,
        files: &'a mut FileTable<'f>,
        pages: &'a mut PageSaver,
        shared: &'a mut SharedObjects,
    ) -> Result<Self, CheckpointError> {
        let pid = target.pid;
        let pidfd = Pid::from_raw(pid)
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(CheckpointError::kernel("pidfd_open"))?;
        Ok(Self {
            pid,
            pidfd,
            api_client_port: target.api_client_port,
            log_inode: target.log_inode,
            afterwards: target.afterwards,
            files,
            pages,
            shared,
            memfds: Vec::new(),
            pipes: Vec::new(),
            unix_sockets: Vec::new(),
            multicast_groups: None,
        })
    }

    /// Reads all descriptors. Of a process that ends it takes what is in sockets.
    pub(super) fn read(mut self) -> Result<(Vec<Descriptor>, Vec<Description>), CheckpointError> {
        let fds = proc_files::numeric_entries(self.pid, "fd")?;
        let mut descriptors = Vec::with_capacity(fds.len());
        let mut descriptions = Vec::new();
        for group in self.share_descriptions(&fds)? {
            let Some(first) = group.first() else { continue };
            let index = descriptions.len();
            let open = self.open(*first, index)?;
            for fd in &group {
                let close_on_exec = if fd == first {
                    open.info.close_on_exec
                } else {
                    FdInfo::read(self.pid, *fd)?.close_on_exec
                };
                descriptors.push(Descriptor {
                    fd: *fd,
                    close_on_exec,
                    description: DescriptionId(index as u32),
                });
            }
            descriptions.push(Description {
                flags: open.info.flags,
                kind: self.kind(&open)?,
            });
        }
        descriptors.sort_by_key(|descriptor| descriptor.fd);
        for (index, kind) in pipes::resolve(&self.pipes)?
            .into_iter()
            .chain(self.unix_kinds()?)
        {
            descriptions[index].kind = kind;
        }
        let has_api = descriptions
            .iter()
            .any(|description| matches!(description.kind, DescriptionKind::RuntimeApi { .. }));
        if self.api_client_port != 0 && !has_api {
            return Err(CheckpointError::NoApiConnection {
                port: self.api_client_port,
            });
        }
        Ok((descriptors, descriptions))
    }

    /// Says for each connected UNIX socket what it is.
    fn unix_kinds(&self) -> Result<Vec<(usize, DescriptionKind)>, CheckpointError> {
        match self.afterwards {
            Afterwards::Ends => socket_pairs::resolve(&self.unix_sockets),
            Afterwards::GoesOn => unix_peers::resolve(self.pid, &self.unix_sockets),
        }
    }

    /// Groups of descriptors with one description, in the order of their lowest.
    fn share_descriptions(&self, fds: &[i32]) -> Result<Vec<Vec<i32>>, CheckpointError> {
        let mut failure = None;
        let mut compare = |a: i32, b: i32| {
            kcmp::descriptions(self.pid, a, b).unwrap_or_else(|error| {
                failure.get_or_insert(error);
                a.cmp(&b)
            })
        };
        let mut sorted = fds.to_vec();
        // Stable, so each group begins with its lowest descriptor.
        sorted.sort_by(|a, b| compare(*a, *b));
        let mut groups: Vec<Vec<i32>> = sorted
            .chunk_by(|a, b| compare(*a, *b).is_eq())
            .map(<[i32]>::to_vec)
            .collect();
        groups.sort();
        failure.map_or(Ok(groups), Err)
    }

    fn open(&self, fd: i32, index: usize) -> Result<Open, CheckpointError> {
        let name = format!("fd/{fd}");
        let path = format!("/proc/{}/{name}", self.pid);
        let metadata =
            std::fs::metadata(&path).map_err(|source| CheckpointError::Read { path, source })?;
        Ok(Open {
            fd,
            index,
            link: proc_files::read_link(self.pid, &name)?,
            info: FdInfo::read(self.pid, fd)?,
            metadata,
        })
    }

    fn duplicate(&self, fd: i32) -> Result<OwnedFd, CheckpointError> {
        pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty())
            .map_err(CheckpointError::kernel("pidfd_getfd"))
    }

    fn kind(&mut self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        if open.info.flags & libc::O_ASYNC as u32 != 0 {
            return Err(open.obstacle("signal-driven input and output"));
        }
        if open.info.has_lock() {
            return Err(open.obstacle(format!("file lock on {}", open.text())));
        }
        let file_type = open.metadata.file_type();
        match open.link.as_slice() {
            b"anon_inode:[eventfd]" => open.info.eventfd(),
            b"anon_inode:[timerfd]" => self.timerfd(open),
            b"anon_inode:[signalfd]" => open.info.signalfd(),
            b"anon_inode:[eventpoll]" => self.epoll(open),
            b"anon_inode:inotify" | b"anon_inode:[inotify]" => {
                inotify::identify(self.pid, open.fd, &open.info, &self.duplicate(open.fd)?)
            }
            link if link.starts_with(b"anon_inode:") => {
                let what = open
                    .text()
                    .trim_start_matches("anon_inode:")
                    .trim_matches(['[', ']'])
                    .to_owned();
                Err(open.obstacle(format!("{what} instance")))
            }
            _ if file_type.is_socket() => self.socket(open),
            link if link.starts_with(b"pipe:") => Ok(self.pipe(open)?),
            _ if file_type.is_file() && is_on(&open.link_path(self.pid), &[MQUEUE]) => {
                Err(open.obstacle(format!("POSIX message queue {}", open.text())))
            }
            _ if open.metadata.nlink() == 0
                && file_type.is_file()
                && is_on(&open.link_path(self.pid), &[TMPFS]) =>
            {
                self.memfd(open)
            }
            link if link.first() != Some(&b'/') => Err(open.obstacle(open.text())),
            _ if open.metadata.nlink() == 0 => Err(open.obstacle(format!(
                "deleted file {}",
                open.text().trim_end_matches(" (deleted)")
            ))),
            _ if file_type.is_fifo() => Err(open.obstacle(format!("named pipe {}", open.text()))),
            _ if file_type.is_char_device() => device(open),
            _ if file_type.is_dir() => Ok(path(open, None)),
            _ if file_type.is_file() => self.regular_file(open),
            _ => Err(open.obstacle(open.text())),
        }
    }

    fn regular_file(&mut self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        let link = open.link_path(self.pid);
        if open.link.starts_with(b"/tmp/") || is_on(&link, &KERNEL_FILE_SYSTEMS) {
            return Ok(path(open, None));
        }
        match self.files.identify(&open.link, &link) {
            Some(file) => Ok(path(open, Some(file))),
            None => Err(open.obstacle(format!(
                "file {}, which the host does not have",
                open.text()
            ))),
        }
    }

    /// Expirations are counted when somebody asks; only then does `/proc` tell all of them.
    fn timerfd(&self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        rustix::time::timerfd_gettime(self.duplicate(open.fd)?)
            .map_err(CheckpointError::kernel("timerfd_gettime"))?;
        FdInfo::read(self.pid, open.fd)?.timerfd(self.pid)
    }

    /// A memfd, or a file in a tmpfs that has lost its name (`tempfile.TemporaryFile`), which is the same thing.
    fn memfd(&mut self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        let part = self
            .shared
            .save(self.pages, &open.link_path(self.pid), 0..u64::MAX)?;
        let seals = rustix::fs::fcntl_get_seals(self.duplicate(open.fd)?)
            .map_err(CheckpointError::kernel("fcntl(F_GET_SEALS)"))?;
        if self.memfds.contains(&part.object) {
            // Only one open file description can be made for each.
            return Err(open.obstacle(format!("{} is open twice", open.text())));
        }
        self.memfds.push(part.object);
        let name = open.link.strip_suffix(b" (deleted)").unwrap_or(&open.link);
        let last_part = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Ok(DescriptionKind::MemFd {
            object: part.object,
            name: last_part
                .strip_prefix(b"memfd:")
                .unwrap_or(last_part)
                .to_vec(),
            size: part.size,
            seals: seals.bits(),
            offset: open.info.position,
            saved: part.runs,
        })
    }

    /// What it is becomes clear when all ends are known.
    fn pipe(&mut self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        if open.metadata.ino() == self.log_inode {
            return Ok(DescriptionKind::Log);
        }
        self.pipes.push(PipeEnd {
            description: open.index,
            fd: open.fd,
            inode: open.metadata.ino(),
            flags: open.info.flags,
            pipe: self.duplicate(open.fd)?,
        });
        Ok(DescriptionKind::Log)
    }

    fn socket(&mut self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        let socket = self.duplicate(open.fd)?;
        let groups = self
            .multicast_groups
            .get_or_insert_with(|| multicast::groups(self.pid));
        match sockets::identify(
            &socket,
            open.fd,
            self.api_client_port,
            groups,
            self.afterwards,
        )? {
            SocketKind::Known(kind) => Ok(kind),
            SocketKind::ConnectedUnix { kind } => {
                self.unix_sockets.push(UnixSocket {
                    description: open.index,
                    fd: open.fd,
                    kind,
                    socket,
                });
                Ok(DescriptionKind::ClosedConnection {
                    family: libc::AF_UNIX,
                    kind,
                    queue: Vec::new(),
                })
            }
        }
    }

    fn epoll(&self, open: &Open) -> Result<DescriptionKind, CheckpointError> {
        let watches = open.info.epoll_watches()?;
        for (index, watch) in watches.iter().enumerate() {
            // A number may be there several times: closed under that number, kept open under another.
            let nth = watches[..index]
                .iter()
                .filter(|other| other.fd == watch.fd)
                .count() as u32;
            if !kcmp::is_watched(self.pid, open.fd, watch.fd, nth) {
                return Err(open.obstacle(format!(
                    "epoll set that watches a closed descriptor ({})",
                    watch.fd
                )));
            }
        }
        let mut watches: Vec<EpollWatch> = watches;
        watches.sort_by_key(|watch| watch.fd);
        Ok(DescriptionKind::Epoll { watches })
    }
}

fn path(open: &Open, identity: Option<rouse_snapshot::model::FileId>) -> DescriptionKind {
    DescriptionKind::Path {
        path: open.link.clone(),
        offset: open.info.position,
        identity,
    }
}

fn device(open: &Open) -> Result<DescriptionKind, CheckpointError> {
    let number = open.metadata.rdev();
    if HARMLESS_DEVICES.contains(&(libc::major(number), libc::minor(number))) {
        return Ok(path(open, None));
    }
    Err(open.obstacle(format!("device {}", open.text())))
}

fn is_on(link: &str, file_systems: &[i64]) -> bool {
    rustix::fs::statfs(link).is_ok_and(|stat| file_systems.contains(&stat.f_type))
}
