//! Stopping all threads of a process, and making sure that there is no other process.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::Afterwards;
use super::address_space::PROGRAM_PATH;
use super::error::{CheckpointError, Obstacle, Subject};
use super::kcmp;
use super::memory::Memory;
use super::proc_files::{self, Status};
use super::ptrace::{self, Stop};
use super::registers;

/// How long a thread may take to stop. Only a sleep that no signal ends (`vfork`, a stuck disk) takes longer than microseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A stopped thread.
#[derive(Debug)]
pub(crate) struct Task {
    /// Thread id on the host.
    pub(crate) host_tid: i32,
    /// Signals that were about to be delivered when it was stopped: taken from their queue, not yet seen by it.
    pub(crate) taken_signals: Vec<Vec<u8>>,
}

/// All threads of a process, stopped and traced by the calling OS thread. The leader is the first.
///
/// When dropped without [`release`](Self::release) or [`go_on`](Self::go_on), the threads are let go of, but the process stays stopped (`SIGSTOP`): it
/// must not run on, since its sockets were emptied.
#[derive(Debug)]
pub(crate) struct StoppedProcess {
    pid: i32,
    tasks: Vec<Task>,
    afterwards: Afterwards,
    may_go_on: bool,
}

impl StoppedProcess {
    /// Stops every thread of `pid` (an id on the host).
    ///
    /// A thread that runs may start others, so the list is read again until all that it names are stopped. One that is to
    /// go on does so after an error, too.
    pub(crate) fn stop(pid: i32, afterwards: Afterwards) -> Result<Self, CheckpointError> {
        let mut process = Self {
            pid,
            tasks: Vec::new(),
            afterwards,
            may_go_on: false,
        };
        match process.stop_all() {
            Ok(()) => Ok(process),
            Err(error) if afterwards == Afterwards::GoesOn => {
                process.let_go();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn stop_all(&mut self) -> Result<(), CheckpointError> {
        let process = self;
        let pid = process.pid;
        let afterwards = process.afterwards;
        let program = restorer_program(pid)?;
        loop {
            let tids = proc_files::numeric_entries(pid, "task").map_err(|error| match error {
                CheckpointError::Read { .. } => CheckpointError::Gone,
                other => other,
            })?;
            let first_new = process.tasks.len();
            for tid in tids {
                if process.tasks.iter().any(|task| task.host_tid == tid) {
                    continue;
                }
                match ptrace::seize(tid) {
                    // Kept before anything can fail, so that it is let go of in any case.
                    Ok(()) => process.tasks.push(Task {
                        host_tid: tid,
                        taken_signals: Vec::new(),
                    }),
                    Err(error) if tid == pid => return Err(leader_error(pid, error)),
                    // It ended since the list was read; if not, the next round meets it again.
                    Err(CheckpointError::Ptrace { source, .. })
                        if source.raw_os_error() == Some(libc::ESRCH) =>
                    {
                        continue;
                    }
                    Err(error) if is_dead(tid) => drop(error),
                    Err(error) => return Err(error),
                }
            }
            if process.tasks.len() == first_new {
                if process.leave_program(&program)? {
                    // What has left runs code of its own, and may have started others.
                    continue;
                }
                break;
            }
            for task in &process.tasks[first_new..] {
                match ptrace::interrupt(task.host_tid) {
                    Err(CheckpointError::Ptrace { source, .. })
                        if source.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other?,
                }
            }
            let mut index = first_new;
            while index < process.tasks.len() {
                let stops = process.tasks[index].await_stop(afterwards);
                if stops.map_err(|error| {
                    if is_dead(pid) {
                        leader_error(pid, error)
                    } else {
                        error
                    }
                })? {
                    index += 1;
                } else if process.tasks[index].host_tid == pid {
                    return Err(CheckpointError::Gone);
                } else {
                    process.tasks.remove(index);
                }
            }
        }
        if let Some(leader) = process.tasks.iter().position(|task| task.host_tid == pid) {
            process.tasks.swap(0, leader);
            process.tasks[1..].sort_by_key(|task| task.host_tid);
        }
        Ok(())
    }

    /// Lets threads go on that were restored and have not left the restorer's program yet: the leader may have asked for
    /// work before all others got a processor. The program is no part of a snapshot, so they could not go on there. In it
    /// threads wait for each other, so all that are in it run together. Returns whether there were any.
    fn leave_program(&mut self, program: &[Range<u64>]) -> Result<bool, CheckpointError> {
        const PAUSE: Duration = Duration::from_micros(200);
        let start = Instant::now();
        let mut found = false;
        while !program.is_empty() {
            let mut inside = Vec::new();
            for (index, task) in self.tasks.iter().enumerate() {
                let at = ptrace::registers(task.host_tid)?.rip;
                if program.iter().any(|range| range.contains(&at)) {
                    inside.push(index);
                }
            }
            let Some(first) = inside.first() else {
                break;
            };
            if start.elapsed() > STOP_TIMEOUT {
                let tid = self.tasks[*first].host_tid;
                let waited_ms = STOP_TIMEOUT.as_millis() as u64;
                return Err(CheckpointError::NotStopped { tid, waited_ms });
            }
            found = true;
            for index in &inside {
                ptrace::resume(self.tasks[*index].host_tid)?;
            }
            std::thread::sleep(PAUSE);
            for index in &inside {
                ptrace::interrupt(self.tasks[*index].host_tid)?;
            }
            // From the end, so that places before one that is removed stay.
            for index in inside.into_iter().rev() {
                if !self.tasks[index].await_stop(self.afterwards)? {
                    self.tasks.remove(index);
                }
            }
        }
        Ok(found)
    }

    /// Waits for the end of a thread that was let run to it.
    pub(crate) fn ended(&mut self, tid: i32) -> Result<(), CheckpointError> {
        while !matches!(ptrace::wait(tid, true)?, Some(Stop::Ended)) {
            ptrace::resume(tid)?;
        }
        self.tasks.retain(|task| task.host_tid != tid);
        Ok(())
    }

    /// Lets all threads go on without being traced any more. They were let run meanwhile, and wait for something.
    pub(crate) fn release(mut self) -> Result<(), CheckpointError> {
        for task in &self.tasks {
            ptrace::interrupt(task.host_tid)?;
        }
        for task in &mut self.tasks {
            if !task.await_stop(self.afterwards)? {
                return Err(CheckpointError::Gone);
            }
        }
        for task in &self.tasks {
            ptrace::detach(task.host_tid)?;
        }
        self.tasks.clear();
        self.may_go_on = true;
        Ok(())
    }

    /// Lets all threads go on where they were stopped, as if nothing had been.
    ///
    /// Those that have made calls for us stand at the end of the last one, where the kernel does not look whether a call
    /// was interrupted. So each is stopped once more on its way out, as it was at first: from there the kernel makes
    /// interrupted calls again, with the time that is left to them. Those that it would let fail with `EINTR` are made again by us.
    pub(crate) fn go_on(mut self) -> Result<(), CheckpointError> {
        let memory = Memory::open(self.pid)?;
        for task in &self.tasks {
            let stopped = ptrace::registers(task.host_tid)?;
            if let Some(again) = registers::made_again(&memory, &stopped)? {
                ptrace::set_registers(task.host_tid, &again)?;
            }
        }
        for task in &mut self.tasks {
            ptrace::interrupt(task.host_tid)?;
            ptrace::resume(task.host_tid)?;
            if !task.await_stop(self.afterwards)? {
                return Err(CheckpointError::Gone);
            }
        }
        self.let_go();
        Ok(())
    }

    /// Lets go of all threads that can be.
    fn let_go(&mut self) {
        for task in self.tasks.drain(..) {
            // One that has ended meanwhile needs nothing.
            let _ = ptrace::detach(task.host_tid);
        }
        self.may_go_on = true;
    }

    /// The threads, the leader first.
    pub(crate) fn tasks(&self) -> &[Task] {
        &self.tasks
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        if self.may_go_on {
            return;
        }
        // SAFETY: kill takes plain numbers. The process is traced and so cannot have been reaped: the id is still its own.
        unsafe { libc::kill(self.pid, libc::SIGSTOP) };
        for task in &self.tasks {
            // A thread that is not stopped (its stop timed out) cannot be detached; it is let go of when this OS thread ends.
            let _ = ptrace::detach(task.host_tid);
        }
    }
}

impl Task {
    /// Waits until the thread is stopped; false when it has ended instead.
    fn await_stop(&mut self, afterwards: Afterwards) -> Result<bool, CheckpointError> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(10);
        loop {
            match ptrace::wait(self.host_tid, false)? {
                Some(Stop::Event) => return Ok(true),
                Some(Stop::Ended) => return Ok(false),
                Some(Stop::Signal) => {
                    let info = ptrace::stop_siginfo(self.host_tid)?;
                    match afterwards {
                        Afterwards::Ends => {
                            self.taken_signals.push(info);
                            ptrace::resume(self.host_tid)?;
                        }
                        // Nobody could put it back into its queue. It stops again at the first instruction of its handler.
                        Afterwards::GoesOn => {
                            let signal = info.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                            ptrace::resume_with(self.host_tid, signal)?;
                        }
                    }
                }
                Some(Stop::Syscall) => ptrace::resume(self.host_tid)?,
                None if start.elapsed() > STOP_TIMEOUT => {
                    return Err(CheckpointError::NotStopped {
                        tid: self.host_tid,
                        waited_ms: STOP_TIMEOUT.as_millis() as u64,
                    });
                }
                None => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        }
    }
}

/// Where the program is that has restored a process; empty for one that was not restored.
fn restorer_program(pid: i32) -> Result<Vec<Range<u64>>, CheckpointError> {
    let maps = proc_files::read(pid, "maps").map_err(|error| match error {
        CheckpointError::Read { .. } => CheckpointError::Gone,
        other => other,
    })?;
    let maps = String::from_utf8_lossy(&maps);
    let is_program = |line: &&str| line.contains(PROGRAM_PATH);
    let range = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    };
    Ok(maps.lines().filter(is_program).filter_map(range).collect())
}

/// Fails when anything lives in the sandbox of a process but its init and the process itself, zombies included. Its
/// own `/proc` lists what its pid namespace holds, and nothing of the host.
pub(crate) fn refuse_company(pid: i32) -> Result<(), CheckpointError> {
    const INIT: i32 = 1;
    let own = Status::read(pid)?.innermost_id()?;
    let all = proc_files::numeric_entries(pid, "root/proc")?;
    match all.into_iter().find(|id| ![INIT, own].contains(id)) {
        Some(other) => {
            let name = proc_files::read_text(pid, &format!("root/proc/{other}/comm"));
            let name = name.unwrap_or_default().trim_end().to_owned();
            let subject = Subject::Process { pid: other, name };
            Err(Obstacle::new(subject, "lives beside the function's first process").into())
        }
        None => Ok(()),
    }
}

fn is_dead(tid: i32) -> bool {
    Status::read(tid).map_or(true, |status| {
        status
            .value("State")
            .is_ok_and(|state| state.starts_with(['Z', 'X']))
    })
}

/// A leader that cannot be seized has ended: alone, or with its process.
fn leader_error(pid: i32, error: CheckpointError) -> CheckpointError {
    match Status::read(pid) {
        Err(_) => CheckpointError::Gone,
        Ok(status)
            if status
                .value("State")
                .is_ok_and(|state| state.starts_with(['Z', 'X'])) =>
        {
            if proc_files::numeric_entries(pid, "task").is_ok_and(|tids| tids.len() > 1) {
                let name = String::from_utf8_lossy(&proc_files::name(pid).unwrap_or_default())
                    .into_owned();
                Obstacle::new(
                    Subject::Thread {
                        tid: status.innermost_id().unwrap_or(pid),
                        name,
                    },
                    "the main thread has ended before the others",
                )
                .into()
            } else {
                CheckpointError::Gone
            }
        }
        Ok(_) => error,
    }
}

/// Fails when the process is not alone: children, and any other process of its pid namespace but `init_pid`.
///
/// A process in the node's own pid namespace is no sandbox; then only children count.
pub(crate) fn refuse_other_processes(
    pid: i32,
    init_pid: i32,
    tasks: &[Task],
) -> Result<(), CheckpointError> {
    for task in tasks {
        let children = proc_files::read_text(pid, &format!("task/{}/children", task.host_tid))?;
        if let Some(child) = children
            .split_whitespace()
            .find_map(|child| child.parse().ok())
        {
            return Err(other_process(child));
        }
    }
    let namespace = proc_files::read_link(pid, "ns/pid")?;
    if std::fs::read_link("/proc/self/ns/pid")
        .is_ok_and(|own| own.as_os_str().as_encoded_bytes() == namespace)
    {
        return Ok(());
    }
    for other in proc_files::numbers_in("/proc")? {
        if other != pid
            && other != init_pid
            && proc_files::read_link(other, "ns/pid").is_ok_and(|its| its == namespace)
        {
            return Err(other_process(other));
        }
    }
    Ok(())
}

fn other_process(host_pid: i32) -> CheckpointError {
    let pid = Status::read(host_pid)
        .and_then(|status| status.innermost_id())
        .unwrap_or(host_pid);
    let name =
        String::from_utf8_lossy(&proc_files::name(host_pid).unwrap_or_default()).into_owned();
    Obstacle::new(
        Subject::Process { pid, name },
        "child processes cannot be snapshotted",
    )
    .into()
}

/// Fails when a thread has descriptors or a working directory of its own (`unshare`).
pub(crate) fn refuse_separate_tables(tasks: &[Task]) -> Result<(), CheckpointError> {
    let Some((leader, others)) = tasks.split_first() else {
        return Ok(());
    };
    for task in others {
        let what = if !kcmp::same_descriptors(leader.host_tid, task.host_tid)? {
            "has its own table of descriptors"
        } else if !kcmp::same_directory(leader.host_tid, task.host_tid)? {
            "has its own working directory"
        } else {
            continue;
        };
        let tid = Status::read(task.host_tid)?.innermost_id()?;
        let name = String::from_utf8_lossy(&proc_files::name(task.host_tid)?).into_owned();
        return Err(Obstacle::new(Subject::Thread { tid, name }, what).into());
    }
    Ok(())
}
