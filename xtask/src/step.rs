//! One step: a command that is announced, run and timed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Instant;

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The program could not be started.
    #[error("{name}: cannot run {program}: {source}")]
    Start {
        /// The step.
        name: &'static str,
        /// Its program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The program failed.
    #[error("{name}: {status}")]
    Failed {
        /// The step.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// A command with a name that people read.
pub struct Step {
    name: &'static str,
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<OsString>,
    privileged: bool,
}

impl Step {
    /// A step that runs `program`.
    pub fn new(name: &'static str, program: impl Into<OsString>) -> Self {
        Step {
            name,
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            privileged: false,
        }
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the directory in which the command runs.
    pub fn current_dir(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs the command with sudo unless the user is root already: sandboxes need it.
    pub fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// Runs the command and waits for it.
    ///
    /// # Errors
    /// When it cannot be started or does not end with 0.
    pub fn run(self) -> Result<(), StepError> {
        println!("\n=== {} ===", self.name);
        let begin = Instant::now();
        let mut command = if self.privileged && !is_root() {
            let mut sudo = Command::new("sudo");
            // Through env(1): sudo resets the environment, PATH included, whatever its flags.
            sudo.arg("env");
            for name in [
                "PATH",
                "HOME",
                "CARGO_HOME",
                "RUSTUP_HOME",
                "CARGO_TARGET_DIR",
            ] {
                if let Some(value) = env::var_os(name) {
                    sudo.arg(assignment(OsStr::new(name), &value));
                }
            }
            sudo.args(
                self.environment
                    .iter()
                    .map(|(name, value)| assignment(name, value)),
            );
            sudo.arg(&self.program);
            sudo
        } else {
            let mut command = Command::new(&self.program);
            command.envs(self.environment.iter().map(|(name, value)| (name, value)));
            command
        };
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let status = command
            .args(&self.arguments)
            .status()
            .map_err(|source| StepError::Start {
                name: self.name,
                program: self.program.to_string_lossy().into_owned(),
                source,
            })?;
        if !status.success() {
            return Err(StepError::Failed {
                name: self.name,
                status,
            });
        }
        println!(
            "=== {}: done in {:.1} s ===",
            self.name,
            begin.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

fn assignment(name: &OsStr, value: &OsStr) -> OsString {
    let mut text = name.to_owned();
    text.push("=");
    text.push(value);
    text
}

/// Whether the user is root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // /proc/self belongs to the effective user of whoever looks at it.
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
