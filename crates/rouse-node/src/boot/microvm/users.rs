//! Users of the host that VMMs run as: no two at a time have the same, so that none can touch another.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_vmm::jail::Jail;

/// Those that nobody has.
#[derive(Debug, Clone)]
pub struct Users(Arc<Mutex<BTreeSet<u32>>>);

/// One that a VMM has, until this is dropped.
#[derive(Debug)]
pub struct User {
    id: u32,
    users: Users,
}

impl Users {
    /// So many from `first` on.
    pub fn new(first: u32, count: u32) -> Self {
        let all = first..first.saturating_add(count);
        Self(Arc::new(Mutex::new(all.collect())))
    }

    /// One that nobody has.
    pub fn take(&self) -> Option<User> {
        let id = self.lock().pop_first()?;
        let users = self.clone();
        Some(User { id, users })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl User {
    /// As whom the VMM runs.
    pub fn jail(&self) -> Jail {
        Jail {
            uid: self.id,
            gid: self.id,
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.users.lock().insert(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same() {
        let users = Users::new(7, 2);
        let (one, two) = (users.take().unwrap(), users.take().unwrap());
        assert_eq!((one.jail().uid, two.jail().uid), (7, 8));
        assert!(users.take().is_none());
        drop(one);
        assert_eq!(users.take().unwrap().jail().gid, 7);
    }
}
