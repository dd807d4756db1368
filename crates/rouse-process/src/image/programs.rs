//! The operation lists of an image, in files that processes can map.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rouse_restorer::program::Program;
use rouse_snapshot::model::ProcessSnapshot;
use rustix::fs::{MemfdFlags, SealFlags};

use super::{Image, ImageError};
use crate::instance::BootPath;
use crate::plan::copied::{Copies, all_written};
use crate::plan::{self, Environment};
use crate::working_set::WorkingSet;

/// A program of the restorer in a sealed memfd, to be mapped by any number of processes.
#[derive(Debug)]
pub struct LoadedProgram {
    pub program: Arc<Program>,
    pub file: OwnedFd,
}

/// The programs of an image.
#[derive(Debug)]
pub struct Programs {
    pub(crate) restore: LoadedProgram,
    pub(crate) template: LoadedProgram,
    /// `restore` for memory of which pages may be absent, once it is needed.
    watched: OnceLock<LoadedProgram>,
    /// For instances that are made ahead, once it is needed.
    parked: OnceLock<LoadedProgram>,
    /// What all of them are made with.
    working_set: WorkingSet,
    /// What `restore` prepares: it copies what is written, but mapping what is read would save nothing.
    copied: Arc<WorkingSet>,
    /// What is prepared in a clone: what `template` prepares, and what its host has copied.
    cloned: Arc<WorkingSet>,
    /// What `parked` prepares.
    ahead: Arc<WorkingSet>,
}

impl Programs {
    pub(super) fn compile(
        snapshot: &ProcessSnapshot,
        environment: &Environment,
        working_set: WorkingSet,
    ) -> Result<(Self, Vec<usize>), ImageError> {
        let plan = plan::compile(snapshot, environment, &working_set)?;
        let copied = WorkingSet {
            written: all_written(snapshot, &working_set, Copies::Restore),
            read: Vec::new(),
        };
        let ahead = WorkingSet {
            written: copied.written.clone(),
            read: working_set.read.clone(),
        };
        let cloned = WorkingSet {
            written: all_written(snapshot, &working_set, Copies::Host),
            read: working_set.read.clone(),
        };
        let programs = Self {
            restore: load(plan.restore)?,
            template: load(plan.template)?,
            watched: OnceLock::new(),
            parked: OnceLock::new(),
            working_set,
            copied: Arc::new(copied),
            cloned: Arc::new(cloned),
            ahead: Arc::new(ahead),
        };
        Ok((programs, plan.files))
    }

    /// The program of a restore in which pages may be absent.
    pub(crate) fn watched(
        &self,
        image: &Image,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        if let Some(program) = self.watched.get() {
            return Ok(program);
        }
        let program = plan::compile_watched(&image.snapshot, environment, &self.working_set)?;
        let program = load(program)?;
        Ok(self.watched.get_or_init(|| program))
    }

    /// The program of an instance that is made ahead.
    pub(crate) fn parked(
        &self,
        image: &Image,
        environment: &Environment,
    ) -> Result<&LoadedProgram, ImageError> {
        if let Some(program) = self.parked.get() {
            return Ok(program);
        }
        let program = plan::compile_parked(&image.snapshot, environment, &self.working_set)?;
        let program = load(program)?;
        Ok(self.parked.get_or_init(|| program))
    }

    /// What all of them are made with.
    pub(crate) fn working_set(&self) -> &WorkingSet {
        &self.working_set
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
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(file)
    };
    let file = store().map_err(ImageError::Store)?;
    Ok(LoadedProgram {
        program: Arc::new(program),
        file,
    })
}
