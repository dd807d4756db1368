//! Turns a blank process into a function's runtime.

use std::convert::Infallible;
use std::ffi::{CStr, CString, NulError};
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::kernel::{process, socket};
use crate::seccomp::{self, SeccompError};
use crate::task_mount::attach_task_mount;
use crate::{GID, UID};

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program (a path in the sandbox, or a name to be found by the environment's `PATH`) and its arguments.
    pub argv: Vec<String>,
    /// Whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory in the sandbox.
    pub cwd: String,
}

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("cannot {step}: {source}")]
    Step {
        step: &'static str,
        source: io::Error,
    },
    #[error("an argument or a variable has a zero byte in it")]
    Zero(#[from] NulError),
    #[error("no program was given")]
    NoProgram,
    // Begins with `CANNOT_RUN`.
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: io::Error },
    #[error("cannot filter system calls: {0}")]
    Seccomp(#[from] SeccompError),
}

fn at(step: &'static str) -> impl FnOnce(io::Error) -> ExecError {
    move |source| ExecError::Step { step, source }
}

/// How the message begins when the program itself is missing or may not be run: the function's fault, not ours.
pub const CANNOT_RUN: &str = "cannot run ";

/// Runs in a blank process and does not return: it becomes the program, or tells `control` in one message of text why
/// it could not, and exits with 127. Success shows as end-of-file on `control`.
///
/// `task_mount` (see [`crate::open_task_mount`]) is attached at `/var/task`; standard output and error go to `log`,
/// standard input is empty; no other descriptor stays open.
pub fn exec(request: ExecRequest, task_mount: OwnedFd, log: OwnedFd, control: OwnedFd) -> ! {
    process::run_child(|| {
        let error = match become_program(&request, &task_mount, &log) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let _ = socket::send(&control, error.to_string().as_bytes(), &[]);
        127
    })
}

/// The order matters:
/// - mounting, leaving the bounding set and changing the user need rights that the change of user takes away;
/// - the log replaces standard error only when no step of our own can fail silently on it any more;
/// - the filter comes last: it forbids most of what stands above it, and needs `no_new_privs`.
fn become_program(
    request: &ExecRequest,
    task_mount: &OwnedFd,
    log: &OwnedFd,
) -> Result<Infallible, ExecError> {
    let step =
        |step, result: rustix::io::Result<()>| result.map_err(|error| at(step)(error.into()));
    let (program, arguments) = (
        request.argv.first().ok_or(ExecError::NoProgram)?,
        c_strings(&request.argv)?,
    );
    let variables: Vec<String> = request
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let variables = c_strings(&variables)?;
    let candidates = c_strings(&candidates(request, program))?;

    attach_task_mount(task_mount).map_err(at("attach the function's code"))?;
    process::silence_standard_streams().map_err(at("open /dev/null"))?;
    step("redirect standard output", rustix::stdio::dup2_stdout(log))?;
    step("redirect standard error", rustix::stdio::dup2_stderr(log))?;
    process::close_on_exec_from(3).map_err(at("mark descriptors to be closed"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    process::reset_signals();

    for (resource, value) in process::RESOURCE_LIMITS {
        process::limit_resource(resource, value).map_err(at("limit its resources"))?;
    }
    process::clear_bounding_set().map_err(at("clear the bounding set"))?;
    process::become_user(UID, GID).map_err(at("change the user"))?;
    process::clear_capabilities().map_err(at("give up capabilities"))?;
    step(
        "forbid new privileges",
        rustix::thread::set_no_new_privs(true),
    )?;
    // As the function's user: a directory that it may not enter is refused here.
    step(
        "enter the working directory",
        rustix::process::chdir(request.cwd.as_str()),
    )?;
    seccomp::install(0)?;

    let (arguments, variables) = (pointers(&arguments), pointers(&variables));
    let mut failure = io::Error::from_raw_os_error(libc::ENOENT);
    for candidate in candidates {
        // SAFETY: a C string and two null-terminated arrays of live C strings.
        unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), variables.as_ptr()) };
        let error = io::Error::last_os_error();
        // As execvp does: a program that was found but may not be run explains more than one that was not found.
        if error.kind() != io::ErrorKind::NotFound {
            failure = error;
        }
    }
    Err(ExecError::Run {
        program: program.clone(),
        source: failure,
    })
}

/// The paths to try for a program.
fn candidates(request: &ExecRequest, program: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = request
        .env
        .iter()
        .find(|(name, _)| name == "PATH")
        .map_or(DEFAULT_PATH, |(_, value)| value.as_str());
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| format!("{directory}/{program}"))
        .collect()
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, NulError> {
    texts
        .iter()
        .map(|text| CString::new(text.as_str()))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| CStr::as_ptr(string))
        .chain([std::ptr::null()])
        .collect()
}
