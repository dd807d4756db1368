//! A machine that runs in a thread of this process, and the node's end of its connections.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};

use rouse_vmm::agent::{API_PORT, Agent, AgentListener, OUTPUT_PORT, socket};
use rouse_vmm::devices::virtio::{DeviceConfig, Disk, Vsock};
use rouse_vmm::{Machine, Outcome, Pauser, RunError};
use tempfile::TempDir;

use super::PATIENCE;
use super::api::Api;
use crate::output::error::Failed;

/// What a node listens on for one machine.
pub struct Host {
    /// The devices of the machine, which reach this host.
    pub devices: DeviceConfig,
    control: AgentListener,
    api: UnixListener,
    // What the function prints is never read: it prints nothing.
    _output: UnixListener,
    _directory: TempDir,
}

impl Host {
    /// Listens for a machine with `disks`, below `scratch`.
    pub fn listen(disks: &[Disk], scratch: &Path) -> Result<Self, Failed> {
        let directory = tempfile::tempdir_in(scratch)?;
        let path = directory.path();
        Ok(Self {
            control: AgentListener::bind(path)?,
            api: UnixListener::bind(socket(path, API_PORT.into()))?,
            _output: UnixListener::bind(socket(path, OUTPUT_PORT))?,
            devices: DeviceConfig {
                disks: disks.to_vec(),
                vsock: Some(Vsock {
                    directory: path.to_owned(),
                }),
                ..DeviceConfig::default()
            },
            _directory: directory,
        })
    }

    /// The agent in the guest, when it connects.
    pub fn agent(&self) -> Result<Agent, Failed> {
        Ok(self.control.accept(PATIENCE)?)
    }

    /// The function's runtime, when it connects.
    pub fn api(&self) -> Result<Api, Failed> {
        Ok(Api::new(self.api.accept()?.0)?)
    }
}

type Run = Result<(Machine, Outcome), RunError>;

/// A machine that runs until it ends or is paused. One that nobody waits for any more is paused.
pub struct Guest {
    pauser: Pauser,
    thread: Option<JoinHandle<Run>>,
}

impl Guest {
    /// Runs `machine`.
    pub fn run(mut machine: Machine) -> Self {
        let pauser = Pauser::default();
        let asked = pauser.clone();
        let run = move || {
            let outcome = machine.run_until(&asked)?;
            Ok((machine, outcome))
        };
        Self {
            pauser,
            thread: Some(thread::spawn(run)),
        }
    }

    /// The machine, paused.
    pub fn pause(mut self) -> Result<Machine, Failed> {
        self.pauser.pause();
        match self.join()? {
            (machine, Outcome::Paused) => Ok(machine),
            (_, Outcome::Ended(how)) => Err(format!("the machine has ended: {how:?}").into()),
        }
    }

    fn join(&mut self) -> Result<(Machine, Outcome), Failed> {
        let thread = self.thread.take().ok_or("the machine does not run")?;
        Ok(thread.join().map_err(|_| RunError::Panicked)??)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.pauser.pause();
        // It is over, however it ended.
        drop(self.join());
    }
}
