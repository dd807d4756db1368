//! File descriptors, `/tmp`, the task directory.
//!
//! Each open file description is made once, under whatever number the kernel gives it, then put
//! at the function's numbers by `dup3`. Epoll and inotify sets come last: they refer to others.
//!
//! | module | what it makes |
//! |---|---|
//! | [`objects`] | the object behind each description |
//! | [`pairs`] | pipes and socket pairs, and what waits in them |
//! | [`sockets`] | sockets without a partner, and connections that are reset |
//! | [`watches`] | what epoll and inotify sets watch |

mod objects;
mod pairs;
mod sockets;
mod watches;

use std::collections::BTreeMap;

use rouse_restorer::op::Op;

use self::pairs::Pairs;
use super::waiting_room::{ANCILLARY_LEN, CONTROL_LEN, MAX_FDS, receiver};
use super::{Context, RECEIVE_BASE};

const AT_FDCWD: u64 = libc::AT_FDCWD as i64 as u64;
/// Descriptors that come before those of files: program, log, client, task, pool.
const FIRST_FILE: u64 = 5;

impl Context<'_> {
    /// Takes all that was received to where this program expects it, and receives the rest of it.
    ///
    /// Upwards, so from the top: no number is overwritten before it was moved.
    pub(super) fn move_descriptors(&mut self, list: &mut Vec<Op>) {
        let behind = self.snapshot.parents.len() + usize::from(self.is_watched);
        let total = FIRST_FILE + (self.files.len() + behind) as u64;
        let first = RECEIVE_BASE as u64;
        let mut received = MAX_FDS as u64;
        if received < total {
            let buffer = self.builder.words(&[0]);
            let header = receiver(&mut self.builder, buffer, 8);
            while received < total {
                list.push(Op::set_cell(header + CONTROL_LEN, ANCILLARY_LEN as u32));
                let args = [first, header, libc::MSG_CMSG_CLOEXEC as u64];
                list.push(Op::syscall(libc::SYS_recvmsg, &args).exact(1));
                received += MAX_FDS as u64;
            }
        }
        if self.fds.base != first {
            for i in (0..=total).rev() {
                let args = [first + i, self.fds.base + i, libc::O_CLOEXEC as u64];
                list.push(Op::syscall(libc::SYS_dup3, &args));
            }
        }
    }

    /// In a template: occupies the numbers below the control socket that moving it up has left
    /// free, so that what an order brings comes to lie behind it again.
    pub(super) fn occupy_below_control(&mut self, list: &mut Vec<Op>) {
        for number in RECEIVE_BASE as u64..self.fds.control() {
            let args = [self.fds.log(), number, libc::O_CLOEXEC as u64];
            list.push(Op::syscall(libc::SYS_dup3, &args));
        }
    }

    /// Attaches the function's code at `/var/task`.
    pub(super) fn enter_task(&mut self, list: &mut Vec<Op>) {
        let empty = self.builder.string(b"");
        let target = self.builder.string(b"/var/task");
        let args = [
            self.fds.task(),
            empty,
            AT_FDCWD,
            target,
            u64::from(libc::MOVE_MOUNT_F_EMPTY_PATH),
        ];
        list.push(Op::syscall(libc::SYS_move_mount, &args));
    }

    /// All descriptors, then everything closed that is not the function's, but for the control socket.
    pub(super) fn descriptors(&mut self, list: &mut Vec<Op>) {
        let snapshot = self.snapshot;
        if !self.is_clone {
            // They are mapped by now; a sandbox has not many numbers.
            let files = [self.fds.file(0), self.fds.file(self.files.len()) - 1, 0];
            list.push(Op::syscall(libc::SYS_close_range, &files));
        }
        let mut pairs = BTreeMap::new();
        for (index, description) in snapshot.descriptions.iter().enumerate() {
            let made = self.make(list, index, description, &mut pairs);
            let mut first = None;
            for descriptor in snapshot
                .descriptors
                .iter()
                .filter(|d| d.description.0 as usize == index)
            {
                let flags = if descriptor.close_on_exec {
                    libc::O_CLOEXEC as u64
                } else {
                    0
                };
                let fd = descriptor.fd as u64;
                list.push(match (first, made) {
                    (Some(first), _) => Op::syscall(libc::SYS_dup3, &[first, fd, flags]),
                    (None, Made::Cell(cell)) => {
                        Op::syscall(libc::SYS_dup3, &[cell, fd, flags]).indirect(0)
                    }
                    (None, Made::Number(number)) => {
                        Op::syscall(libc::SYS_dup3, &[number, fd, flags])
                    }
                });
                first = Some(fd);
            }
        }
        self.queues(list, &pairs);
        // Whoever watches `/tmp` must not see how it was filled.
        self.finish_tmp(list);
        self.watches(list);
        self.close_others(list);
    }
    /// Closes fillers and everything that was received or made on the way.
    fn close_others(&mut self, list: &mut Vec<Op>) {
        let control = self.fds.control();
        let mut from = 0;
        let mut close = |from: u64, to: u64| {
            if from <= to {
                list.push(Op::syscall(libc::SYS_close_range, &[from, to, 0]));
            }
        };
        for descriptor in &self.snapshot.descriptors {
            let fd = descriptor.fd as u64;
            if fd > from {
                close(from, fd - 1);
            }
            from = fd + 1;
        }
        close(from, control - 1);
        close(control + 1, u64::from(u32::MAX));
    }
}

/// Where the descriptor of a new object is.
#[derive(Debug, Clone, Copy)]
enum Made {
    /// In a cell.
    Cell(u64),
    /// Known ahead.
    Number(u64),
}
/// A system call whose first argument is a made descriptor.
fn on(made: Made, number: libc::c_long, rest: &[u64]) -> Op {
    let (first, in_cell) = match made {
        Made::Cell(cell) => (cell, true),
        Made::Number(number) => (number, false),
    };
    let mut args = vec![first];
    args.extend_from_slice(rest);
    let op = Op::syscall(number, &args);
    if in_cell { op.indirect(0) } else { op }
}
