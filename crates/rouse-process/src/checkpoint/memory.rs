//! Access to the memory of a stopped process.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::error::CheckpointError;

/// The memory of a process, by address.
#[derive(Debug)]
pub(crate) struct Memory {
    pid: i32,
    mem: File,
}

impl Memory {
    /// Opens the memory of a process that the calling thread traces.
    pub(crate) fn open(pid: i32) -> Result<Self, CheckpointError> {
        let path = format!("/proc/{pid}/mem");
        match File::options().read(true).write(true).open(&path) {
            Ok(mem) => Ok(Self { pid, mem }),
            Err(source) => Err(CheckpointError::Read { path, source }),
        }
    }

    /// Fills `bytes` from `address`.
    ///
    /// `process_vm_readv` copies straight between the two processes; what it may not read (`PROT_NONE` memory) comes
    /// through `/proc/PID/mem`, which may.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let mut done = 0;
        while done < bytes.len() {
            let here = address + done as u64;
            let rest = &mut bytes[done..];
            let remote = [RemoteIoVec {
                base: here as usize,
                len: rest.len(),
            }];
            match process_vm_readv(
                Pid::from_raw(self.pid),
                &mut [IoSliceMut::new(rest)],
                &remote,
            ) {
                Ok(count) if count > 0 => done += count,
                _ => {
                    // Page by page: what follows may be readable the quick way again.
                    let to_page_end = (4096 - here as usize % 4096).min(rest.len());
                    self.mem
                        .read_exact_at(&mut rest[..to_page_end], here)
                        .map_err(|source| CheckpointError::Memory {
                            address: here,
                            source,
                        })?;
                    done += to_page_end;
                }
            }
        }
        Ok(())
    }

    /// Reads a number.
    pub(crate) fn read_u64(&self, address: u64) -> Result<u64, CheckpointError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads `len` bytes.
    pub(crate) fn read_vec(&self, address: u64, len: usize) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes `bytes` at `address`.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.mem.write_all_at(bytes, address)
    }
}
