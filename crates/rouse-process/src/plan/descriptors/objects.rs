//! The object behind each open file description.

use rouse_restorer::op::Op;
use rouse_snapshot::model::{Description, DescriptionKind};

use super::{Made, Pairs, on};
use crate::plan::Context;

/// Status flags that `fcntl(F_SETFL)` can change.
const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;
/// `_IOW('T', 0, u64)`: expirations not yet read.
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

impl Context<'_> {
    /// Makes the object behind a description; says where its descriptor is. `index` is
    /// the description's own.
    pub(super) fn make(
        &mut self,
        list: &mut Vec<Op>,
        index: usize,
        description: &Description,
        pairs: &mut Pairs,
    ) -> Made {
        let cell = self.builder.cell(0);
        let set_flags = description.flags & SETTABLE;
        let mut at = Made::Cell(cell);
        match &description.kind {
            DescriptionKind::Log => return Made::Number(self.fds.log()),
            DescriptionKind::RuntimeApi { options } => {
                at = Made::Number(self.fds.client());
                self.options(list, at, options);
            }
            DescriptionKind::ClosedConnection {
                family,
                kind,
                queue,
            } => self.closed_connection(list, cell, *family, *kind, queue),
            DescriptionKind::Path { path, offset, .. } => {
                let path = self.builder.string(path);
                let flags =
                    description.flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;
                list.push(Op::syscall(libc::SYS_open, &[path, u64::from(flags), 0]).store(cell));
                if *offset != 0 {
                    list.push(
                        Op::syscall(libc::SYS_lseek, &[cell, *offset, libc::SEEK_SET as u64])
                            .indirect(0),
                    );
                }
                return at;
            }
            DescriptionKind::Pipe { .. } | DescriptionKind::SocketPair { .. } => {
                at = self.end_of_pair(list, &description.kind, pairs);
            }
            DescriptionKind::EventFd { count, semaphore } => {
                let flags = if *semaphore { libc::EFD_SEMAPHORE } else { 0 };
                list.push(Op::syscall(libc::SYS_eventfd2, &[0, flags as u64]).store(cell));
                if *count > 0 {
                    let value = self.builder.words(&[*count]);
                    list.push(Op::syscall(libc::SYS_write, &[cell, value, 8]).indirect(0));
                }
            }
            DescriptionKind::TimerFd { .. } => self.timerfd(list, cell, index, &description.kind),
            DescriptionKind::SignalFd { mask } => {
                let mask = self.builder.words(&[*mask]);
                list.push(Op::syscall(libc::SYS_signalfd4, &[u64::MAX, mask, 8, 0]).store(cell));
            }
            DescriptionKind::Epoll { .. } => {
                list.push(Op::syscall(libc::SYS_epoll_create1, &[0]).store(cell));
            }
            DescriptionKind::Inotify { .. } => {
                list.push(Op::syscall(libc::SYS_inotify_init1, &[0]).store(cell));
            }
            DescriptionKind::Socket { .. } => self.socket(list, cell, &description.kind),
            DescriptionKind::MemFd { object, offset, .. } => {
                at = Made::Cell(self.object_cell(*object));
                list.push(on(at, libc::SYS_lseek, &[*offset, libc::SEEK_SET as u64]));
            }
        }
        if set_flags != 0 {
            list.push(on(
                at,
                libc::SYS_fcntl,
                &[libc::F_SETFL as u64, u64::from(set_flags)],
            ));
        }
        at
    }

    fn timerfd(&mut self, list: &mut Vec<Op>, cell: u64, index: usize, kind: &DescriptionKind) {
        let DescriptionKind::TimerFd {
            clock,
            remaining_ns,
            expires_at_ns,
            cancel_on_set,
            interval_ns,
            ticks,
        } = kind
        else {
            unreachable!("called for a timerfd only");
        };

        list.push(Op::syscall(libc::SYS_timerfd_create, &[*clock as u64, 0]).store(cell));
        // What an instance cannot name any more needs no time either.
        let (at, later) = match (self.is_parked, self.first_number(index)) {
            (true, Some(number)) => (Made::Number(number), true),
            _ => (Made::Cell(cell), false),
        };
        let mut settings = Vec::new();
        let (value, mut flags) = match *expires_at_ns {
            0 => (*remaining_ns, 0),
            time => (time, libc::TFD_TIMER_ABSTIME),
        };
        if *cancel_on_set {
            flags |= libc::TFD_TIMER_CANCEL_ON_SET;
        }
        if value > 0 {
            let value = self.timespec_pair(*interval_ns, value);
            let args = [flags as u64, value, 0];
            settings.push(on(at, libc::SYS_timerfd_settime, &args));
        }
        if *ticks > 0 {
            let ticks = self.builder.words(&[*ticks]);
            settings.push(on(at, libc::SYS_ioctl, &[TFD_IOC_SET_TICKS, ticks]));
        }
        match later {
            true => self.timer_descriptors.append(&mut settings),
            false => list.append(&mut settings),
        }
    }

    /// The lowest number of a description among the function's own.
    fn first_number(&self, index: usize) -> Option<u64> {
        let descriptors = &self.snapshot.descriptors;
        let of_it = |d: &&rouse_snapshot::model::Descriptor| d.description.0 as usize == index;
        descriptors.iter().find(of_it).map(|d| d.fd as u64)
    }

    /// `struct itimerspec` or alike: interval, then value.
    pub(in crate::plan) fn timespec_pair(&mut self, interval_ns: u64, value_ns: u64) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        self.builder.words(&[
            interval_ns / SECOND,
            interval_ns % SECOND,
            value_ns / SECOND,
            value_ns % SECOND,
        ])
    }
}
