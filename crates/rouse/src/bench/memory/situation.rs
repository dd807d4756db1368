//! Where the memory of a snapshot is when a request comes.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rouse_process::launcher::{Image, SnapshotError};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;

use crate::local::Session;

/// Where the memory of a snapshot is, and how it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Situation {
    /// All pages are in DRAM.
    Dram,
    /// No page is, but what is on disk of them: the working set is decoded while the instance is made.
    Compressed,
    /// No page is; each comes when it is touched.
    DiskLazy,
    /// No page is; the working set is brought in while the instance is made.
    DiskPrefetch,
    /// As before, from a disk of 500 MB/s.
    PacedCompressed,
    /// As before, and stored without compression.
    PacedPlain,
}

impl Situation {
    /// Those that are compared first.
    pub const TIERS: [Self; 4] = [
        Self::Dram,
        Self::Compressed,
        Self::DiskLazy,
        Self::DiskPrefetch,
    ];

    /// As in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dram => "dram",
            Self::Compressed => "compressed",
            Self::DiskLazy => "disk, lazy",
            Self::DiskPrefetch => "disk, prefetch",
            Self::PacedCompressed => "500 MB/s, compressed",
            Self::PacedPlain => "500 MB/s, uncompressed",
        }
    }
}

/// Why a situation could not be brought about.
#[derive(Debug, thiserror::Error)]
pub enum SituationError {
    /// The launcher could not do its part.
    #[error("the snapshot's memory cannot be moved")]
    Launcher(#[from] SnapshotError),
    /// Instances kept the memory for too long.
    #[error("the memory of {0} stays in use")]
    InUse(String),
    /// The page cache could not be emptied.
    #[error("the page cache of the snapshot's files cannot be emptied")]
    Cache(#[source] io::Error),
    /// The snapshot is not one of those in use.
    #[error("the snapshot of {0} is not loaded, or this host has no pager")]
    NotLoaded(String),
}

/// How long instances that were killed may hold on to their snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

/// The snapshot of a function.
pub fn image_of(session: &Session, function: &str) -> Result<Arc<Image>, SituationError> {
    let belongs = |image: &Arc<Image>| {
        let parent = image.directory().parent().and_then(Path::file_name);
        parent.is_some_and(|name| name == function)
    };
    let found = session.launcher.images().into_iter().find(belongs);
    found
        .filter(|_| session.launcher.pager_stats().is_some())
        .ok_or_else(|| SituationError::NotLoaded(function.into()))
}

/// Brings it about.
pub fn arrange(
    session: &Session,
    image: &Arc<Image>,
    situation: Situation,
) -> Result<(), SituationError> {
    let launcher = &session.launcher;
    if situation == Situation::Dram {
        return Ok(session.runtime.block_on(launcher.make_resident(image))?);
    }
    launcher.set_prefetch(situation != Situation::DiskLazy);
    let compressed = launcher.hold_compressed(image, situation == Situation::Compressed);
    session.runtime.block_on(compressed)?;
    let (begin, all) = (Instant::now(), image.snapshot().pool_pages);
    // As long as the last instance is ending, everything stays.
    while session.runtime.block_on(launcher.release(image))? >= all {
        if begin.elapsed() > PATIENCE {
            return Err(SituationError::InUse(
                image.directory().display().to_string(),
            ));
        }
        thread::sleep(Duration::from_millis(1));
    }
    drop_cache(image.directory()).map_err(SituationError::Cache)?;
    // The slow disk is one that takes its time, not one that has to read.
    if situation == Situation::DiskLazy || situation == Situation::DiskPrefetch {
        drop_cache(&session.state_dir.join("packs")).map_err(SituationError::Cache)?;
    }
    Ok(())
}

/// Makes the kernel forget the contents of the files in a directory.
fn drop_cache(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fadvise(File::open(entry.path())?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
