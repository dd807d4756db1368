//! What is learnt about an image while it is used, and what is made of it.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use rouse_pool::cost::MapOrCopy;
use rouse_snapshot::model::ProcessSnapshot;

use super::programs::Programs;
use super::{Image, ImageError, chain};
use crate::plan::Environment;
use crate::working_set::{
    Costs, Learner, Observation, Schedule, WorkingSet, WorkingSetReport, stored,
};

impl Image {
    /// Should the next boot be blind, so that what is prepared can be judged? Only restores can be.
    pub fn wants_blind_boot(&self) -> bool {
        self.schedule.wants_blind() && self.read().blind.is_some()
    }

    /// The programs to restore with now: those that prepare nothing, if the boot is to be blind. And whether it is to be
    /// seen exactly what the instance touches.
    pub(crate) fn programs_to_restore(&self) -> (Arc<Programs>, bool) {
        let current = self.read();
        match &current.blind {
            Some(blind) if self.schedule.take_blind() => (blind.clone(), true),
            _ => (current.programs.clone(), self.schedule.wants_exact()),
        }
    }

    /// An instance for which `prepared` had been prepared has answered: is it to be observed?
    pub(crate) fn answered(&self, prepared: &WorkingSet) -> bool {
        self.schedule.answer(prepared.is_empty())
    }

    /// Adds what an instance has touched, and stores what is known now; from time to time compiles the
    /// programs anew. Returns whether it did: then a template host has to be made again.
    pub(crate) fn learn(
        &self,
        seen: &Observation,
        environment: &Environment,
        costs: MapOrCopy,
    ) -> Result<bool, ImageError> {
        let mut learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        let working_set = learner
            .add(seen, &self.schedule)
            .then(|| learner.working_set());
        // The lock is held until the programs are in place, so that sets do not overtake each other.
        let changed = working_set.is_some();
        if let Some(working_set) = working_set {
            self.prepare_with(working_set, environment, costs)?;
        }
        if self.schedule.wants_blind() && self.read().blind.is_none() {
            let nothing = WorkingSet::default();
            let current = self.programs();
            let programs =
                Programs::replacing(&current, &self.snapshot, environment, nothing, costs)?;
            self.write().blind = Some(Arc::new(programs));
        }
        drop(learner);
        self.expect_pages();
        self.store(changed).map_err(ImageError::Learnt)?;
        Ok(changed)
    }

    /// Adds what a rehearsal has touched, if nothing is known yet, and prepares boots with it. Returns whether it did.
    pub(crate) fn learn_rehearsed(
        &self,
        seen: &Observation,
        environment: &Environment,
        costs: MapOrCopy,
    ) -> Result<bool, ImageError> {
        let mut learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        if !learner.rehearse(seen, &self.schedule) {
            return Ok(false);
        }
        self.prepare_with(learner.working_set(), environment, costs)?;
        // They are compiled again when the first blind boot is near.
        self.write().blind = None;
        drop(learner);
        self.expect_pages();
        self.store(true).map_err(ImageError::Learnt)?;
        Ok(true)
    }

    /// Boots are prepared with this set from now on.
    fn prepare_with(
        &self,
        set: WorkingSet,
        environment: &Environment,
        costs: MapOrCopy,
    ) -> Result<(), ImageError> {
        let current = self.programs();
        let programs = Programs::replacing(&current, &self.snapshot, environment, set, costs)?;
        self.write().programs = Arc::new(programs);
        Ok(())
    }

    /// Stores what is known now.
    fn store(&self, durable: bool) -> io::Result<()> {
        // Before the learner's lock: what is stored last is what is known last, and nobody waits for the disk to ask
        // what is known.
        let _one_at_a_time = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let record = {
            let learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
            learner.record(self.binding, &self.schedule)
        };
        stored::store(&self.directory, &record, durable)
    }

    /// How well the working set does.
    pub fn working_set_report(&self) -> WorkingSetReport {
        let learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        learner.report(&self.schedule)
    }

    /// Places of predicted pages in the order of first touches, by address, as far as it was recorded.
    pub(super) fn places(&self) -> std::collections::BTreeMap<u64, u32> {
        let learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        learner.places()
    }

    /// What is predicted, whether boots are prepared with it or not.
    pub fn predicted_set(&self) -> WorkingSet {
        let learner = self.learner.lock().unwrap_or_else(PoisonError::into_inner);
        learner.predicted_set()
    }
}

/// What is stored beside the snapshot; it is only advice, so one that cannot be used is just named.
pub(super) fn learnt_before(
    snapshot: &ProcessSnapshot,
    directory: &Path,
    costs: Costs,
) -> (Learner, Schedule) {
    let starts = snapshot.mappings.iter().map(|m| m.range.start).collect();
    match stored::load(directory, snapshot) {
        Ok(Some(record)) => (
            Learner::resume(&record, starts, costs),
            Schedule::after(record.invocations),
        ),
        Ok(None) => (Learner::new(starts, costs), Schedule::default()),
        Err(error) => {
            let problem = chain(&error);
            tracing::warn!(path = %directory.display(), problem, "a working set is learnt anew");
            let learner = Learner::new(starts, costs).with_problem(problem);
            (learner, Schedule::default())
        }
    }
}
