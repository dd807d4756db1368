//! System calls inside of a stopped process, for what `/proc` does not tell.

use std::io;

use super::error::CheckpointError;
use super::mappings::Vma;
use super::memory::Memory;
use super::ptrace::{self, Stop};

/// Bytes of scratch memory, for results of system calls.
const SCRATCH: usize = 256;
const SYSCALL_INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// What is needed for system calls in a process: a `syscall` instruction of its own, and memory for their results.
///
/// The scratch memory is borrowed from the process: all its threads are stopped, so any writable memory serves, as
/// long as [`Remote::finish`] puts the bytes back.
#[derive(Debug)]
pub(crate) struct Remote<'a> {
    memory: &'a Memory,
    instruction: u64,
    scratch: u64,
    borrowed: Vec<u8>,
}

impl<'a> Remote<'a> {
    /// Looks for an instruction and for scratch memory. `stack_pointer` is a good first guess for the latter.
    pub(crate) fn new(
        memory: &'a Memory,
        vmas: &[Vma],
        stack_pointer: u64,
    ) -> Result<Self, CheckpointError> {
        let instruction = find_instruction(memory, vmas)?;
        // Memory under a protection key may be closed to the very thread that makes the calls.
        let writable = |vma: &&Vma| vma.write && vma.read && !vma.shared && vma.pkey == 0;
        // A page that is certainly present: the one the leader's stack pointer is in.
        let scratch = vmas
            .iter()
            .filter(writable)
            .find(|vma| vma.range.contains(&stack_pointer))
            .map(|_| stack_pointer & !4095)
            .or_else(|| vmas.iter().find(writable).map(|vma| vma.range.start))
            .ok_or(CheckpointError::Remote {
                call: "finding scratch memory",
                source: io::ErrorKind::NotFound.into(),
            })?;
        Ok(Self {
            memory,
            instruction,
            scratch,
            borrowed: memory.read_vec(scratch, SCRATCH)?,
        })
    }

    /// Address of the scratch memory.
    pub(crate) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Writes to the scratch memory, for system calls that read.
    pub(crate) fn set_scratch(&self, bytes: &[u8]) -> Result<(), CheckpointError> {
        assert!(bytes.len() <= SCRATCH, "more than is given back");
        self.memory
            .write(self.scratch, bytes)
            .map_err(|source| CheckpointError::Memory {
                address: self.scratch,
                source,
            })
    }

    /// The first `N` bytes of the scratch memory.
    pub(crate) fn result<const N: usize>(&self) -> Result<[u8; N], CheckpointError> {
        const { assert!(N <= SCRATCH) };
        let mut bytes = [0; N];
        self.memory.read(self.scratch, &mut bytes)?;
        Ok(bytes)
    }

    /// Prepares a thread for system calls.
    pub(crate) fn on(&self, tid: i32) -> Result<RemoteThread<'_>, CheckpointError> {
        let registers = ptrace::registers(tid)?;
        let mask = ptrace::signal_mask(tid)?;
        // A pending signal would be delivered before the first instruction.
        ptrace::set_signal_mask(tid, !0)?;
        Ok(RemoteThread {
            remote: self,
            tid,
            registers,
            mask,
        })
    }

    /// Gives the scratch memory back.
    pub(crate) fn finish(self) -> Result<(), CheckpointError> {
        self.memory
            .write(self.scratch, &self.borrowed)
            .map_err(|source| CheckpointError::Memory {
                address: self.scratch,
                source,
            })
    }
}

/// A thread that makes system calls for the checkpoint. Its registers and signal mask are put back when this is dropped.
#[derive(Debug)]
pub(crate) struct RemoteThread<'a> {
    remote: &'a Remote<'a>,
    tid: i32,
    registers: libc::user_regs_struct,
    mask: u64,
}

impl RemoteThread<'_> {
    /// Makes a system call and returns what it returned, unless that is an error.
    pub(crate) fn call(
        &self,
        name: &'static str,
        number: libc::c_long,
        arguments: &[u64],
    ) -> Result<u64, CheckpointError> {
        let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
        let registers = libc::user_regs_struct {
            rip: self.remote.instruction,
            rax: number as u64,
            // Not in a system call: the kernel must not restart the one that the thread was stopped in.
            orig_rax: !0,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.registers
        };
        ptrace::set_registers(self.tid, &registers)?;
        self.run_to_syscall_stop()?; // its entry
        self.run_to_syscall_stop()?; // its exit
        let result = ptrace::registers(self.tid)?.rax as i64;
        if (-4095..0).contains(&result) {
            return Err(CheckpointError::Remote {
                call: name,
                source: io::Error::from_raw_os_error(-result as i32),
            });
        }
        Ok(result as u64)
    }

    fn run_to_syscall_stop(&self) -> Result<(), CheckpointError> {
        loop {
            ptrace::resume_to_syscall(self.tid)?;
            match ptrace::wait(self.tid, true)? {
                Some(Stop::Syscall) => return Ok(()),
                // Signals are blocked; only a SIGSTOP from outside can come between.
                Some(Stop::Event | Stop::Signal) | None => {}
                Some(Stop::Ended) => return Err(CheckpointError::Gone),
            }
        }
    }
}

impl RemoteThread<'_> {
    /// The thread will not go on where it was: nothing of it is put back.
    pub(crate) fn abandon(self) {
        std::mem::forget(self);
    }
}

impl Drop for RemoteThread<'_> {
    fn drop(&mut self) {
        // A thread that has been killed meanwhile needs neither.
        let _ = ptrace::set_registers(self.tid, &self.registers);
        let _ = ptrace::set_signal_mask(self.tid, self.mask);
    }
}

/// The vDSO holds one on every kernel; it is a mapping of two pages, so it is looked at first.
fn find_instruction(memory: &Memory, vmas: &[Vma]) -> Result<u64, CheckpointError> {
    const CHUNK: u64 = 1 << 20;
    let executable = |vma: &&Vma| vma.execute && vma.read;
    let vdso = vmas
        .iter()
        .filter(executable)
        .filter(|vma| vma.path == b"[vdso]");
    let others = vmas
        .iter()
        .filter(executable)
        .filter(|vma| vma.path != b"[vdso]");
    for vma in vdso.chain(others) {
        let len = (vma.range.end - vma.range.start).min(CHUNK) as usize;
        let Ok(code) = memory.read_vec(vma.range.start, len) else {
            continue;
        };
        if let Some(offset) = code
            .windows(2)
            .position(|bytes| bytes == SYSCALL_INSTRUCTION)
        {
            return Ok(vma.range.start + offset as u64);
        }
    }
    Err(CheckpointError::Remote {
        call: "finding a syscall instruction",
        source: io::ErrorKind::NotFound.into(),
    })
}
