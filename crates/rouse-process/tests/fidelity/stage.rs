//! A launcher, and the life of one program on it: cold start, snapshot, several instances at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::equality;
use rouse_pool::SnapshotStore;
use rouse_pool::codec::DefaultChoice;
use rouse_pool::key::NodeKey;
use rouse_process::instance::{ExitReason, Instance, LaunchSpec};
use rouse_process::launcher::{
    Image, ImageError, Launcher, LauncherConfig, Residency, SnapshotError,
};
use rouse_sandbox::{Limits, SandboxConfig};
use tempfile::TempDir;

const PRELUDE: &str = include_str!("programs/prelude.py");
/// Seconds that a program waits for what happens soon; `ROUSE_TEST_PATIENCE` says how many on a slow machine.
static PATIENCE: LazyLock<u64> = LazyLock::new(|| {
    let said = std::env::var("ROUSE_TEST_PATIENCE");
    said.map_or(60, |seconds| seconds.parse().unwrap())
});

/// A program that says nothing for so long is taken for dead: longer than it waits itself, so that it can say why.
fn silence() -> Duration {
    Duration::from_secs(2 * *PATIENCE)
}

/// Instances of each kind, all alive at the same time.
const INSTANCES: usize = 2;

/// Programs whose checks do what cannot be undone, and how that is named.
const IRREVERSIBLE: &[(&str, &str)] = &[
    ("threads", "of its snapshot has ended"),
    ("signals", "of its snapshot has ended"),
    ("memory", "of its snapshot has ended"),
    ("process", "of its snapshot has ended"),
    ("registers", "of its snapshot has ended"),
    ("sockets", "remembers connections that it has closed"),
];

/// The same where processors have protection keys: a thread ends in the checks, and before them keys are the reason.
const IRREVERSIBLE_WITH_KEYS: &[(&str, &str)] = &[
    ("protection", "of its snapshot has ended"),
    (
        "protection",
        "its snapshot has memory under protection keys",
    ),
];

/// Why some of a program's instances cannot be rewound: a thread that lives for a moment may be in the snapshot.
const IRREVERSIBLE_AT_TIMES: &[(&str, &str)] = &[("timers", "of its snapshot has ended")];

/// What one check said.
pub struct Outcome {
    pub name: String,
    /// `None` when it has passed.
    pub failure: Option<String>,
}

impl Outcome {
    pub fn new(name: impl Into<String>, failure: Option<String>) -> Self {
        Self {
            name: name.into(),
            failure,
        }
    }
}

/// Why instances of a program cannot be rewound once it has done its checks: one of these.
fn reasons_of(name: &str) -> impl Iterator<Item = &'static str> {
    let with_keys = match has_protection_keys() {
        true => IRREVERSIBLE_WITH_KEYS,
        false => &[],
    };
    let program = name.split(',').next().unwrap_or_default().to_owned();
    let all = IRREVERSIBLE.iter().chain(with_keys);
    all.filter(move |(one, _)| *one == program)
        .map(|(_, reason)| *reason)
}

fn has_protection_keys() -> bool {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    cpus.split_whitespace().any(|flag| flag == "ospke")
}

fn is_expected(name: &str, outcome: &Outcome) -> bool {
    let why = outcome.failure.as_deref().unwrap_or_default();
    let program = name.split(',').next().unwrap_or_default();
    let at_times = IRREVERSIBLE_AT_TIMES.iter();
    let at_times = at_times.filter(|(one, _)| *one == program);
    reasons_of(name)
        .chain(at_times.map(|(_, reason)| *reason))
        .any(|reason| why.contains(reason))
}

/// A running launcher and its directory.
pub struct Stage {
    pub launcher: Launcher,
    scratch: TempDir,
}

impl Stage {
    /// Starts a launcher. Call it while the process has one thread.
    pub fn set_up() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(scratch.path(), readable).unwrap();
        let runtime_dir = scratch.path().join("runtime");
        std::fs::create_dir(&runtime_dir).unwrap();
        let launcher = Launcher::start(LauncherConfig {
            sandbox: SandboxConfig {
                root: "/".into(),
                runtime_dir,
                hidden: Vec::new(),
                cgroup: format!("rouse-fidelity-{}", std::process::id()),
                uid_base: 0x7000_0000,
                clock_offset: None,
                hand_over_memory_calls: false,
            },
            clock_file: scratch.path().join("clock"),
            store: scratch.path().into(),
            ready_sandboxes: 1,
            most_ready_sandboxes: 1,
            ready_clones: 1,
            record_order: false,
            huge_pages: false,
        })
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
        Self { launcher, scratch }
    }

    /// Where the launcher keeps snapshots.
    pub fn store(&self) -> SnapshotStore {
        let root = self.scratch.path();
        let key = NodeKey::load(&root.join("node.key")).unwrap();
        SnapshotStore::open(root, key).unwrap()
    }

    /// A directory of its own for one program, with the program in it.
    pub fn spec(&self, name: &str, source: &str) -> LaunchSpec {
        let task_dir = self.scratch.path().join(name);
        std::fs::create_dir(&task_dir).unwrap();
        std::fs::write(task_dir.join("prelude.py"), PRELUDE).unwrap();
        std::fs::write(task_dir.join("main.py"), source).unwrap();
        LaunchSpec {
            argv: ["/usr/bin/python3", "-u", "-B", "/var/task/main.py"]
                .map(String::from)
                .to_vec(),
            env: vec![
                ("PATH".into(), "/usr/bin:/bin".into()),
                ("PATIENCE".into(), PATIENCE.to_string()),
            ],
            task_dir,
            cwd: "/var/task".into(),
            limits: Limits {
                memory: 512 << 20,
                pids: 200,
                cpu_millis: 2000,
                tmp: 64 << 20,
                network: rouse_sandbox::Network::None,
            },
        }
    }

    /// Runs a program until it waits for work, and takes its snapshot.
    pub async fn snapshot(&self, name: &str, spec: &LaunchSpec) -> Result<PathBuf, String> {
        let mut cold = self.launcher.cold(spec).await.map_err(|e| chain(&e))?;
        let listener = cold.listener.take().unwrap();
        let log = cold.log.take().unwrap();
        let accepted = tokio::task::spawn_blocking(move || {
            listener.set_nonblocking(false).unwrap();
            let (mut connection, peer) = listener.accept().unwrap();
            connection.set_read_timeout(Some(silence())).unwrap();
            let head = read(&mut connection);
            (connection, peer.port(), head)
        });
        let (_connection, port, head) = accepted.await.unwrap();
        if !head
            .as_ref()
            .is_ok_and(|head| head.starts_with("GET /2018-06-01/runtime/invocation/next"))
        {
            cold.kill();
            return Err(format!("no request ({head:?}): {}", drain(log)));
        }
        let dir = self.scratch.path().join("snapshots").join(name);
        let taken = self.launcher.checkpoint(cold, port, spec, &dir).await;
        taken.map(|_| dir).map_err(|e| chain(&e))
    }

    /// The whole life of a program: all its checks, in restored and in forked instances.
    pub async fn play(&self, name: &str, source: &str) -> Vec<Outcome> {
        println!("{name}");
        let spec = self.spec(name, source);
        let failed = |why: String| vec![Outcome::new(format!("{name}: snapshot"), Some(why))];
        let dir = match self.snapshot(name, &spec).await {
            Ok(dir) => dir,
            Err(why) => return failed(why),
        };
        let image = match self.load(&dir, &[]).await {
            Ok(image) => image,
            Err(error) => return failed(chain(&error)),
        };
        let mut outcomes = self.play_image(name, &image, &spec).await;
        outcomes.extend(self.play_branches(name, &image, &spec).await);
        let name = format!("{name}, second generation");
        match self.descend(&name, &image, &spec).await {
            Ok(child) => {
                // First with its own pages absent and its parent's not, then with both absent, then with all there.
                let absent = format!("{name}, absent");
                outcomes.extend(self.play_image(&absent, &child, &spec).await);
                self.launcher.release(&image).await.unwrap();
                // Where its pages come from is exchanged.
                let choice = Arc::new(DefaultChoice);
                let stored = self.launcher.restow(&child, choice).await;
                assert!(stored.unwrap().is_some());
                self.launcher.release(&child).await.unwrap();
                let absent = format!("{name}, all absent");
                outcomes.extend(self.play_image(&absent, &child, &spec).await);
                self.launcher.make_resident(&child).await.unwrap();
                outcomes.extend(self.play_image(&name, &child, &spec).await);
            }
            Err(why) => outcomes.push(Outcome::new(format!("{name}: snapshot"), Some(why))),
        }
        outcomes
    }

    /// All checks in copies of an instance that goes on, in copies of a copy, and at last in the instance itself: it must
    /// not have noticed that it was looked at.
    async fn play_branches(
        &self,
        name: &str,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Vec<Outcome> {
        let title = format!("{name}: branch");
        let failed = |why: String| vec![Outcome::new(title.clone(), Some(why))];
        let original = match self.launcher.restore(image, spec).await {
            Ok(instance) => Actor::new(format!("{name}: branched from"), instance),
            Err(error) => return failed(chain(&error)),
        };
        let mut outcomes = Vec::new();
        let mut copies = Vec::new();
        for generation in 0..2 {
            let subject = copies.last().unwrap_or(&original);
            // It may not have come so far as to ask.
            let port = subject.parked.peer_addr().unwrap().port();
            subject.instance.told().await;
            let branched = self.launcher.branch(&subject.instance, port, spec).await;
            let (branch, report) = match branched {
                Ok(branched) => branched,
                Err(error) => return failed(chain(&error)),
            };
            let pages = image.snapshot().pool_pages;
            if report.saved_pages * 4 > pages * 3 {
                return failed(format!(
                    "{} pages were saved again, of {pages}",
                    report.saved_pages
                ));
            }
            for number in 0..INSTANCES {
                let title = format!("{name}: branch {generation}.{number}");
                match self.launcher.restore(&branch, spec).await {
                    Ok(instance) => copies.push(Actor::new(title, instance)),
                    Err(error) => outcomes.push(Outcome::new(title, Some(chain(&error)))),
                }
            }
        }
        copies.push(original);
        for actor in copies {
            outcomes.extend(actor.play().await);
        }
        outcomes
    }

    /// A snapshot of an instance of a snapshot, which has answered once.
    async fn descend(
        &self,
        name: &str,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Arc<Image>, String> {
        let instance = self.launcher.restore(image, spec).await;
        let actor = Actor::new("PASS".into(), instance.map_err(|e| chain(&e))?);
        let asked = tokio::task::spawn_blocking(|| actor.ask()).await.unwrap();
        let (Some(actor), _) = asked else {
            return Err(asked.1.into_iter().filter_map(|o| o.failure).collect());
        };
        let port = actor.parked.peer_addr().unwrap().port();
        let dir = self.scratch.path().join("snapshots").join(name);
        let taken = self
            .launcher
            .checkpoint(actor.instance, port, spec, &dir)
            .await
            .map_err(|e| chain(&e))?;
        let pages = image.snapshot().pool_pages;
        println!("{name}: {} pages of {pages}", taken.saved_pages);
        if taken.saved_pages * 4 > pages * 3 {
            return Err(format!(
                "{} pages were saved again, of {pages}",
                taken.saved_pages
            ));
        }
        let ancestors = [image.clone()];
        let child = self
            .launcher
            .load(&dir, &ancestors, Residency::OnDemand)
            .await;
        let child = child.map_err(|e| chain(&e))?;
        match self.load(&dir, &[]).await {
            Err(SnapshotError::Image(ImageError::ParentGone)) => Ok(child),
            other => Err(format!("without its parent it was loaded: {other:?}")),
        }
    }

    /// All checks of a program, in instances of a snapshot.
    async fn play_image(&self, name: &str, image: &Arc<Image>, spec: &LaunchSpec) -> Vec<Outcome> {
        let mut actors = Vec::new();
        let mut outcomes = Vec::new();
        // Templates and parked instances need their pages.
        let kinds = if image.is_resident() { 3 } else { 1 };
        for number in 0..INSTANCES * kinds {
            let (how, started) = match number / INSTANCES {
                0 => ("restore", self.launcher.restore(image, spec).await),
                1 => ("fork", self.launcher.fork(image, spec).await),
                _ => {
                    let made = self.launcher.parked(image, spec, true).await;
                    let made = made.map(|made| made.expect("one is made when none waits"));
                    ("parked", made)
                }
            };
            let title = format!("{name}: {how} {number}");
            match started {
                Ok(instance) => actors.push(Actor::new(title, instance)),
                Err(error) => outcomes.push(Outcome::new(title, Some(chain(&error)))),
            }
        }
        // All of them are asked before the first is asked again.
        for _ in 0..2 {
            let asked = actors
                .drain(..)
                .map(|actor| tokio::task::spawn_blocking(|| actor.ask()));
            for task in asked.collect::<Vec<_>>() {
                let (actor, said) = task.await.unwrap();
                outcomes.extend(said);
                actors.extend(actor);
            }
        }
        for actor in actors {
            if !image.is_resident() {
                outcomes.extend(actor.end().await);
                continue;
            }
            // All again, in what has been through all of it.
            let title = format!("{}, rewound", actor.title);
            match self.rewind(title, image, spec, actor.instance).await {
                Ok(actor) if reasons_of(name).next().is_none() => {
                    outcomes.extend(actor.play().await)
                }
                Ok(actor) => {
                    let why = "it was rewound in spite of what it has done".to_owned();
                    outcomes.push(Outcome::new(actor.title, Some(why)));
                }
                Err(outcome) if is_expected(name, &outcome) => {}
                Err(outcome) => outcomes.push(outcome),
            }
        }
        if image.is_resident() {
            outcomes.extend(self.play_rewound(name, image, spec).await);
        }
        outcomes
    }

    /// All checks in an instance that was rewound twice after requests in which it did little.
    async fn play_rewound(
        &self,
        name: &str,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Vec<Outcome> {
        let title = format!("{name}: rewound twice");
        let mut instance = match self.launcher.restore(image, spec).await {
            Ok(instance) => instance,
            Err(error) => return vec![Outcome::new(title, Some(chain(&error)))],
        };
        for _ in 0..2 {
            let actor = Actor::new("PASS".into(), instance);
            let asked = tokio::task::spawn_blocking(|| actor.ask()).await.unwrap();
            let (Some(actor), _) = asked else {
                return asked.1;
            };
            instance = match self
                .rewind(title.clone(), image, spec, actor.instance)
                .await
            {
                Ok(actor) => actor.into_instance(),
                // Its threads may end by themselves.
                Err(outcome) if is_expected(name, &outcome) => return Vec::new(),
                Err(outcome) => return vec![outcome],
            };
        }
        Actor::new(title, instance).play().await
    }

    /// Puts an instance back to its snapshot, and compares it with a fresh one.
    async fn rewind(
        &self,
        title: String,
        image: &Arc<Image>,
        spec: &LaunchSpec,
        instance: Instance,
    ) -> Result<Actor, Outcome> {
        let failed = |why: String| Outcome::new(title.clone(), Some(why));
        let rewound = self.launcher.rewind(instance).await;
        let rewound = rewound.map_err(|e| failed(chain(&e)))?;
        let fresh = self.launcher.parked(image, spec, true).await;
        let fresh = fresh.map_err(|e| failed(chain(&e)))?;
        let fresh = fresh.expect("one is made when none waits");
        let pids = (fresh.pid().unwrap(), rewound.pid().unwrap());
        match equality::difference(image.snapshot(), pids.0, pids.1) {
            None => Ok(Actor::new(title, rewound)),
            Some(why) => Err(failed(why)),
        }
    }

    pub async fn load(
        &self,
        dir: &Path,
        ancestors: &[Arc<Image>],
    ) -> Result<Arc<Image>, SnapshotError> {
        self.launcher.load(dir, ancestors, Residency::Now).await
    }
}

/// One instance, whose request is parked.
struct Actor {
    title: String,
    instance: Instance,
    parked: TcpStream,
    log: OwnedFd,
    is_new: bool,
}

impl Actor {
    fn new(title: String, mut instance: Instance) -> Self {
        let parked = instance.parked.take().unwrap();
        parked.set_nonblocking(false).unwrap();
        parked.set_read_timeout(Some(silence())).unwrap();
        let log = instance.log.take().unwrap();
        Self {
            title,
            instance,
            parked,
            log,
            is_new: true,
        }
    }

    /// Lets it run if it was made ahead, and answers its request; returns what its checks said, and itself if it waits for work again.
    fn ask(mut self) -> (Option<Self>, Vec<Outcome>) {
        match self.exchange() {
            Ok(body) => {
                let lines = body.lines().filter(|line| !line.is_empty());
                let outcome = |line: &str| match line.strip_prefix("ok ") {
                    Some(check) => Outcome::new(format!("{}: {check}", self.title), None),
                    None => Outcome::new(self.title.clone(), Some(line.to_owned())),
                };
                let said = lines.map(outcome).collect();
                (Some(self), said)
            }
            Err(error) => {
                // What has ended says why in its log; what is silent has to be ended first.
                if error.kind() == std::io::ErrorKind::WouldBlock {
                    self.instance.kill();
                }
                let log = drain(self.log);
                let (failure, exit) =
                    (self.instance.failure(), self.instance.exit.borrow().clone());
                let why = format!("{error}; failure {failure:?}, exit {exit:?}, log {log}");
                (None, vec![Outcome::new(self.title, Some(why))])
            }
        }
    }

    fn exchange(&mut self) -> std::io::Result<String> {
        let event = &self.title;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{event}",
            event.len()
        );
        self.parked.write_all(answer.as_bytes())?;
        if std::mem::take(&mut self.is_new) {
            self.instance.resume()?;
        }
        let mut request = read(&mut self.parked)?;
        loop {
            let (head, body) = request.split_once("\r\n\r\n").unwrap_or((&request, ""));
            let length = head
                .split_once("content-length: ")
                .map_or("0", |(_, rest)| rest.trim());
            if body.len() >= length.parse().unwrap() {
                break;
            }
            request += &read(&mut self.parked)?;
        }
        self.parked
            .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")?;
        let next = read(&mut self.parked)?;
        assert!(
            next.starts_with("GET /2018-06-01/runtime/invocation/next"),
            "{next}"
        );
        Ok(request
            .split_once("\r\n\r\n")
            .map_or_else(String::new, |(_, body)| body.to_owned()))
    }

    fn into_instance(self) -> Instance {
        let mut instance = self.instance;
        (instance.parked, instance.log) = (Some(self.parked), Some(self.log));
        instance
    }

    /// All checks, and its end.
    async fn play(self) -> Vec<Outcome> {
        let (mut actor, mut outcomes) = (Some(self), Vec::new());
        for _ in 0..2 {
            if let Some(one) = actor.take() {
                let (left, said) = tokio::task::spawn_blocking(|| one.ask()).await.unwrap();
                outcomes.extend(said);
                actor = left;
            }
        }
        if let Some(actor) = actor {
            outcomes.extend(actor.end().await);
        }
        outcomes
    }

    /// An instance whose request is answered with nonsense ends by itself, with a code that the node must see.
    async fn end(mut self) -> Vec<Outcome> {
        drop(self.parked);
        let exit = self
            .instance
            .exit
            .wait_for(Option::is_some)
            .await
            .unwrap()
            .clone();
        let expected = Some(ExitReason::Code(98));
        let failure = (exit != expected).then(|| format!("ended by {exit:?}: {}", drain(self.log)));
        vec![Outcome::new(format!("{}: end", self.title), failure)]
    }
}

fn drain(log: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(log).read_to_string(&mut text).unwrap();
    text
}

fn read(connection: &mut TcpStream) -> std::io::Result<String> {
    let mut buffer = vec![0; 65536];
    match connection.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        len => Ok(String::from_utf8_lossy(&buffer[..len]).into_owned()),
    }
}

/// An error and what caused it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
