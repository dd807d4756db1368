//! A machine as the node knows it: a VMM process, by its pidfd, and what its guest has said.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rouse_pool::memory::ImageMemory;
use rouse_pool::pagemap::Pagemap;
use rouse_process::instance::{Failure, MemoryUse, Stage};
use rouse_process::launcher::Launcher;
use rouse_sandbox::LentGroup;
use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::working_set::WorkingSet;
use rouse_vmm::zygote::Running;

use super::image::MachineImage;
use super::life::Life;
use super::state::State;
use super::supervisor::Exit;
use crate::boot::{BoxFuture, Live};

/// An instance. Its machine ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    state: Arc<State>,
    warden: u32,
    running: SharedVmm,
    group: Arc<LentGroup>,
    /// It runs no function, and has booted: a template can be made of it.
    pub is_template: bool,
    /// Of which snapshot it is a copy. That has it, when it waits.
    image: Weak<MachineImage>,
    /// The same, while it is in use: a snapshot of it refers to that one.
    in_use: Option<Arc<MachineImage>>,
    /// What it maps of that one, if it lies on far memory.
    far: Option<Arc<ImageMemory>>,
    /// Lets it go on, if it waits.
    go: Option<SyncSender<()>>,
    /// Hears its end, once it is supervised.
    exit: Option<Exit>,
    /// Who wants to know what it touches until it answers.
    observer: Option<Observer>,
    has_answered: AtomicBool,
}

/// Sees what a machine touches.
#[derive(Debug)]
pub struct Observer {
    pub image: Arc<MachineImage>,
    pub launcher: Launcher,
    /// Where the guest's memory begins in the VMM.
    pub base: u64,
}

impl Observer {
    /// Pages of the guest that it has touched so far, by their addresses.
    fn touched(&self, vmm: i32) -> io::Result<WorkingSet> {
        let memory = self.base..self.base + self.image.snapshot.hardware.memory_pages * PAGE_SIZE;
        let pages = Pagemap::open(vmm)?;
        let to_guest = |ranges: Vec<Range<u64>>| {
            let range = |range: Range<u64>| range.start - self.base..range.end - self.base;
            ranges.into_iter().map(range).collect()
        };
        Ok(WorkingSet {
            written: to_guest(pages.private_pages(&memory)?),
            read: to_guest(pages.file_pages(&memory)?),
        })
    }
}

/// The VMM: of its machine's supervisor, which waits for its end, and of whoever writes the machine down.
pub type SharedVmm = Arc<Mutex<Option<Running>>>;

impl Machine {
    /// A machine that runs in `group`, and is being started since `begin`.
    pub fn new(
        running: Running,
        group: Arc<LentGroup>,
        life: Life,
        begin: Instant,
    ) -> io::Result<Self> {
        let warden = running.pid();
        let state = State::new(warden, life, begin)?;
        state.stage("sandbox");
        Ok(Self {
            state: Arc::new(state),
            warden,
            running: Arc::new(Mutex::new(Some(running))),
            group,
            is_template: false,
            image: Weak::new(),
            in_use: None,
            far: None,
            go: None,
            exit: None,
            observer: None,
            has_answered: AtomicBool::new(false),
        })
    }

    /// It is a copy of this snapshot, and goes on when `go` is told so, if that is there.
    pub fn copied(&mut self, image: &Arc<MachineImage>, go: Option<SyncSender<()>>) {
        self.image = Arc::downgrade(image);
        // One that waits for `go` may wait in its snapshot.
        self.in_use = go.is_none().then(|| Arc::clone(image));
        self.go = go;
    }

    /// It maps this memory of the snapshot.
    pub fn maps(&mut self, memory: &Arc<ImageMemory>) {
        self.far = memory.far_file().is_some().then(|| Arc::clone(memory));
    }

    /// It waits no longer.
    pub fn take_into_use(&mut self) {
        self.in_use = self.image.upgrade();
    }

    /// The snapshot of which it is a copy, if that is still loaded, as it is while the copy is in use.
    pub fn image(&self) -> Option<Arc<MachineImage>> {
        self.image.upgrade()
    }

    /// This hears its end.
    pub fn supervised(&mut self, exit: Exit) {
        self.exit = Some(exit);
    }

    /// What hears its end.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.clone()
    }

    /// What it touches until it answers is to be known.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    pub fn running(&self) -> SharedVmm {
        Arc::clone(&self.running)
    }

    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Pid of the VMM.
    fn vmm(&self) -> io::Result<i32> {
        let warden = self.warden;
        let children = fs::read_to_string(format!("/proc/{warden}/task/{warden}/children"))?;
        let vmm = children.split_whitespace().next();
        let vmm = vmm.and_then(|pid| pid.parse().ok());
        vmm.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A file that the kernel has about it.
    fn proc_file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.vmm()?))
    }
}

/// KiB behind `name` in a file of lines `name: 12 kB`.
fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.strip_prefix(':')?.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Live for Machine {
    fn kill(&self) {
        self.state.kill();
    }

    /// Of the VMM, with the guest's memory in it.
    fn memory(&self) -> io::Result<MemoryUse> {
        let rollup = self.proc_file("smaps_rollup")?;
        let uss_kib = kib(&rollup, "Private_Clean") + kib(&rollup, "Private_Dirty");
        Ok(MemoryUse {
            pss_kib: kib(&rollup, "Pss"),
            uss_kib,
            rss_kib: kib(&rollup, "Rss"),
            private_pages: uss_kib / 4,
            peak_bytes: self.memory_peak(),
            ..MemoryUse::default()
        })
    }

    fn stages(&self) -> Vec<Stage> {
        self.state.stages()
    }

    fn failure(&self) -> Option<Failure> {
        self.state.failure()
    }

    fn memory_peak(&self) -> u64 {
        self.group.memory_peak()
    }

    fn resume(&self) -> io::Result<()> {
        match &self.go {
            Some(go) => (go.try_send(())).map_err(|_| io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }

    fn has_run(&self) -> bool {
        self.state.has_run()
    }

    fn verify_far(&self) -> BoxFuture<'_, Option<String>> {
        let verified = self.image().zip(self.far.clone());
        Box::pin(async move {
            let (image, memory) = verified?;
            let verify = move || image.verify_far(&memory);
            // Cancelled only when the node ends.
            tokio::task::spawn_blocking(verify).await.ok()?
        })
    }

    fn is_to_be_observed(&self) -> bool {
        self.observer.is_some() && !self.has_answered.swap(true, Ordering::Relaxed)
    }

    fn learn(&self) {
        let Some(observer) = &self.observer else {
            return;
        };
        let seen = self.vmm().and_then(|vmm| observer.touched(vmm));
        match seen {
            Ok(seen) => observer.image.learn(seen, &observer.launcher),
            // It has ended, for instance.
            Err(error) => tracing::debug!(%error, "what a machine has touched is not known"),
        }
    }

    /// Of all threads of the VMM.
    fn cpu_time(&self) -> io::Result<Duration> {
        // Behind the program's name, which may have anything in it.
        let stat = self.proc_file("stat")?;
        let (_, rest) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_millis(ticks * 1000 / per_second))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.state.kill();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_found_behind_their_names() {
        let text = "Rss:\t  1234 kB\nPss:  7 kB\nPss_Dirty: 8 kB\n";
        let found = ["Rss", "Pss", "Pss_Dirty", "Swap"].map(|name| super::kib(text, name));
        assert_eq!(found, [1234, 7, 8, 0]);
    }
}
