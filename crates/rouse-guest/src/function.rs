//! The function's processes: how they are started, stopped and let go on.
//!
//! They are in a control group of their own, so that all of them stop at once, whatever they have forked.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rouse_guest::protocol::{OUTPUT_PORT, RESERVED, Start};
use rustix::mount::{MountFlags, mount};

use crate::network;

const HIERARCHY: &str = "/sys/fs/cgroup";
/// A process that does not stop hangs in the kernel; so long is waited, in milliseconds.
const PATIENCE: u32 = 30_000;

/// The function.
pub struct Function {
    group: PathBuf,
}

impl Function {
    /// Starts its runtime.
    pub fn start(start: &Start) -> Result<Self, String> {
        let group =
            make_group().map_err(|error| format!("cannot make a control group: {error}"))?;
        let members = OpenOptions::new()
            .write(true)
            .open(group.join("cgroup.procs"))
            .map_err(|error| format!("cannot use a control group: {error}"))?;
        let (output, errors) = output()?;
        let (program, arguments) = start
            .arguments
            .split_first()
            .ok_or_else(|| "there is no program to start".to_owned())?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(start.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&start.directory)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let (user, group_id) = start.owner;
        // SAFETY: between fork and exec the closure makes two system calls, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(&members, b"0")?;
                become_user(user, group_id)
            })
        };
        command
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        Ok(Self { group })
    }

    /// Stops all its processes. None has run an instruction since, when this returns.
    pub fn freeze(&self) -> Result<(), String> {
        self.set("1")
    }

    /// The control group that all its processes are in.
    pub fn group(&self) -> &Path {
        &self.group
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<(), String> {
        self.set("0")
    }

    fn set(&self, frozen: &str) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot freeze or thaw the function: {error}");
        fs::write(self.group.join("cgroup.freeze"), frozen).map_err(failed)?;
        let wanted = format!("frozen {frozen}");
        for _ in 0..PATIENCE {
            let events = fs::read_to_string(self.group.join("cgroup.events")).map_err(failed)?;
            if events.lines().any(|line| line == wanted) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err("the function cannot be frozen: it hangs in the kernel".to_owned())
    }
}

/// Where what the function prints goes: to the host, or if that does not want it, nowhere.
fn output() -> Result<(Stdio, Stdio), String> {
    let file = match network::to_host(OUTPUT_PORT, RESERVED) {
        Ok(connection) => File::from(connection),
        Err(_) => File::options()
            .write(true)
            .open("/dev/null")
            .map_err(|error| format!("cannot open /dev/null: {error}"))?,
    };
    let same: OwnedFd = file
        .try_clone()
        .map_err(|error| format!("cannot copy a descriptor: {error}"))?
        .into();
    Ok((Stdio::from(file), Stdio::from(same)))
}

fn become_user(user: u32, group: u32) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setgid(group.into())?;
    // Last: afterwards none of the above is allowed. All capabilities go with it.
    nix::unistd::setuid(user.into())?;
    Ok(())
}

fn make_group() -> io::Result<PathBuf> {
    match mount("cgroup2", HIERARCHY, "cgroup2", MountFlags::NOSUID, None) {
        // It is there already when it is mounted twice.
        Ok(()) | Err(rustix::io::Errno::BUSY) => {}
        Err(errno) => return Err(errno.into()),
    }
    let group = Path::new(HIERARCHY).join("function");
    match fs::create_dir(&group) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(group),
    }
}
