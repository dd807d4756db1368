//! The operation lists of an image, in files that processes can map.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rouse_pool::cost::MapOrCopy;
use rouse_restorer::program::Program;
use rouse_snapshot::model::ProcessSnapshot;
use rouse_snapshot::page_class::hot_pool_pages;
use rustix::fs::MemfdFlags;

use super::{Image, ImageError};
use crate::instance::BootPath;
use crate::plan::copied::{Copies, CopyPolicy, all_written};
use crate::plan::{self, Environment, Kind};
use crate::working_set::WorkingSet;

/// Pages of a working set of which an instance does not wait for all. Bringing more in keeps all processors of a small machine busy for
/// tens of milliseconds, and an instance beside that only gets in the way: one with 64 MiB took longer then.
const FEW: u64 = 4096;

/// A program of the restorer in a sealed memfd, to be mapped by any number of processes.
#[derive(Debug)]
pub struct LoadedProgram {
    pub program: Arc<Program>,
    pub file: OwnedFd,
}

/// The programs of an image. Each is compiled when it is first needed: most functions need one or two of them.
#[derive(Debug)]
pub struct Programs {
    restore: OnceLock<LoadedProgram>,
    watched: OnceLock<LoadedProgram>,
    template: OnceLock<LoadedProgram>,
    parked: OnceLock<LoadedProgram>,
    /// What all of them are made with.
    working_set: WorkingSet,
    /// Which of their pages are copied rather than mapped.
    copying: CopyPolicy,
    /// What `restore` prepares: it copies what is written, but mapping what is read would save nothing.
    copied: Arc<WorkingSet>,
    /// Pages of the pool of which `watched` makes copies, or that it copies in another way: it waits for these.
    copied_from: Vec<Range<u64>>,
    /// What is prepared in a clone: what `template` prepares, and what its host has copied.
    cloned: Arc<WorkingSet>,
    /// What `parked` prepares.
    ahead: Arc<WorkingSet>,
}

impl Programs {
    /// Compiles nothing yet.
    pub(super) fn new(
        snapshot: &ProcessSnapshot,
        working_set: WorkingSet,
        costs: MapOrCopy,
    ) -> Self {
        let copying = CopyPolicy::new(snapshot, costs);
        let copied = WorkingSet {
            written: all_written(snapshot, &working_set, Copies::Restore, &copying),
            read: Vec::new(),
        };
        let ahead = WorkingSet {
            written: copied.written.clone(),
            read: working_set.read.clone(),
        };
        let cloned = WorkingSet {
            written: all_written(snapshot, &working_set, Copies::Host, &copying),
            read: working_set.read.clone(),
        };
        let pages = working_set.written_pages() + working_set.read_pages();
        let copied_from = match working_set.written.is_empty() || pages > FEW {
            true => Vec::new(),
            false => {
                let written = WorkingSet {
                    written: working_set.written.clone(),
                    read: Vec::new(),
                };
                hot_pool_pages(snapshot, &written, &BTreeMap::new())
            }
        };
        Self {
            copied_from,
            restore: OnceLock::new(),
            watched: OnceLock::new(),
            template: OnceLock::new(),
            parked: OnceLock::new(),
            working_set,
            copying,
            copied: Arc::new(copied),
            cloned: Arc::new(cloned),
            ahead: Arc::new(ahead),
        }
    }

    /// Those that take the place of others: what is compiled of these is compiled of the new ones, so that no request waits
    /// for it.
    pub(super) fn replacing(
        others: &Self,
        snapshot: &ProcessSnapshot,
        environment: &Environment,
        working_set: WorkingSet,
        costs: MapOrCopy,
    ) -> Result<Self, ImageError> {
        let programs = Self::new(snapshot, working_set, costs);
        let all = [Kind::Restore, Kind::Watched, Kind::Template, Kind::Parked];
        for kind in all.into_iter().filter(|kind| others.has(*kind)) {
            programs.compiled(kind, snapshot, environment)?;
        }
        Ok(programs)
    }

    fn cell(&self, kind: Kind) -> Option<&OnceLock<LoadedProgram>> {
        match kind {
            Kind::Restore => Some(&self.restore),
            Kind::Watched => Some(&self.watched),
            Kind::Template => Some(&self.template),
            Kind::Parked => Some(&self.parked),
            // Made for one process at a time.
            Kind::Rewind => None,
        }
    }

    fn has(&self, kind: Kind) -> bool {
        self.cell(kind).is_some_and(|cell| cell.get().is_some())
    }

    /// A program, compiled if it is not. Takes some hundred microseconds then.
    pub(super) fn compiled(
        &self,
        kind: Kind,
        snapshot: &ProcessSnapshot,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        let cell = match self.cell(kind) {
            Some(cell) => cell,
            None => unreachable!("a rewind has no program that is kept"),
        };
        if let Some(program) = cell.get() {
            return Ok(program);
        }
        let program = plan::compile(snapshot, environment, &self.working_set, self.copying, kind)?;
        let program = load(program)?;
        Ok(cell.get_or_init(|| program))
    }

    /// The program of a restore in which all pages are there.
    pub(crate) fn restore(
        &self,
        image: &Image,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        self.compiled(Kind::Restore, &image.snapshot, environment)
    }

    /// The program of a restore in which pages may be absent.
    pub(crate) fn watched(
        &self,
        image: &Image,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        self.compiled(Kind::Watched, &image.snapshot, environment)
    }

    /// The program of a template host.
    pub(crate) fn template(
        &self,
        image: &Image,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        self.compiled(Kind::Template, &image.snapshot, environment)
    }

    /// The program of an instance that is made ahead.
    pub(crate) fn parked(
        &self,
        image: &Image,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        self.compiled(Kind::Parked, &image.snapshot, environment)
    }

    /// What all of them are made with.
    pub(crate) fn working_set(&self) -> &WorkingSet {
        &self.working_set
    }

    /// Pages of its own pool that an instance needs before it goes on, in a restore in which pages may be absent. If there are
    /// none, nothing is prepared, or much is to be brought in: then what its pool is known to need is to be there as a whole.
    pub(crate) fn copied_from(&self) -> &[Range<u64>] {
        &self.copied_from
    }

    /// Which of their pages are copied rather than mapped.
    pub(crate) fn copying(&self) -> CopyPolicy {
        self.copying
    }

    /// What was prepared in an instance that came to be on `path`.
    pub(crate) fn prepared(&self, path: BootPath) -> Arc<WorkingSet> {
        match path {
            BootPath::Fork => self.cloned.clone(),
            BootPath::Parked | BootPath::Rewind => self.ahead.clone(),
            _ => self.copied.clone(),
        }
    }
}

/// Puts a program where processes can map it.
pub(crate) fn load(program: Program) -> Result<LoadedProgram, ImageError> {
    let store = || -> io::Result<OwnedFd> {
        let file = rustix::fs::memfd_create(
            "rouse-program",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        let mut done = 0;
        while done < program.image.len() {
            done += rustix::io::pwrite(&file, &program.image[done..], done as u64)?;
        }
        rouse_pool::seal(file.as_fd())?;
        Ok(file)
    };
    let file = store().map_err(ImageError::Store)?;
    Ok(LoadedProgram {
        program: Arc::new(program),
        file,
    })
}
