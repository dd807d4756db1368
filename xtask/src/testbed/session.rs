//! One boot: starts QEMU, passes on what the commands print, and finds out how it ended.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;

use super::emulator::{self, Wires};
use super::kernel::Kernel;
use super::{Options, TestbedError};

/// A boot takes about 15 s on an idle machine; this is for one that is busy with builds.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How much of the console is kept, in bytes.
const KEPT: usize = 256 << 10;
/// How much of it a message shows, in lines.
const SHOWN: usize = 60;
/// The same when the kernel was asked for the stacks of its tasks.
const SHOWN_WITH_STACKS: usize = 250;
/// What stage2.sh shows on the console: processes, then by the kernel's SysRq (8: print all that is said) the stacks of
/// blocked tasks and of each processor.
const WHAT_HANGS: &[u8] = b"processes\n8\nw\nl\n";

/// How often a machine is booted whose kernel trips over its own patching before it has run a command.
const BOOTS: u32 = 4;
/// What such a kernel says. It looks as if an emulated processor runs into the breakpoint that stands in code while the
/// kernel replaces it (a static key that is switched), when that is already over and nobody owns it.
const TRIPPED: &str = "int3: 0000 [#1]";

/// Boots the machine, waits for the end of its commands, and returns their status.
///
/// It boots again only if the kernel has tripped over itself before a command began: nothing that is to be tested has
/// run by then, so no failure of that is hidden, and no command runs twice.
pub fn run(kernel: &Kernel, initramfs: &File, options: &Options) -> Result<u8, TestbedError> {
    let mut boots = 1;
    loop {
        match run_once(kernel, initramfs, options) {
            Err(error @ TestbedError::Died { tripped: true, .. }) if boots < BOOTS => {
                eprintln!("xtask: test bed: {error}");
                eprintln!("xtask: test bed: no command had begun: it boots again");
                boots += 1;
            }
            result => return result,
        }
    }
}

/// Whether a machine that said `console` ended by its kernel's own doing alone.
fn has_tripped(began: bool, console: &[u8]) -> bool {
    !began
        && console
            .windows(TRIPPED.len())
            .any(|place| place == TRIPPED.as_bytes())
}

fn run_once(kernel: &Kernel, initramfs: &File, options: &Options) -> Result<u8, TestbedError> {
    let (mut here, there) = wires().map_err(TestbedError::Wire)?;
    let begin = Instant::now();
    let process = emulator::command(kernel, initramfs, &there, options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(TestbedError::Start)?;
    // Else no wire would ever end.
    drop(there);
    let mut machine = Machine { process };

    let log = Arc::new(Mutex::new(Vec::new()));
    let complaints = machine.process.stderr.take();
    let readers = [
        keep(here.console, &log, options.console),
        pass_on(here.output, io::stdout()),
        pass_on(here.errors, io::stderr()),
    ];
    let complaints = complaints.map(|pipe| keep_complaints(pipe, &log));
    let lines = lines(here.control.try_clone().map_err(TestbedError::Wire)?);

    let (end, shown) = follow(&lines, &mut here.control, options, begin);
    match end {
        // There is nothing to wait for; after "exit", all output is in the sockets.
        End::Exit(_) | End::Hung { .. } => machine.end(),
        End::Closed { .. } => {}
    }
    let ended = machine.process.wait().map_err(TestbedError::Wait)?;
    for reader in readers.into_iter().chain(complaints) {
        // A reader panics only when standard output is gone: then there is nobody to tell.
        drop(reader.join());
    }
    let console = last_lines(&log, shown);
    match end {
        End::Exit(status) => Ok(status),
        End::Hung { what, limit } => Err(TestbedError::Hung {
            what,
            limit,
            console,
        }),
        End::Closed { began } => {
            let tripped = has_tripped(began, &log.lock().unwrap_or_else(PoisonError::into_inner));
            Err(TestbedError::Died {
                reason: reason(&console),
                tripped,
                status: ended,
                after: begin.elapsed(),
                console,
            })
        }
    }
}

/// How a boot ended.
enum End {
    /// With the status of the commands.
    Exit(u8),
    /// Not in time.
    Hung { what: &'static str, limit: Duration },
    /// The machine closed its wires: it has ended. Whether a command may have begun.
    Closed { began: bool },
}

/// Listens to stage2.sh until the end, and tells it and how many lines of the console explain it.
fn follow(
    lines: &Receiver<String>,
    control: &mut UnixStream,
    options: &Options,
    begin: Instant,
) -> (End, usize) {
    let booted = |line: &str| (line == "booted").then_some(());
    match answer(lines, BOOT_LIMIT, booted) {
        Ok(()) if options.console => {
            eprintln!("xtask: test bed: booted after {:.1?}", begin.elapsed());
        }
        Ok(()) => {}
        Err(RecvTimeoutError::Disconnected) => return (End::Closed { began: false }, SHOWN),
        Err(RecvTimeoutError::Timeout) => {
            let (what, limit) = ("the machine did not boot", BOOT_LIMIT);
            return (End::Hung { what, limit }, SHOWN);
        }
    }
    let exit = |line: &str| line.strip_prefix("exit ")?.parse().ok();
    match answer(lines, options.timeout, exit) {
        Ok(status) => (End::Exit(status), SHOWN),
        Err(RecvTimeoutError::Disconnected) => (End::Closed { began: true }, SHOWN),
        Err(RecvTimeoutError::Timeout) => {
            if control.write_all(WHAT_HANGS).is_ok() {
                // The answer is text on a slow serial line.
                thread::sleep(Duration::from_secs(5));
            }
            let (what, limit) = ("the commands did not end", options.timeout);
            (End::Hung { what, limit }, SHOWN_WITH_STACKS)
        }
    }
}

/// A running QEMU, which does not outlive this.
struct Machine {
    process: Child,
}

impl Machine {
    fn end(&mut self) {
        // It may have ended by itself: all the better.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn wires() -> io::Result<(Wires, Wires)> {
    let pair = || -> io::Result<(UnixStream, UnixStream)> {
        let (here, there) = UnixStream::pair()?;
        rustix::io::fcntl_setfd(&there, FdFlags::empty())?;
        Ok((here, there))
    };
    let (console, control, output, errors) = (pair()?, pair()?, pair()?, pair()?);
    let here = Wires {
        console: console.0,
        control: control.0,
        output: output.0,
        errors: errors.0,
    };
    let there = Wires {
        console: console.1,
        control: control.1,
        output: output.1,
        errors: errors.1,
    };
    Ok((here, there))
}

type Log = Arc<Mutex<Vec<u8>>>;

fn append(log: &Log, bytes: &[u8]) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.extend_from_slice(bytes);
    let excess = log.len().saturating_sub(KEPT);
    log.drain(..excess);
}

/// Keeps the end of what the console prints.
fn keep(mut console: UnixStream, log: &Log, print: bool) -> JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = console.read(&mut buffer) {
            append(&log, &buffer[..length]);
            if print {
                drop(io::stderr().write_all(&buffer[..length]));
            }
        }
    })
}

/// QEMU's own words go to the console's log, without what is said on each start: which features of the named
/// processor cannot be emulated.
fn keep_complaints(pipe: ChildStderr, log: &Log) -> JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if !line.contains("doesn't support requested feature") {
                append(&log, format!("{line}\n").as_bytes());
            }
        }
    })
}

fn pass_on(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // When nobody listens any more, the commands still run to their end.
            drop(to.write_all(&buffer[..length]).and_then(|()| to.flush()));
        }
    })
}

fn lines(control: UnixStream) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(control).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The first line that `wanted` understands.
fn answer<T>(
    lines: &Receiver<String>,
    limit: Duration,
    wanted: impl Fn(&str) -> Option<T>,
) -> Result<T, RecvTimeoutError> {
    let begin = Instant::now();
    loop {
        let line = lines.recv_timeout(limit.saturating_sub(begin.elapsed()))?;
        if let Some(value) = wanted(&line) {
            return Ok(value);
        }
    }
}

/// What the console's last lines say of the end.
fn reason(console: &str) -> String {
    for (mark, meaning) in [
        ("testbed: failed: ", "the machine could not be made ready: "),
        ("Kernel panic - not syncing: ", "the kernel panicked: "),
    ] {
        if let Some((_, rest)) = console.rsplit_once(mark) {
            let line = rest.lines().next().unwrap_or_default();
            return format!("{meaning}{line}");
        }
    }
    "the machine ended before its commands".to_owned()
}

fn last_lines(log: &Log, count: usize) -> String {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| !line.trim().is_empty())
        .collect();
    let shown = &lines[lines.len().saturating_sub(count)..];
    if shown.is_empty() {
        return "(nothing on its console)".to_owned();
    }
    format!("--- the end of its console ---\n{}", shown.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_tells_why_a_machine_ended() {
        let panic =
            "[    9.1] Kernel panic - not syncing: sysrq triggered crash\r\n[    9.2] CPU: 0";
        assert!(reason(panic).starts_with("the kernel panicked: sysrq triggered crash"));
        assert_eq!(
            reason("x\ntestbed: failed: cannot mount /dev\ny"),
            "the machine could not be made ready: cannot mount /dev"
        );
        assert_eq!(reason(""), "the machine ended before its commands");
    }

    #[test]
    fn a_machine_boots_again_only_for_its_own_kernel_and_before_a_command() {
        for tripped in [
            "[    5.1] int3: 0000 [#1] PREEMPT SMP NOPTI\r\n[    5.1] RIP: 0010:__schedule+0x1/0x9",
            "\u{1b}[0m[    5.1] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\n",
        ] {
            assert!(has_tripped(false, tripped.as_bytes()));
            // A command may have run: never twice.
            assert!(!has_tripped(true, tripped.as_bytes()));
        }
        for other in [
            "",
            "[    5.1] Oops: general protection fault: 0000 [#1] SMP",
            "[    5.1] Kernel panic - not syncing: VFS: Unable to mount root fs",
            "testbed: failed: cannot mount /dev",
        ] {
            assert!(!has_tripped(false, other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn only_the_end_of_a_long_console_is_kept() {
        let log = Log::default();
        for number in 0..100_000 {
            append(&log, format!("line {number}\r\n\r\n").as_bytes());
        }
        assert!(log.lock().expect("no panic before").len() <= KEPT);
        assert_eq!(
            last_lines(&log, 2),
            "--- the end of its console ---\nline 99998\nline 99999"
        );
    }
}
