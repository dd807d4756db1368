//! VMMs that were started and jailed ahead: opening KVM, namespaces and the jail take long, and need no function.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rouse_vmm::zygote::Ready;

use super::users::{User, Users};
use crate::boot::BootError;

/// Those that wait. Nothing is started ahead until the first is needed.
#[derive(Debug)]
pub struct ReadyVmms {
    /// The program of VMM processes.
    program: PathBuf,
    users: Users,
    /// So many are to wait.
    target: usize,
    waiting: Mutex<Vec<ReadyVmm>>,
    is_filling: AtomicBool,
}

/// One.
#[derive(Debug)]
pub struct ReadyVmm {
    pub vmm: Ready,
    /// Until the VMM is gone.
    pub user: User,
}

impl ReadyVmms {
    pub fn new(program: PathBuf, users: Users, target: usize) -> Arc<Self> {
        Arc::new(Self {
            program,
            users,
            target,
            waiting: Mutex::default(),
            is_filling: AtomicBool::new(false),
        })
    }

    /// One that waits, or else a new one, for which this blocks; others are started in the background.
    pub fn take(self: &Arc<Self>) -> Result<ReadyVmm, BootError> {
        let taken = loop {
            match self.waiting().pop() {
                // It may have been killed.
                Some(waiting) if !waiting.vmm.has_ended() => break Some(waiting),
                Some(_) => {}
                None => break None,
            }
        };
        self.fill();
        match taken {
            Some(taken) => Ok(taken),
            None => self.start(),
        }
    }

    fn start(&self) -> Result<ReadyVmm, BootError> {
        let user = self.users.take().ok_or_else(|| {
            BootError::from_outside("there are as many machines as this node has users for")
        })?;
        let vmm = Ready::start(&self.program, &user.jail(), None);
        let vmm = vmm.map_err(|error| BootError::from_error(&error))?;
        Ok(ReadyVmm { vmm, user })
    }

    fn fill(self: &Arc<Self>) {
        if self.is_filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let vmms = Arc::downgrade(self);
        let filled = thread::Builder::new()
            .name("microvm-ready".into())
            .spawn(move || {
                while let Some(vmms) = vmms.upgrade() {
                    if vmms.waiting().len() >= vmms.target {
                        vmms.is_filling.store(false, Ordering::Release);
                        return;
                    }
                    match vmms.start() {
                        Ok(ready) => vmms.waiting().push(ready),
                        Err(error) => {
                            tracing::warn!(%error, "no VMM could be started ahead");
                            vmms.is_filling.store(false, Ordering::Release);
                            return;
                        }
                    }
                }
            });
        if let Err(error) = filled {
            tracing::warn!(%error, "no VMM could be started ahead");
            self.is_filling.store(false, Ordering::Release);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<ReadyVmm>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
