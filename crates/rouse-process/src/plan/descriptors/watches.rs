//! What epoll and inotify sets watch.

use rouse_restorer::op::Op;
use rouse_snapshot::model::DescriptionKind;

use crate::plan::Context;

/// Bytes of a `struct inotify_event` without a name.
const INOTIFY_EVENT: usize = 16;

impl Context<'_> {
    /// By the function's own numbers, as epoll remembers them.
    pub(super) fn watches(&mut self, list: &mut Vec<Op>) {
        let snapshot = self.snapshot;
        for (index, description) in snapshot.descriptions.iter().enumerate() {
            let Some(own) = snapshot
                .descriptors
                .iter()
                .find(|d| d.description.0 as usize == index)
            else {
                continue;
            };
            match &description.kind {
                DescriptionKind::Epoll { watches } => {
                    for watch in watches {
                        // struct epoll_event is packed: 4 bytes of events, 8 of data.
                        let mut event = watch.events.to_le_bytes().to_vec();
                        event.extend_from_slice(&watch.data.to_le_bytes());
                        let event = self.builder.bytes(&event, 8);
                        let args = [
                            own.fd as u64,
                            libc::EPOLL_CTL_ADD as u64,
                            watch.fd as u64,
                            event,
                        ];
                        list.push(Op::syscall(libc::SYS_epoll_ctl, &args));
                    }
                }
                DescriptionKind::Inotify { watches } => {
                    let mut next = 1;
                    let mut removed = 0;
                    for watch in watches {
                        let path = self.builder.string(&watch.path);
                        let args = [own.fd as u64, path, u64::from(watch.mask)];
                        // Watch descriptors are handed out in sequence; gaps are watches since removed.
                        while next < watch.wd {
                            list.push(
                                Op::syscall(libc::SYS_inotify_add_watch, &args).exact(next as u64),
                            );
                            list.push(Op::syscall(
                                libc::SYS_inotify_rm_watch,
                                &[own.fd as u64, next as u64],
                            ));
                            next += 1;
                            removed += 1;
                        }
                        list.push(
                            Op::syscall(libc::SYS_inotify_add_watch, &args).exact(watch.wd as u64),
                        );
                        next = watch.wd + 1;
                    }
                    // Each removal has left an event (`IN_IGNORED`, without a name) behind.
                    for _ in 0..removed {
                        let event = self.builder.bytes(&[0; INOTIFY_EVENT], 8);
                        let args = [own.fd as u64, event, INOTIFY_EVENT as u64];
                        list.push(Op::syscall(libc::SYS_read, &args).exact(INOTIFY_EVENT as u64));
                    }
                }
                _ => {}
            }
        }
    }
}
