//! A dictionary for each runtime, trained on what one of its functions has in memory.
//!
//! ```text
//!  first snapshot of a program   second one: written, then sampled ---> trained     third one: zstd may use it
//! ```
//! A single function would save less than the dictionary takes. Nothing says on disk which dictionary is whose: it is
//! found again in the page maps of the snapshots that need it, and goes with the last of them.
//!
//! A dictionary holds parts of a function's memory, so it is only for snapshots of the same tenant. What is started from a
//! language template has better help, and is not sampled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_pool::Pool;
use rouse_pool::codec::{Dictionary, samples, train};
use rouse_pool::snapshot_store::StoredSnapshot;
use rouse_snapshot::model::ProcessSnapshot;

use super::Launcher;
use crate::image::chain;

/// Where a function's own files are. A program from there is no other function's.
const PACKAGE: &[u8] = b"/var/task/";

/// The dictionaries of all programs that were seen.
#[derive(Debug, Default)]
pub(super) struct TrainedDictionaries(Mutex<HashMap<Vec<u8>, State>>);

#[derive(Debug)]
enum State {
    /// There is one snapshot of it.
    Seen,
    /// One is made at this moment, or could not be made.
    Taken,
    Ready(Arc<Dictionary>),
}

impl TrainedDictionaries {
    /// What zstd may use for the pages of a snapshot.
    pub(super) fn of(&self, snapshot: &ProcessSnapshot) -> Option<Arc<Dictionary>> {
        match self.lock().get(program(snapshot)?)? {
            State::Ready(dictionary) => Some(dictionary.clone()),
            State::Seen | State::Taken => None,
        }
    }

    /// A stored snapshot needs this one.
    pub(super) fn found(&self, snapshot: &ProcessSnapshot, dictionary: Arc<Dictionary>) {
        if let Some(program) = program(snapshot) {
            let mut known = self.lock();
            // The one in use is as good.
            if !matches!(known.get(program), Some(State::Ready(_))) {
                known.insert(program.to_owned(), State::Ready(dictionary));
            }
        }
    }

    /// Is it time to train one for this snapshot's program? If so, the caller does it.
    fn is_due(&self, program: &[u8]) -> bool {
        let mut known = self.lock();
        match known.get(program) {
            None => {
                known.insert(program.to_owned(), State::Seen);
                false
            }
            Some(State::Seen) => {
                known.insert(program.to_owned(), State::Taken);
                true
            }
            Some(State::Taken | State::Ready(_)) => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launcher {
    /// After a snapshot was written that no template helped with: trains a dictionary of it in the background, if its program
    /// needs one.
    pub(super) fn train_if_due(&self, snapshot: &ProcessSnapshot, pool: &Pool) {
        let Some(program) = program(snapshot) else {
            return;
        };
        if !self.inner.dictionaries.is_due(program) {
            return;
        }
        let samples = match samples(pool) {
            Ok(samples) => samples,
            Err(error) => return tracing::debug!(%error, "a snapshot could not be sampled"),
        };
        let (launcher, program) = (self.clone(), program.to_owned());
        let spawned = std::thread::Builder::new()
            .name("rouse-trainer".into())
            .spawn(move || match train(&samples) {
                Ok(dictionary) => {
                    tracing::debug!(id = %dictionary.id(), "a dictionary was trained");
                    let ready = State::Ready(Arc::new(dictionary));
                    launcher.inner.dictionaries.lock().insert(program, ready);
                }
                Err(error) => {
                    tracing::debug!(error = chain(&error), "no dictionary could be trained");
                }
            });
        if let Err(error) = spawned {
            tracing::debug!(%error, "no dictionary could be trained");
        }
    }

    /// The dictionary that a stored snapshot was written with is for others of its program, too.
    pub(super) fn remember_dictionary(&self, stored: &StoredSnapshot) {
        if let Some(dictionary) = self.inner.store.dictionary_of(&stored.map) {
            self.inner.dictionaries.found(&stored.snapshot, dictionary);
        }
    }
}

/// What tells a runtime: the path of the program as the function sees it. `None` for one of the function's own.
fn program(snapshot: &ProcessSnapshot) -> Option<&[u8]> {
    let file = snapshot.files.get(snapshot.process.exe.0 as usize)?;
    (!file.path.starts_with(PACKAGE)).then_some(&file.path)
}
