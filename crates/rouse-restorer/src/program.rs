//! A program: code, operations and data in one image, to be mapped at a fixed address.
//!
//! ```text
//!  base                base + 4096
//!  +-------------------+------------------------------------------------+---------------+
//!  | interpreter       | failure record | data, signal frames, op lists | parking place |
//!  | r-x, shared       | rw-, private (copied where written)            | not in image  |
//!  +-------------------+------------------------------------------------+---------------+
//! ```
//! The parking place is an address range behind the image in which a program may keep mappings
//! (the vDSO) while everything else is unmapped.

use crate::op::{FAILURE_TAG, FailureRecord, Op, code};

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// Operations start at cache lines.
const OP_ALIGN: usize = 64;

/// Builds a [`Program`]. Addresses that it returns are those in the process that runs it.
#[derive(Debug)]
pub struct Builder {
    base: u64,
    data: Vec<u8>,
}

/// A finished program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it must be mapped.
    pub base: u64,
    /// Its bytes: one page of code, then data.
    pub image: Vec<u8>,
    /// Address of the first operation.
    pub entry: u64,
}

impl Builder {
    /// A program for address `base` (page aligned) whose failures go to the descriptor `control_fd`.
    pub fn new(base: u64, control_fd: i32) -> Self {
        assert_eq!(base % PAGE, 0, "a program starts at a page boundary");
        let record = FailureRecord {
            control_fd: control_fd as u64,
            tag: FAILURE_TAG,
            op: 0,
            result: 0,
        };
        let mut builder = Self {
            base,
            data: Vec::new(),
        };
        for word in [
            record.control_fd,
            record.tag,
            record.op,
            record.result as u64,
        ] {
            builder.data.extend_from_slice(&word.to_le_bytes());
        }
        builder
    }

    /// Puts bytes into the data area, at a multiple of `align`, and returns their address.
    pub fn bytes(&mut self, bytes: &[u8], align: usize) -> u64 {
        let at = self.data.len().next_multiple_of(align);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        self.base + PAGE + at as u64
    }

    /// A 32-bit cell that operations may write.
    pub fn cell(&mut self, value: u32) -> u64 {
        self.bytes(&value.to_le_bytes(), 4)
    }

    /// 64-bit words.
    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.bytes(&bytes, 8)
    }

    /// A string with its terminating zero.
    pub fn string(&mut self, text: &[u8]) -> u64 {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.bytes(&bytes, 1)
    }

    /// Puts a list of operations into the data area and returns its address.
    ///
    /// The last one must not fall through: `Sigreturn`, `Jump` or an exiting system call.
    pub fn list(&mut self, ops: &[Op]) -> u64 {
        let mut bytes = Vec::with_capacity(size_of_val(ops));
        for op in ops {
            bytes.extend_from_slice(&op.code.to_le_bytes());
            bytes.extend_from_slice(&op.flags.to_le_bytes());
            bytes.extend_from_slice(&op.number.to_le_bytes());
            for arg in op.args {
                bytes.extend_from_slice(&arg.to_le_bytes());
            }
            bytes.extend_from_slice(&op.store.to_le_bytes());
        }
        self.bytes(&bytes, OP_ALIGN)
    }

    /// Address that the next [`Builder::list`] will return, if nothing is added before it.
    pub fn next_list(&self) -> u64 {
        self.base + PAGE + self.data.len().next_multiple_of(OP_ALIGN) as u64
    }

    /// Finishes the program, which starts with the list at `entry`.
    pub fn finish(self, entry: u64) -> Program {
        let mut image = code().to_vec();
        assert!(
            image.len() as u64 <= PAGE,
            "the interpreter fits into one page"
        );
        image.resize(PAGE as usize, 0);
        image.extend_from_slice(&self.data);
        image.resize(image.len().next_multiple_of(PAGE as usize), 0);
        Program {
            base: self.base,
            image,
            entry,
        }
    }

    /// Bytes used so far, the code page included.
    pub fn len(&self) -> u64 {
        PAGE + self.data.len() as u64
    }

    /// Never: there is always the code page.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Program {
    /// Addresses that the mapped program occupies.
    pub fn range(&self) -> std::ops::Range<u64> {
        self.base..self.base + self.image.len() as u64
    }

    /// Describes the operation at `address`, for messages about a failure.
    pub fn describe(&self, address: u64) -> String {
        let offset = address.wrapping_sub(self.base) as usize;
        let Some(bytes) = self.image.get(offset..offset.saturating_add(64)) else {
            return format!("operation at {address:#x}, outside of the program");
        };
        let word = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap_or_default());
        let number = (word(0) >> 32) as u32;
        let args: Vec<String> = (1..7).map(|i| format!("{:#x}", word(i * 8))).collect();
        format!(
            "operation {} (system call {number}: {})",
            (address - self.base) / 64,
            args.join(", ")
        )
    }
}
