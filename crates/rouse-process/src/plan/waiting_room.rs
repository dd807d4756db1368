//! What a blank process runs until its program arrives.
//!
//! A blank is a copy of the spawner, whose memory has to go before a snapshot's can come. That
//! does not depend on the snapshot, so it is done ahead: in the waiting room nothing is left but
//! one page of code, some of data, and the kernel's own mappings, which can only be moved.
//!
//! ```text
//!  BASE                       PARKING                           END
//!  +-------+------+           +--------+---------------+------+ +--------------
//!  | code  | data |           | [vvar] | [vvar_vclock] |[vdso]| | programs ...
//!  +-------+------+           +--------+---------------+------+ +--------------
//! ```
//! A program arrives as one message: its place ([`Arrival`]), and its descriptors. The room maps
//! it there and leaves for it.

use std::ops::Range;

use rouse_restorer::op::Op;
use rouse_restorer::program::{Builder, PAGE, Program};

use super::address_space::mremap;
use super::threads::drop_bounding_set;
use super::{PlanError, RECEIVE_BASE, SpecialMappings};

/// Address of the room: the lowest that the kernel lets anybody map (`vm.mmap_min_addr`).
pub const BASE: u64 = 0x10000;
/// Where the kernel's mappings are parked.
pub const PARKING: u64 = 0x14000;
/// First address for programs.
pub const END: u64 = 0x40000;
/// Descriptors in one message; the kernel's limit is 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 250;
/// End of the user address space with four-level page tables, less the guard page.
pub(crate) const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// The message that brings a program: where its code, its data and its first operation are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    code: u64,
    data: u64,
    data_len: u64,
    entry: u64,
}

/// Bytes of an [`Arrival`].
const ARRIVAL_LEN: usize = 32;

impl Arrival {
    /// For this program.
    pub fn of(program: &Program) -> Self {
        let data_len = program.image.len() as u64 - PAGE;
        Self {
            code: program.base,
            data: program.base + PAGE,
            data_len,
            entry: program.entry,
        }
    }

    /// As bytes of the message.
    pub fn to_bytes(self) -> [u8; ARRIVAL_LEN] {
        let mut bytes = [0; ARRIVAL_LEN];
        let words = [self.code, self.data, self.data_len, self.entry];
        for (at, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *at = word.to_le_bytes();
        }
        bytes
    }
}

/// Compiles the room for blanks that are forks of this process; says where it parks the kernel's mappings.
pub fn compile(own: &SpecialMappings) -> Result<(Program, SpecialMappings), PlanError> {
    let mut builder = Builder::new(BASE, RECEIVE_BASE);
    let control = RECEIVE_BASE as u64;
    let mut list = Vec::new();
    let mut at = PARKING;
    let mut park = |range: &Range<u64>| {
        let parked = at..at + (range.end - range.start);
        list.push(mremap(range, parked.start));
        at = parked.end;
        parked
    };
    let vvar = own.vvar.iter().map(&mut park).collect();
    let parked = SpecialMappings {
        vvar,
        vdso: park(&own.vdso),
    };
    if at > END {
        return Err(PlanError::NoRoom(at - PARKING));
    }
    // A blank has entered a user namespace, which has filled its bounding set again.
    drop_bounding_set(&mut list);
    list.push(Op::syscall(libc::SYS_munmap, &[0, BASE]));
    list.push(Op::syscall(libc::SYS_munmap, &[END, TASK_SIZE - END]));
    // The descriptor of the room's own image, and anything else above the control socket.
    list.push(Op::syscall(
        libc::SYS_close_range,
        &[control + 1, u64::from(u32::MAX), 0],
    ));

    let words = builder.words(&[0; ARRIVAL_LEN / 8]);
    let [code, data, data_len, entry] = [words, words + 8, words + 16, words + 24];
    let header = receiver(&mut builder, words, ARRIVAL_LEN as u64);
    let args = [control, header, libc::MSG_CMSG_CLOEXEC as u64];
    list.push(Op::syscall(libc::SYS_recvmsg, &args).exact(ARRIVAL_LEN as u64));
    let program = control + 1;
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE) as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    list.push(
        Op::syscall(libc::SYS_mmap, &[code, PAGE, executable, flags, program, 0]).indirect(0),
    );
    let map_data = Op::syscall(
        libc::SYS_mmap,
        &[data, data_len, writable, flags, program, PAGE],
    );
    list.push(map_data.indirect(0).indirect(1));
    // A program's failure record is the first thing in its data.
    list.push(Op::leave(code, entry, data));
    let entry = builder.list(&list);
    let program = builder.finish(entry);
    if program.range().end > PARKING {
        return Err(PlanError::NoRoom(program.image.len() as u64));
    }
    Ok((program, parked))
}

/// Bytes of ancillary data that a message with `MAX_FDS` descriptors has.
pub(super) const ANCILLARY_LEN: u64 = 16 + 4 * MAX_FDS as u64;
/// Offset of `msg_controllen` in a `struct msghdr`: the kernel writes there what it used.
pub(super) const CONTROL_LEN: u64 = 40;

/// A `struct msghdr` that receives `len` bytes at `buffer`, and up to `MAX_FDS` descriptors.
pub(super) fn receiver(builder: &mut Builder, buffer: u64, len: u64) -> u64 {
    let vector = builder.words(&[buffer, len]);
    let ancillary = builder.bytes(&[0; ANCILLARY_LEN as usize], 8);
    // name, namelen, iov, iovlen, control, controllen, flags
    builder.words(&[0, 0, vector, 1, ancillary, ANCILLARY_LEN, 0])
}
