//! What ends when something ends, and what is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use rouse_sandbox::{Limits, Sandbox, SandboxKind};
use rustix::event::{PollFd, PollFlags, poll};

use crate::driver::{LIMITS, Node, receive, send};
use crate::slots::slots;

/// Tests that fork.
pub const FORKING: &[(&str, fn())] = &[
    ("a killed node leaves nothing", a_killed_node_leaves_nothing),
    (
        "a group in use is refused, what is left in one is removed",
        a_group_in_use_is_refused,
    ),
    (
        "a root of its own is shown with what is mounted in it",
        a_root_of_its_own_is_shown,
    ),
];

/// Descendants of a process by the host's `/proc`, zombies included.
fn descendants(root: i32) -> BTreeSet<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parents.push((pid, parent.unwrap_or(0)));
    }
    let mut found = BTreeSet::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for (pid, _) in parents.iter().filter(|(_, other)| *other == parent) {
            if found.insert(*pid) {
                next.push(*pid);
            }
        }
    }
    found
}

/// Directories of control groups with this name, anywhere.
pub fn groups(name: &str) -> Vec<std::path::PathBuf> {
    fn search(directory: &Path, name: &str, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if entry.file_name() == name
                    || directory.file_name().is_some_and(|parent| parent == name)
                {
                    found.push(path.clone());
                }
                search(&path, name, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), name, &mut found);
    found
}

/// Waits until a process has ended.
fn wait_for_end(pidfd: impl AsFd) {
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
}

pub fn killing_init_ends_everything(node: &Node) {
    let sandbox = node.sandbox();
    let mut output = node.start_program(
        &sandbox,
        &[
            "/bin/sh",
            "-c",
            "sleep 1000 & setsid sleep 1000 & echo started; wait",
        ],
    );
    let mut started = [0; 8];
    output.read_exact(&mut started).unwrap();
    sandbox.kill();
    wait_for_end(&sandbox.init.pidfd);
    // Every holder of the pipe is gone.
    assert_eq!(output.read(&mut started).unwrap(), 0);
    sandbox.destroy();
    // The function's own end leaves the sandbox standing.
    let sandbox = node.sandbox();
    node.run(&sandbox, &["/bin/true"]);
    wait_for_end(&sandbox.blank.as_ref().unwrap().0.pidfd);
    assert!(Path::new(&format!("/proc/{}", sandbox.init.pid)).exists());
    drop(sandbox);
}

pub fn exits_are_reported(node: &Node) {
    let exits = node.spawner.exits().unwrap();
    assert!(node.spawner.exits().is_none());
    while exits.try_recv().is_ok() {}
    let sandbox = node.sandbox();
    let (pid, init) = (sandbox.blank.as_ref().unwrap().0.pid, sandbox.init.pid);
    node.run(&sandbox, &["/bin/sh", "-c", "exit 3"]);
    // Exits of earlier sandboxes may still arrive.
    let status = |wanted| exits.iter().find(|exit| exit.pid == wanted).unwrap().status;
    assert_eq!(status(pid), 3 << 8);
    sandbox.destroy();
    assert_eq!(status(init), libc::SIGKILL);
}

pub fn a_template_host_has_the_hosts_view(node: &Node) {
    let (process, control) = node.spawner.create_template_host().unwrap();
    assert_eq!(receive(&control).0, b"true true");
    assert!(descendants(node.spawner.pid()).contains(&process.pid));
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.pid))
        .unwrap()
        .count();
    assert_eq!(descriptors, 4);
    send(&control, b"end", &[]);
    wait_for_end(&process.pidfd);
}

pub fn a_hundred_sandboxes_leave_nothing(node: &Node) {
    let descriptors = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mounts = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/mountinfo"))
            .unwrap()
            .lines()
            .count()
    };
    let count = || {
        let (me, spawner) = (std::process::id() as i32, node.spawner.pid());
        (
            descendants(spawner).len(),
            descriptors(me),
            descriptors(spawner),
            mounts(me),
            mounts(spawner),
        )
    };
    // The spawner keeps what a slot has open.
    let warm: Vec<_> = (0..6).map(|_| node.sandbox()).collect();
    warm.into_iter().for_each(Sandbox::destroy);
    let before = count();
    let slots_before = slots(node);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..25 {
                    let kind = if (thread + round) % 3 == 0 {
                        SandboxKind::ForkTarget
                    } else {
                        SandboxKind::Blank
                    };
                    let sandbox: Sandbox = node.spawner.create(LIMITS, kind).unwrap();
                    assert_eq!(sandbox.blank.is_some(), kind == SandboxKind::Blank);
                    assert!(!sandbox.cgroup_entrances.is_empty());
                    sandbox.destroy();
                }
            });
        }
    });
    assert_eq!(count(), before);
    // One slot for each sandbox that lived at a time, and a few that still remember connections.
    let added: Vec<_> = slots(node).difference(&slots_before).copied().collect();
    assert!(added.len() <= 16, "{added:?}");
    // A request that cannot be fulfilled leaves nothing either.
    let impossible = Limits {
        memory: 0,
        pids: 0,
        ..LIMITS
    };
    assert!(node.spawner.create(impossible, SandboxKind::Blank).is_err());
    node.sandbox().destroy();
    assert_eq!(count(), before);
}

/// What a sandbox's processes rely on lives until the last of them is gone, and no longer.
pub fn what_is_kept_outlives_the_processes(node: &Node) {
    struct Witness {
        init: String,
        gone: std::sync::mpsc::Sender<bool>,
    }
    impl Drop for Witness {
        fn drop(&mut self) {
            let _ = self.gone.send(!Path::new(&self.init).exists());
        }
    }
    let (sender, gone) = std::sync::mpsc::channel();
    for wait in [true, false] {
        let sandbox = node.sandbox();
        sandbox.handle.keep_until_gone(Witness {
            init: format!("/proc/{}", sandbox.init.pid),
            gone: sender.clone(),
        });
        assert!(gone.try_recv().is_err());
        match wait {
            true => sandbox.destroy(),
            false => drop(sandbox),
        }
        assert!(gone.recv().unwrap(), "its init still lived");
    }
}

pub fn shutdown_leaves_nothing(node: Node) {
    let (spawner, cgroup) = (node.spawner.pid(), node.config.cgroup.clone());
    let sandbox = node.sandbox();
    let mut output = node.start_program(
        &sandbox,
        &["/bin/sh", "-c", "sleep 1000 & echo started; wait"],
    );
    let mut started = [0; 8];
    output.read_exact(&mut started).unwrap();
    let (_host, _control) = node.spawner.create_template_host().unwrap();
    node.spawner.shutdown();
    assert_eq!(output.read(&mut started).unwrap(), 0);
    assert!(!Path::new(&format!("/proc/{spawner}")).exists());
    assert!(descendants(std::process::id() as i32).is_empty());
    assert_eq!(groups(&cgroup), Vec::<std::path::PathBuf>::new());
    // Giving back a sandbox whose spawner has ended does nothing, and does not wait.
    sandbox.destroy();
}

fn wait_forever() {
    loop {
        std::thread::park();
    }
}

/// Forks a process that runs `body`, and dies with this one.
fn fork(body: impl FnOnce()) -> i32 {
    // SAFETY: called while this process has one thread.
    match unsafe { libc::fork() } {
        0 => {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .unwrap();
            // A failure must not unwind into the copy of the test that called this.
            let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
            std::process::exit(i32::from(!good))
        }
        pid => pid,
    }
}

fn reap(pid: i32) {
    // SAFETY: waits for a child.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}

/// A node in a process of its own, with two sandboxes, one of them running a program.
struct Separate {
    pid: i32,
    spawner: i32,
    cgroup: String,
    directory: std::path::PathBuf,
}

impl Separate {
    fn start(name: &str) -> Separate {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let pid = fork(|| {
            let node = Node::start(name);
            let sandboxes = [node.sandbox(), node.sandbox()];
            let _output =
                node.start_program(&sandboxes[0], &["/bin/sh", "-c", "sleep 1000 & wait"]);
            let directory = node.config.runtime_dir.parent().unwrap();
            let line = format!(
                "{} {} {}",
                node.spawner.pid(),
                node.config.cgroup,
                directory.display()
            );
            rustix::io::write(&writer, line.as_bytes()).unwrap();
            wait_forever();
        });
        // What is read ends when the node could not be started.
        drop(writer);
        let mut line = [0; 4096];
        let length = rustix::io::read(&reader, &mut line).unwrap();
        let line = String::from_utf8_lossy(&line[..length]).into_owned();
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap().to_owned();
        Separate {
            pid,
            spawner: word().parse().unwrap(),
            cgroup: word(),
            directory: word().into(),
        }
    }

    /// Kills the node itself, and waits until all its descendants have ended.
    fn kill(&self) {
        let all = descendants(self.pid);
        // The spawner, two inits, two blank processes or what became of them.
        assert!(all.len() >= 5, "{all:?}");
        let pidfds: Vec<_> = all.iter().filter_map(|pid| pidfd(*pid)).collect();
        kill(self.pid);
        reap(self.pid);
        pidfds.iter().for_each(wait_for_end);
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn pidfd(pid: i32) -> Option<std::os::fd::OwnedFd> {
    rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid)?,
        rustix::process::PidfdFlags::empty(),
    )
    .ok()
}

fn kill(pid: i32) {
    // SAFETY: takes numbers only; the process was started by this test.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

fn a_killed_node_leaves_nothing() {
    let node = Separate::start("killed");
    assert!(!groups(&node.cgroup).is_empty());
    node.kill();
    // The last thing the spawner does is to remove the groups.
    assert_eq!(groups(&node.cgroup), Vec::<std::path::PathBuf>::new());
}

/// Starts a node with these groups in a process of its own; returns what came of it.
fn start_another(cgroup: &str) -> String {
    in_another_process(|| match Node::start_in(cgroup.to_owned()) {
        Ok(node) => {
            node.sandbox().destroy();
            "started".to_owned()
        }
        Err(error) => error.to_string(),
    })
}

fn a_root_of_its_own_is_shown() {
    let root = tempfile::tempdir().unwrap();
    for directory in ["usr", "app", "home/someone", "data"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    for library in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{library}"), root.path().join(library)).unwrap();
    }
    fs::write(root.path().join("app/file"), "application").unwrap();
    let output = in_another_process(|| {
        // The mount that a separate disk for /usr would be, for this process alone.
        let private = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        // SAFETY: unsharing mounts concerns no memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        rustix::mount::mount_change("/", private).unwrap();
        rustix::mount::mount_bind("/usr", root.path().join("usr")).unwrap();
        rustix::mount::mount_bind("/usr", root.path().join("data")).unwrap();
        let cgroup = format!("rouse-test-root-{}", std::process::id());
        let node = Node::start_on(root.path().to_owned(), cgroup)
            .unwrap_or_else(|error| panic!("{error}"));
        node.shell("cat /app/file; ls -A /home /data; ls /; touch /usr/x 2>&1; cat /etc/hostname /var/runtime/client")
    });
    let expected = "application/data:\n\n/home:\nsbx_user\napp\nbin\nboot\ndata\ndev\netc\nhome\nlib\nlib64\nmedia\nmnt\nproc\nroot\nrun\n\
        srv\nsys\ntmp\nusr\nvar\ntouch: cannot touch '/usr/x': Read-only file system\nsandbox\nruntime client";
    assert_eq!(output, expected);
}

/// Runs `body` in a forked process; returns what it returned.
fn in_another_process(body: impl FnOnce() -> String) -> String {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let pid = fork(|| {
        rustix::io::write(&writer, body().as_bytes()).unwrap();
    });
    drop(writer);
    let mut outcome = String::new();
    fs::File::from(reader).read_to_string(&mut outcome).unwrap();
    reap(pid);
    outcome
}

fn a_group_in_use_is_refused() {
    let node = Separate::start("twice");
    let outcome = start_another(&node.cgroup);
    assert!(
        outcome.contains("belongs to another running node"),
        "{outcome}"
    );
    assert!(!groups(&node.cgroup).is_empty());

    // A spawner that is killed cannot clean up; the next node with these groups does.
    let all: Vec<_> = descendants(node.spawner)
        .iter()
        .filter_map(|pid| pidfd(*pid))
        .collect();
    kill(node.spawner);
    all.iter().for_each(wait_for_end);
    let left = groups(&node.cgroup);
    let slot = left.iter().find(|path| path.ends_with("0")).unwrap();
    let straggler = fork(wait_forever);
    fs::write(slot.join("cgroup.procs"), straggler.to_string()).unwrap();
    assert_eq!(start_another(&node.cgroup), "started");
    // It was killed: otherwise this would wait forever.
    reap(straggler);
    assert_eq!(groups(&node.cgroup), Vec::<std::path::PathBuf>::new());
    kill(node.pid);
    reap(node.pid);
    fs::remove_dir_all(&node.directory).unwrap();
}
