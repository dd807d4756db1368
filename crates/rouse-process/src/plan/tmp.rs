//! What the function had left in `/tmp`.
//!
//! Made in two steps: contents before descriptors, which may be open files of it; owners, modes and
//! times after them, when sockets are bound there and nothing changes any more.

use rouse_restorer::op::Op;
use rouse_snapshot::model::{PAGE_SIZE, TmpEntry, TmpKind};

use super::Context;

const AT_FDCWD: u64 = libc::AT_FDCWD as i64 as u64;
/// Bytes that one `sendfile` is asked to copy; the kernel's limit is a page below 2 GiB.
const COPY_MAX: u64 = 1 << 30;

impl Context<'_> {
    /// Directories, links, and files with their contents.
    pub(super) fn tmp(&mut self, list: &mut Vec<Op>) {
        let snapshot = self.snapshot;
        for entry in &snapshot.tmp {
            let path = self.builder.string(&entry.path);
            match &entry.kind {
                TmpKind::Directory => list.push(Op::syscall(libc::SYS_mkdir, &[path, 0o700])),
                TmpKind::Symlink { target } => {
                    let target = self.builder.string(target);
                    list.push(Op::syscall(libc::SYS_symlink, &[target, path]));
                }
                TmpKind::HardLink { target } => {
                    let target = self.builder.string(target);
                    list.push(Op::syscall(libc::SYS_link, &[target, path]));
                }
                TmpKind::Fifo => {
                    let args = [path, u64::from(libc::S_IFIFO | 0o600), 0];
                    list.push(Op::syscall(libc::SYS_mknod, &args));
                }
                TmpKind::Socket if self.is_bound(&entry.path) => {}
                TmpKind::Socket => {
                    let args = [path, u64::from(libc::S_IFSOCK | 0o600), 0];
                    list.push(Op::syscall(libc::SYS_mknod, &args));
                }
                TmpKind::File { size, saved } => {
                    let cell = self.builder.cell(0);
                    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
                    let args = [path, flags as u64, 0o600];
                    list.push(Op::syscall(libc::SYS_open, &args).store(cell));
                    let runs: Vec<_> = saved
                        .iter()
                        .map(|run| (run.address, run.pages, run.pool_page))
                        .collect();
                    self.fill(list, cell, *size, &runs);
                    list.push(Op::syscall(libc::SYS_close, &[cell]).indirect(0));
                }
            }
        }
    }

    /// Gives everything to the function's user, with its modes and times. Children before parents:
    /// an entry of a directory that its owner may not enter is still to be reached, and the times of
    /// a directory are its own.
    pub(super) fn finish_tmp(&mut self, list: &mut Vec<Op>) {
        let (uid, gid) = self.environment.ids;
        let snapshot = self.snapshot;
        for entry in snapshot.tmp.iter().rev() {
            if matches!(entry.kind, TmpKind::HardLink { .. }) {
                continue;
            }
            let path = self.builder.string(&entry.path);
            let owner = [path, u64::from(uid), u64::from(gid)];
            list.push(Op::syscall(libc::SYS_lchown, &owner));
            if !matches!(entry.kind, TmpKind::Symlink { .. }) {
                list.push(Op::syscall(libc::SYS_chmod, &[path, u64::from(entry.mode)]));
            }
            let times = self.times(entry);
            let args = [AT_FDCWD, path, times, libc::AT_SYMLINK_NOFOLLOW as u64];
            list.push(Op::syscall(libc::SYS_utimensat, &args));
        }
    }

    /// Gives an open, empty file its size and its saved pages: (offset, pages, page in the pool).
    pub(super) fn fill(
        &mut self,
        list: &mut Vec<Op>,
        cell: u64,
        size: u64,
        saved: &[(u64, u64, u64)],
    ) {
        list.push(Op::syscall(libc::SYS_ftruncate, &[cell, size]).indirect(0));
        for (offset, pages, pool_page) in saved {
            // The last page is saved whole; copying all of it would make the file longer.
            let end = size.min(offset + pages * PAGE_SIZE);
            let seek = [cell, *offset, libc::SEEK_SET as u64];
            list.push(Op::syscall(libc::SYS_lseek, &seek).indirect(0));
            let mut done = 0;
            while offset + done < end {
                let len = (end - offset - done).min(COPY_MAX);
                let from = self.builder.words(&[pool_page * PAGE_SIZE + done]);
                let args = [cell, self.pool_fd(), from, len];
                list.push(
                    Op::syscall(libc::SYS_sendfile, &args)
                        .indirect(0)
                        .exact(len),
                );
                done += len;
            }
        }
    }

    /// `struct timespec[2]`: access, modification.
    fn times(&mut self, entry: &TmpEntry) -> u64 {
        const SECOND: i128 = 1_000_000_000;
        let words: Vec<u64> = [entry.accessed_ns, entry.modified_ns]
            .into_iter()
            .flat_map(|time| {
                [
                    time.div_euclid(SECOND) as i64 as u64,
                    time.rem_euclid(SECOND) as u64,
                ]
            })
            .collect();
        self.builder.words(&words)
    }

    /// Does a socket of the snapshot have this name? It then comes with the socket.
    fn is_bound(&self, path: &[u8]) -> bool {
        use rouse_snapshot::model::DescriptionKind::Socket;
        self.snapshot.descriptions.iter().any(|description| {
            let Socket {
                family: libc::AF_UNIX,
                bound: Some(address),
                ..
            } = &description.kind
            else {
                return false;
            };
            let name = address.get(2..).unwrap_or_default();
            name.split(|byte| *byte == 0).next() == Some(path)
        })
    }
}
