//! What the pager reports.

use crate::pager::protocol::{Failure, Notice};
use crate::pool::PoolId;

/// Why a page could not be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamageReason {
    /// The stored bytes are not those of the snapshot.
    Verification,
    /// They could not be read.
    Io,
    /// There was no memory for it. Tried again for five seconds; whoever waits then gets a signal.
    OutOfMemory,
}

/// Something that the daemon has not asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PagerEvent {
    /// A pager has taken over: the first, or after the one before died.
    Started {
        /// Counts from 1.
        generation: u64,
    },
    /// A page could not be filled. Threads that wait for it get `SIGBUS`; the instance is not to
    /// be used any more, and the snapshot neither unless the reason is memory. Reported once for
    /// each piece and instance.
    Damaged {
        /// Which pool.
        pool: PoolId,
        /// First page of the piece.
        page: u64,
        /// [`Registration::token`](super::Registration::token) of who waits for it; `None` when it
        /// was filled ahead.
        instance: Option<u64>,
        /// Why.
        reason: DamageReason,
        /// In words.
        detail: String,
    },
    /// The keeper has died; the pager goes on, but when it dies, nobody starts another. End all
    /// instances in time.
    KeeperLost,
    /// Keeper and pager have died. Instances wait where memory is absent: end them.
    Gone,
    /// Something that an operator should know.
    Trouble {
        /// The instance concerned.
        instance: Option<u64>,
        /// In words.
        detail: String,
    },
}

impl PagerEvent {
    /// `None` for what is no event.
    pub(super) fn of(notice: Notice) -> Option<Self> {
        let instance = |token| (token != 0).then_some(token);
        Some(match notice {
            Notice::Hello { generation } => Self::Started { generation },
            // Whoever is concerned asks for it.
            Notice::Answer { .. } | Notice::Poisoned { .. } => return None,
            Notice::Damaged {
                pool,
                page,
                token,
                reason,
                detail,
            } => Self::Damaged {
                pool: PoolId(pool),
                page,
                instance: instance(token),
                reason: match reason {
                    Failure::Memory => DamageReason::OutOfMemory,
                    Failure::Damaged => DamageReason::Verification,
                    _ => DamageReason::Io,
                },
                detail,
            },
            Notice::Orphaned => Self::KeeperLost,
            Notice::Trouble { token, detail } => Self::Trouble {
                instance: instance(token),
                detail,
            },
        })
    }
}
