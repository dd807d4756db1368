//! What a process looks like that has just been restored and has not run: read once from a real one.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::mappings::{self, Vma};
use crate::checkpoint::proc_files::{self, Status};
use crate::checkpoint::threads::Usual;
use crate::image::Programs;
use rouse_pool::memory::ImageMemory;

/// Number of resource limits, `RLIM_NLIMITS`.
const RLIMITS: u32 = 16;

/// Lines of `/proc/PID/status` that a process cannot take back once it has changed them.
///
/// Users and groups are none of them: who has no rights and one user only cannot become another.
const LASTING: [&str; 12] = [
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "x86_Thread_features",
    "x86_Thread_features_locked",
];

/// Files below `/proc/PID` through which a process can change what is decided about it, and not always back.
pub(super) const SETTINGS: [&str; 2] = ["oom_score_adj", "coredump_filter"];

/// A process of an image before its first own instruction.
#[derive(Debug)]
pub(crate) struct Baseline {
    /// What it was restored by; another set of programs may map otherwise.
    pub(crate) programs: Arc<Programs>,
    /// What it maps.
    pub(crate) memories: Vec<Arc<ImageMemory>>,
    /// Its mappings but those of the restorer's program.
    pub(super) areas: Vec<Vma>,
    pub(super) lasting: Vec<String>,
    pub(super) exe: Vec<u8>,
    /// (soft, hard) of each resource.
    pub(super) limits: Vec<libc::rlimit64>,
    pub(super) usual: Usual,
    /// Contents of [`SETTINGS`].
    pub(super) settings: [String; SETTINGS.len()],
}

impl Baseline {
    /// Reads it from the process with this id on the host.
    pub(crate) fn read(
        pid: i32,
        programs: Arc<Programs>,
        memories: Vec<Arc<ImageMemory>>,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            programs,
            memories,
            areas: function_areas(pid)?.0,
            lasting: lasting(pid)?,
            exe: proc_files::read_link(pid, "exe")?,
            limits: (0..RLIMITS)
                .map(|resource| limit(pid, resource, None))
                .collect::<Result<_, _>>()?,
            usual: Usual::read(pid)?,
            settings: settings(pid)?,
        })
    }

    /// Is it still what a restore would make now?
    pub(crate) fn is_of(&self, programs: &Arc<Programs>, memories: &[Arc<ImageMemory>]) -> bool {
        let same = |(a, b): (&Arc<ImageMemory>, &Arc<ImageMemory>)| Arc::ptr_eq(a, b);
        Arc::ptr_eq(&self.programs, programs)
            && self.memories.len() == memories.len()
            && self.memories.iter().zip(memories).all(same)
    }
}

/// The mappings of a process: the function's own, and those of the restorer's program.
pub(super) fn function_areas(pid: i32) -> Result<(Vec<Vma>, Vec<Range<u64>>), CheckpointError> {
    let is_program =
        |vma: &Vma| vma.path == crate::checkpoint::address_space::PROGRAM_PATH.as_bytes();
    let (program, own): (Vec<_>, Vec<_>) =
        mappings::read_plain(pid)?.into_iter().partition(is_program);
    Ok((own, program.into_iter().map(|vma| vma.range).collect()))
}

/// Contents of [`SETTINGS`].
pub(super) fn settings(pid: i32) -> Result<[String; SETTINGS.len()], CheckpointError> {
    let mut found = [const { String::new() }; SETTINGS.len()];
    for (name, text) in SETTINGS.iter().zip(&mut found) {
        *text = proc_files::read_text(pid, name)?;
    }
    Ok(found)
}

/// What a thread cannot take back. Lines that a kernel does not have are empty.
pub(super) fn lasting(tid: i32) -> Result<Vec<String>, CheckpointError> {
    let status = Status::read(tid)?;
    let line = |key| format!("{key} {}", status.value(key).unwrap_or_default());
    Ok(LASTING.iter().map(|key| line(*key)).collect())
}

/// The limit of another process; sets it first, if there is a new one.
pub(super) fn limit(
    pid: i32,
    resource: u32,
    new: Option<&libc::rlimit64>,
) -> Result<libc::rlimit64, CheckpointError> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: prlimit64 reads one structure, or none, and writes one; both are of its type and live across the call.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new, &raw mut old) };
    match result {
        0 => Ok(old),
        _ => Err(CheckpointError::kernel("prlimit")(
            io::Error::last_os_error(),
        )),
    }
}
