//! Pipes and socket pairs: objects with two ends, and what waits in them.

use std::collections::BTreeMap;

use rouse_restorer::op::Op;
use rouse_snapshot::model::DescriptionKind;

use super::Made;
use crate::plan::Context;

/// Kinds of objects with two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pair {
    Pipe,
    Socket,
}

/// Address of the two descriptors of each pair.
pub(super) type Pairs = BTreeMap<(Pair, u32), u64>;

impl Context<'_> {
    /// One end. Whichever is met first makes both.
    pub(super) fn end_of_pair(
        &mut self,
        list: &mut Vec<Op>,
        kind: &DescriptionKind,
        pairs: &mut Pairs,
    ) -> Made {
        match kind {
            DescriptionKind::Pipe {
                pipe,
                write_end,
                capacity,
                ..
            } => {
                let key = (Pair::Pipe, *pipe);
                let both = *pairs.entry(key).or_insert_with(|| {
                    let both = self.builder.words(&[0]);
                    list.push(Op::syscall(libc::SYS_pipe2, &[both, 0]));
                    // A capacity above the limit for users is refused; the default then has to do.
                    let args = [both, libc::F_SETPIPE_SZ as u64, u64::from(*capacity)];
                    list.push(
                        Op::syscall(libc::SYS_fcntl, &args)
                            .indirect(0)
                            .ignore_error(),
                    );
                    both
                });
                Made::Cell(both + if *write_end { 4 } else { 0 })
            }
            DescriptionKind::SocketPair {
                pair,
                second,
                kind,
                options,
                ..
            } => {
                let key = (Pair::Socket, *pair);
                let both = *pairs.entry(key).or_insert_with(|| {
                    let both = self.builder.words(&[0]);
                    let args = [libc::AF_UNIX as u64, *kind as u64, 0, both];
                    list.push(Op::syscall(libc::SYS_socketpair, &args));
                    both
                });
                let at = Made::Cell(both + if *second { 4 } else { 0 });
                self.options(list, at, options);
                at
            }
            _ => unreachable!("only pipes and socket pairs have two ends"),
        }
    }

    /// Bytes and messages that were waiting in pipes and socket pairs.
    pub(super) fn queues(&mut self, list: &mut Vec<Op>, pairs: &Pairs) {
        for description in &self.snapshot.descriptions {
            match &description.kind {
                DescriptionKind::Pipe {
                    pipe,
                    write_end: false,
                    content,
                    ..
                } if !content.is_empty() => {
                    let write_end = pairs[&(Pair::Pipe, *pipe)] + 4;
                    let data = self.builder.bytes(content, 8);
                    let len = content.len() as u64;
                    list.push(
                        Op::syscall(libc::SYS_write, &[write_end, data, len])
                            .indirect(0)
                            .exact(len),
                    );
                }
                DescriptionKind::SocketPair {
                    pair,
                    second,
                    queue,
                    ..
                } => {
                    let other = pairs[&(Pair::Socket, *pair)] + if *second { 0 } else { 4 };
                    for message in queue {
                        let data = self.builder.bytes(message, 8);
                        let len = message.len() as u64;
                        list.push(
                            Op::syscall(libc::SYS_write, &[other, data, len])
                                .indirect(0)
                                .exact(len),
                        );
                    }
                }
                _ => {}
            }
        }
    }
}
