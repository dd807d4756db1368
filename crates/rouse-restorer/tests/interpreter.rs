//! Runs programs in forked children and looks at what they did.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rouse_restorer::enter;
use rouse_restorer::op::{FAILURE_TAG, Op};
use rouse_restorer::program::{Builder, Program};

const BASE: u64 = 0x2000_0000_0000;
/// Descriptor that programs write to; high, so that the kernel hands it out to nobody else.
const OUT: i32 = 200;

/// Runs the program that `build` makes; returns what it wrote to `OUT` and its wait status.
fn run(build: impl FnOnce(&mut Builder) -> Vec<Op>) -> (Vec<u8>, i32, Program) {
    let mut builder = Builder::new(BASE, OUT);
    let ops = build(&mut builder);
    let entry = builder.list(&ops);
    let program = builder.finish(entry);
    // SAFETY: plain system calls; the results are checked.
    let image = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"program".as_ptr(), 0)) };
    std::io::Write::write_all(
        &mut std::fs::File::from(image.try_clone().unwrap()),
        &program.image,
    )
    .unwrap();
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for both descriptors.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0);
    // SAFETY: the child only makes async-signal-safe calls before it leaves this program.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: `ends[1]` is open; the program was built for BASE, which nothing uses.
        unsafe {
            libc::dup2(ends[1], OUT);
            enter::enter(
                std::os::fd::AsFd::as_fd(&image),
                BASE,
                program.image.len() as u64,
                entry,
            );
            libc::_exit(99);
        }
    }
    // SAFETY: both numbers come from `pipe2` and are owned by nobody else.
    let (mut reader, writer) = unsafe {
        (
            std::fs::File::from_raw_fd(ends[0]),
            OwnedFd::from_raw_fd(ends[1]),
        )
    };
    drop(writer);
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    let mut status = 0;
    // SAFETY: waits for the child made above.
    let ended = unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(ended, pid);
    assert!(image.as_raw_fd() >= 0);
    (output, status, program)
}

fn write(address: u64, len: u64) -> Op {
    Op::syscall(libc::SYS_write, &[OUT as u64, address, len]).exact(len)
}

fn exit(code: u64) -> Op {
    Op::syscall(libc::SYS_exit_group, &[code])
}

#[test]
fn results_go_into_cells_and_cells_into_arguments() {
    let (output, status, _) = run(|program| {
        let ends = program.words(&[0]);
        let hello = program.bytes(b"hello", 1);
        let buffer = program.bytes(&[0; 8], 8);
        let copy = program.cell(0);
        vec![
            Op::syscall(libc::SYS_pipe2, &[ends, 0]),
            Op::syscall(libc::SYS_dup, &[ends + 4])
                .indirect(0)
                .store(copy),
            Op::syscall(libc::SYS_write, &[copy, hello, 5])
                .indirect(0)
                .exact(5),
            Op::syscall(libc::SYS_read, &[ends, buffer, 8])
                .indirect(0)
                .exact(5),
            write(buffer, 5),
            exit(7),
        ]
    });
    assert_eq!(output, b"hello");
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7,
        "{status:#x}"
    );
}

#[test]
fn a_failure_names_its_operation_and_ends_the_process() {
    let (output, status, program) = run(|_| {
        vec![
            Op::syscall(libc::SYS_close, &[9999]).ignore_error(),
            Op::syscall(libc::SYS_close, &[9998]),
            exit(0),
        ]
    });
    let words: Vec<u64> = output
        .chunks_exact(8)
        .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
        .collect();
    assert_eq!(
        words,
        [
            FAILURE_TAG,
            program.entry + 64,
            -i64::from(libc::EBADF) as u64
        ]
    );
    assert_eq!(libc::WEXITSTATUS(status), 127);
    assert!(
        program.describe(words[1]).contains("system call 3: 0x270e"),
        "{}",
        program.describe(words[1])
    );
}

#[test]
fn an_inexact_result_is_a_failure() {
    let (output, status, _) = run(|program| {
        let text = program.bytes(b"ab", 1);
        vec![
            Op::syscall(libc::SYS_write, &[OUT as u64, text, 2]).exact(3),
            exit(0),
        ]
    });
    assert_eq!(&output[..2], b"ab");
    assert_eq!(libc::WEXITSTATUS(status), 127);
}

#[test]
fn threads_meet_at_a_gate_and_share_memory() {
    const THREADS: u32 = 8;
    let (output, status, _) = run(|program| {
        let arrived = program.cell(0);
        let gate = program.cell(0);
        let passed = program.cell(0);
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD;
        let args = program.words(&[flags as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let thread = program.list(&[
            Op::add_and_wake(arrived, 1),
            Op::wait_equal(gate, 5),
            Op::add_and_wake(passed, 1),
            Op::syscall(libc::SYS_exit, &[0]),
        ]);
        let mut list = vec![Op::spawn(args, 80, thread); THREADS as usize];
        list.extend([
            Op::wait_equal(arrived, THREADS),
            Op::set_cell(gate, 4),
            Op::add_and_wake(gate, 1),
            Op::wait_equal(passed, THREADS),
            write(passed, 4),
            exit(0),
        ]);
        list
    });
    assert_eq!(output, THREADS.to_le_bytes());
    assert_eq!(status, 0);
}

#[test]
fn a_program_can_leave_for_another_one() {
    const SECOND: u64 = 0x3000_0000;
    let (output, status, _) = run(|program| {
        let mut second = Builder::new(SECOND, OUT);
        let text = second.bytes(b"second", 1);
        let entry = second.list(&[write(text, 6), exit(3)]);
        let image = second.finish(entry).image;
        let image_at = program.bytes(&image, 8);
        let name = program.string(b"second");
        let file = program.cell(0);
        let cells = [SECOND, entry, SECOND + 4096].map(|value| program.cell(value as u32));
        let len = image.len() as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64;
        vec![
            Op::syscall(libc::SYS_memfd_create, &[name, 0]).store(file),
            Op::syscall(libc::SYS_write, &[file, image_at, len])
                .indirect(0)
                .exact(len),
            Op::syscall(libc::SYS_mmap, &[SECOND, len, 7, flags, file, 0]).indirect(4),
            Op::leave(cells[0], cells[1], cells[2]),
        ]
    });
    assert_eq!(
        (output.as_slice(), libc::WEXITSTATUS(status)),
        (&b"second"[..], 3)
    );
}

#[test]
fn a_clone_goes_on_with_its_own_list() {
    let (output, status, _) = run(|program| {
        let text = program.bytes(b"child", 1);
        let child = program.list(&[write(text, 5), exit(0)]);
        vec![
            Op::clone_process(libc::SIGCHLD as u64, child),
            Op::syscall(libc::SYS_wait4, &[u64::MAX, 0, 0, 0]),
            exit(4),
        ]
    });
    assert_eq!(
        (output.as_slice(), libc::WEXITSTATUS(status)),
        (&b"child"[..], 4)
    );
}
