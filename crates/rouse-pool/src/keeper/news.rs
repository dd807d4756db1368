//! Why pages of instances were made unusable, for who asks when an instance has ended.
//!
//! The pager says it before it does it. So whoever has seen an instance end, and has then had any answer from the pager, finds
//! here what led to it.

use std::collections::BTreeMap;

use crate::pager::protocol::{Failure, Notice};

/// Why a page that an instance waited for could not be filled. In words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageFault {
    /// What is stored cannot be read, or is not what was written.
    Damaged(String),
    /// There was no memory for it, for as long as it was tried.
    NoMemory(String),
}

/// More are not kept, the oldest go first: of what an instance has forked, something may be heard when nobody asks any more.
const MOST: usize = 1024;

/// By the token of the registration.
#[derive(Debug, Default)]
pub(super) struct News(BTreeMap<u64, PageFault>);

impl News {
    pub fn hear(&mut self, notice: &Notice) {
        if let Notice::Poisoned {
            token,
            reason,
            detail,
        } = notice
        {
            let fault = match reason {
                Failure::Memory => PageFault::NoMemory(detail.clone()),
                _ => PageFault::Damaged(detail.clone()),
            };
            self.0.insert(*token, fault);
            if self.0.len() > MOST {
                self.0.pop_first();
            }
        }
    }

    pub fn of(&self, token: u64) -> Option<PageFault> {
        self.0.get(&token).cloned()
    }

    pub fn forget(&mut self, token: u64) {
        self.0.remove(&token);
    }
}
