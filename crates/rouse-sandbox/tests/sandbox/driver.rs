//! A node for tests: a spawner whose blank processes run what they are told.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rouse_sandbox::exec::{ExecRequest, exec};
use rouse_sandbox::{
    BlankContext, Limits, Network, Sandbox, SandboxConfig, SandboxKind, Spawner, SpawnerError,
    TaskLayers, open_task_mount,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// A spawner and the directories it lends.
pub struct Node {
    pub spawner: Spawner,
    pub config: SandboxConfig,
    pub task: PathBuf,
    layers: TaskLayers,
    _directory: tempfile::TempDir,
}

/// How far the sandboxes' clocks are ahead of the host's, seconds.
pub const CLOCKS_AHEAD_S: i64 = 100_000;

pub const LIMITS: Limits = Limits {
    memory: 256 << 20,
    pids: 64,
    cpu_millis: 2000,
    tmp: 8 << 20,
    network: Network::None,
};

impl Node {
    /// Starts a node with control groups of its own.
    pub fn start(name: &str) -> Node {
        Node::start_in(format!("rouse-test-{name}-{}", std::process::id()))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a node with the control groups `cgroup`.
    pub fn start_in(cgroup: String) -> Result<Node, SpawnerError> {
        Node::start_on("/".into(), cgroup)
    }

    /// Starts a node whose sandboxes see `root`.
    pub fn start_on(root: PathBuf, cgroup: String) -> Result<Node, SpawnerError> {
        let directory = tempfile::tempdir().unwrap();
        let (runtime, task, empty) = (
            directory.path().join("runtime"),
            directory.path().join("task"),
            directory.path().join("empty"),
        );
        for path in [&runtime, &task, &empty] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(runtime.join("client"), "runtime client").unwrap();
        std::fs::write(task.join("handler"), "code").unwrap();
        let config = SandboxConfig {
            root,
            runtime_dir: runtime,
            hidden: vec!["/usr/share/doc".into()],
            cgroup,
            uid_base: 1 << 20,
            hand_over_memory_calls: false,
            clock_offset: Some((
                CLOCKS_AHEAD_S * 1_000_000_000,
                CLOCKS_AHEAD_S * 1_000_000_000,
            )),
        };
        let spawner = Spawner::start(config.clone(), blank_main, template_main)?;
        Ok(Node {
            spawner,
            config,
            layers: TaskLayers {
                code: task.clone(),
                empty,
            },
            task,
            _directory: directory,
        })
    }

    pub fn sandbox(&self) -> Sandbox {
        self.spawner.create(LIMITS, SandboxKind::Blank).unwrap()
    }

    /// Starts a program in the sandbox's blank process; returns the pipe with what it prints.
    pub fn start_program(&self, sandbox: &Sandbox, argv: &[&str]) -> File {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mount = open_task_mount(&self.layers).unwrap();
        let request = ExecRequest {
            argv: argv.iter().map(|text| (*text).to_owned()).collect(),
            env: vec![
                ("PATH".into(), "/usr/bin:/bin".into()),
                ("LANG".into(), "C.UTF-8".into()),
            ],
            cwd: "/var/task".into(),
        };
        let control = &sandbox.blank.as_ref().unwrap().1;
        send(
            control,
            &serde_json::to_vec(&request).unwrap(),
            &[mount.as_fd(), writer.as_fd()],
        );
        File::from(reader)
    }

    /// Runs a program to its end; returns what it printed.
    pub fn run(&self, sandbox: &Sandbox, argv: &[&str]) -> String {
        let mut output = String::new();
        self.start_program(sandbox, argv)
            .read_to_string(&mut output)
            .unwrap();
        output
    }

    /// Runs a shell script in a sandbox of its own; returns what it printed.
    pub fn shell(&self, script: &str) -> String {
        let sandbox = self.sandbox();
        let output = self.run(&sandbox, &["/bin/sh", "-c", script]);
        sandbox.destroy();
        output
    }

    /// The same with a Python script.
    pub fn python(&self, script: &str) -> String {
        let sandbox = self.sandbox();
        let output = self.run(&sandbox, &["/usr/bin/python3", "-c", script]);
        sandbox.destroy();
        output
    }
}

/// Runs in a blank process: becomes the program that the test asks for.
pub fn blank_main(context: BlankContext) -> ! {
    let (bytes, descriptors) = receive(&context.control);
    let Ok(request) = serde_json::from_slice::<ExecRequest>(&bytes) else {
        std::process::exit(0);
    };
    let mut descriptors = descriptors.into_iter();
    match (descriptors.next(), descriptors.next()) {
        (Some(mount), Some(log)) => exec(request, mount, log, context.control),
        _ => std::process::exit(0),
    }
}

/// Runs in a template host: tells what it sees, and stays.
pub fn template_main(context: BlankContext) -> ! {
    let sees = format!(
        "{} {}",
        std::path::Path::new("/root").is_dir(),
        std::path::Path::new("/sys/kernel").is_dir()
    );
    send(&context.control, sees.as_bytes(), &[]);
    let _ = receive(&context.control);
    std::process::exit(7);
}

pub fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

pub fn receive(socket: &OwnedFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    bytes.truncate(received.bytes);
    let messages = ancillary.drain();
    let descriptors = messages.filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    (bytes, descriptors.flatten().collect())
}
