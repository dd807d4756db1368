//! A machine that runs in a thread, and the node's end of its connections.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use rouse_vmm::agent::{API_PORT, Agent, AgentListener, OUTPUT_PORT, socket};
use rouse_vmm::devices::Output;
use rouse_vmm::devices::virtio::{DeviceConfig, Disk, Vsock};
use rouse_vmm::kernel::Kernel;
use rouse_vmm::{Config, Machine, MemorySize, Outcome, Pauser, VcpuCount};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::api::Api;

/// What a node listens on for one machine.
pub struct Host {
    pub devices: DeviceConfig,
    control: AgentListener,
    api: UnixListener,
    printed: JoinHandle<String>,
    _directory: TempDir,
}

impl Host {
    pub fn listen(disks: Vec<Disk>) -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path();
        let listen =
            |port: u32| UnixListener::bind(socket(path, port)).expect("a socket can be made");
        let output = listen(OUTPUT_PORT);
        let printed = thread::spawn(move || {
            let (mut stream, _) = output.accept().expect("the guest connects");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("it is text");
            text
        });
        Self {
            control: AgentListener::bind(path).expect("a socket can be made"),
            api: listen(API_PORT.into()),
            printed,
            devices: DeviceConfig {
                disks,
                vsock: Some(Vsock {
                    directory: path.to_owned(),
                }),
                ..DeviceConfig::default()
            },
            _directory: directory,
        }
    }

    pub fn agent(&self) -> Agent {
        self.control.accept(PATIENCE).expect("the agent connects")
    }

    pub fn api(&self) -> Api {
        let (stream, _) = self.api.accept().expect("the runtime connects");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("it can be set");
        Api(BufReader::new(stream))
    }

    /// Whether the runtime has asked for events on another connection than the first; its machine must be gone.
    pub fn was_asked_elsewhere(&self) -> bool {
        self.api.set_nonblocking(true).expect("it need not wait");
        std::iter::from_fn(|| self.api.accept().ok()).any(|(stream, _)| asks(stream))
    }

    /// All that the function has printed; its machine must be gone.
    pub fn printed(self) -> String {
        self.printed.join().expect("it does not panic")
    }
}

/// Whether somebody asks for something there. A function that has flooded the host leaves connections with other bytes.
pub fn asks(mut stream: UnixStream) -> bool {
    stream.set_nonblocking(true).expect("it need not wait");
    let mut begin = [0; 3];
    stream
        .read(&mut begin)
        .is_ok_and(|count| &begin[..count] == b"GET")
}

/// Shows what a machine says, as tests do: when they fail.
pub fn console() -> Output {
    struct Console;
    impl Write for Console {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            print!("{}", String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    Box::new(Console)
}

/// A machine with the prepared kernel.
pub fn boot(host: &Host, prepared: &Path) -> Machine {
    let config = Config {
        memory: MemorySize::mib(256).expect("a possible size"),
        vcpus: VcpuCount::new(1).expect("a possible number"),
        command_line: "quiet".to_owned(),
        devices: host.devices.clone(),
    };
    let kernel = Kernel::open(&prepared.join("kernel")).expect("it was prepared");
    Machine::boot(&config, &kernel, console()).expect("it can be made")
}

/// The machine runs until it ends or is paused. A test that fails does not leave it running.
pub struct Guest {
    pauser: Pauser,
    thread: Option<JoinHandle<(Machine, Outcome)>>,
}

impl Guest {
    pub fn run(mut machine: Machine) -> Self {
        let pauser = Pauser::default();
        let asked = pauser.clone();
        let thread = thread::spawn(move || {
            let outcome = machine.run_until(&asked).expect("it runs");
            (machine, outcome)
        });
        Self {
            pauser,
            thread: Some(thread),
        }
    }

    pub fn pause(&mut self) -> (Machine, Outcome) {
        self.pauser.pause();
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("it does not panic")
    }

    pub fn wait(mut self) -> (Machine, Outcome) {
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("it does not panic")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.pauser.pause();
    }
}
