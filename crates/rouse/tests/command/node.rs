//! A node that a test starts with `rouse serve`, and commands against it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// A running `rouse serve`. Killed when dropped; its directory goes with it.
pub struct Node {
    child: Child,
    endpoint: String,
    directory: PathBuf,
}

/// The command under test.
pub fn rouse() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rouse"));
    command
        .stdin(Stdio::null())
        .env_remove("ROUSE_ENDPOINT")
        .env("NO_COLOR", "1");
    command
}

/// A `rouse serve` on `directory`, not started yet. Its log goes to `directory.log`.
pub fn serve(directory: &Path) -> Command {
    let log = fs::File::create(directory.with_extension("log")).expect("log");
    let mut command = rouse();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(directory)
        .stdout(Stdio::null())
        .stderr(log);
    command
}

impl Node {
    /// Starts a node on `directory` and waits until it accepts requests.
    pub fn start(directory: &Path) -> Self {
        let mut child = serve(directory).spawn().expect("rouse serve");
        let file = directory.join("endpoint");
        let endpoint = loop {
            if let Ok(endpoint) = fs::read_to_string(&file) {
                break endpoint.trim().to_owned();
            }
            if let Some(status) = child.try_wait().expect("wait") {
                panic!("rouse serve ended with {status}: {}", log(directory));
            }
            thread::sleep(Duration::from_millis(5));
        };
        Self {
            child,
            endpoint,
            directory: directory.to_owned(),
        }
    }

    /// Where it answers.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Runs a command against the node.
    pub fn run(&self, arguments: &[&str]) -> Output {
        rouse()
            .args(arguments)
            .args(["--endpoint", &self.endpoint])
            .output()
            .expect("rouse")
    }

    /// Runs a command with `--json` that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("json")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal");
    }

    /// Waits until it has ended, and returns its exit code (`None` after a signal).
    pub fn wait(mut self) -> Option<i32> {
        self.child.wait().expect("wait").code()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        log(&self.directory)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Has ended already where the test waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(directory: &Path) -> String {
    fs::read_to_string(directory.with_extension("log")).unwrap_or_default()
}

/// The files of a bundled example.
pub fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Names of control groups below any hierarchy's root that belong to the node on `directory`.
pub fn control_groups(directory: &Path) -> Vec<PathBuf> {
    let hash = blake3::hash(directory.as_os_str().as_encoded_bytes()).to_hex();
    let name = format!("rouse-{}", &hash[..12]);
    let roots = fs::read_dir("/sys/fs/cgroup")
        .expect("cgroups")
        .map(|entry| entry.expect("entry").path());
    let groups = roots
        .map(|root| root.join(&name))
        .chain([Path::new("/sys/fs/cgroup").join(&name)]);
    groups.filter(|group| group.exists()).collect()
}
