//! Rewind: puts an instance that has answered a request back to its snapshot, where it waits for the next one.
//!
//! It is Groundhog's sequential isolation (EuroSys'23) on a process whose memory is a private mapping of a pool. The
//! process is stopped from outside, what it has changed is found out, and it then undoes that itself, by a program of
//! the restorer that was compiled for just these changes (`plan::rewind`).
//!
//! | step | by | what |
//! |---|---|---|
//! | stop | the node, `ptrace` | all threads; those that the snapshot does not have are ended |
//! | compare | the node | mappings with those of a fresh instance ([`baseline`], [`compare`]), pages (`PAGEMAP_SCAN`) |
//! | send | the node | the program, descriptors as for a restore, a new connection to the runtime API |
//! | undo | the process | see `plan::rewind` |
//! | let go | the node | it waits as a parked instance does, under its filter |
//!
//! Nothing in the process's memory is trusted: the program and its data come from the node.
//!
//! What cannot be undone is a [`RewindError::Lasting`] with its name; the instance is then to be replaced.

pub(crate) mod baseline;
mod compare;
mod residue;
mod run;

use std::io;

use crate::checkpoint::CheckpointError;
use crate::image::ImageError;
use crate::plan::PlanError;

pub(crate) use baseline::Baseline;
pub(crate) use run::{Subject, run};

/// Why an instance could not be rewound. It is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// It has done something that cannot be undone.
    #[error("{0}")]
    Lasting(String),
    /// It could not be stopped, or not be looked at; or it holds what only a new process is rid of.
    #[error("the instance cannot be looked at")]
    Look(#[from] CheckpointError),
    /// Its files could not be removed.
    #[error("its files cannot be removed")]
    Files(#[source] io::Error),
    /// No program could be made for it.
    #[error("the rewind cannot be compiled")]
    Plan(#[from] PlanError),
    /// No program could be handed to it.
    #[error("the rewind cannot be stored")]
    Image(#[from] ImageError),
    /// A channel to it could not be made or used.
    #[error("{0}")]
    Channel(&'static str, #[source] io::Error),
    /// An operation of the program failed in the process.
    #[error("{0}")]
    Operation(String),
    /// There is no fresh instance to compare it with.
    #[error("no fresh instance could be made to compare with")]
    Baseline(#[source] Box<crate::launcher::LaunchError>),
    /// A background task did not come to its end.
    #[error("a background task was cancelled")]
    Cancelled,
}
