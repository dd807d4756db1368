//! The kinds of sandboxes that a node has.

use std::fmt;
use std::sync::Arc;

use super::{Boot, BootError};
use crate::serving::policy::SandboxChoice;

/// Each kind, or why it cannot be had here.
#[derive(Clone)]
pub struct Sandboxes {
    pub(super) processes: Arc<dyn Boot>,
    pub(super) microvms: Result<Arc<dyn Boot>, BootError>,
}

impl Sandboxes {
    /// Processes, which every node has, and microVMs, or the sentence that says why there are none.
    pub fn new(processes: impl Boot, microvms: Result<impl Boot, BootError>) -> Self {
        Self {
            processes: Arc::new(processes),
            microvms: microvms.map(|boot| Arc::new(boot) as Arc<dyn Boot>),
        }
    }

    /// The kind that a function is to have.
    ///
    /// # Errors
    /// Why it cannot be had on this node.
    pub fn of(&self, choice: SandboxChoice) -> Result<&Arc<dyn Boot>, &BootError> {
        match choice {
            SandboxChoice::Process => Ok(&self.processes),
            SandboxChoice::Microvm => self.microvms.as_ref(),
        }
    }
}

impl<B: Boot> From<B> for Sandboxes {
    fn from(processes: B) -> Self {
        let none =
            BootError::new("this node was started without microVMs: use `process` sandboxes");
        Self {
            processes: Arc::new(processes),
            microvms: Err(none),
        }
    }
}

impl fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandboxes")
            .field("microvms", &self.microvms.as_ref().err())
            .finish_non_exhaustive()
    }
}
