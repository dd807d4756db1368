//! Memory for reads past the page cache.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use rouse_snapshot::page_map::PACK_ALIGN;

/// Bytes whose address and length are multiples of [`PACK_ALIGN`].
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a buffer owns its memory, as a `Vec` does.
unsafe impl Send for Buffer {}

impl Buffer {
    /// At least `len` bytes, of any contents.
    fn new(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(PACK_ALIGN as usize);
        let start = NonNull::new({
            // SAFETY: the layout is not empty.
            unsafe { alloc_zeroed(layout(len)) }
        });
        match start {
            Some(start) => Self { start, len },
            None => handle_alloc_error(layout(len)),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is this value's, initialised, and of that length.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, PACK_ALIGN as usize)
        .expect("lengths of reads are far below the address space's")
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nothing refers to it any more.
        unsafe { dealloc(self.start.as_ptr(), layout(self.len)) }
    }
}

/// Buffers that are used again: new memory costs a page fault for each page.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Vec<Buffer>);

/// Kept at most; larger ones than a batch needs are not kept.
const KEPT: usize = 16;
const LARGEST_KEPT: usize = 512 * 1024;

impl Buffers {
    /// A buffer of at least `len` bytes.
    pub fn take(&mut self, len: usize) -> Buffer {
        match self.0.iter().position(|buffer| buffer.len >= len) {
            Some(at) => self.0.swap_remove(at),
            None => Buffer::new(len),
        }
    }

    /// For somebody else.
    pub fn give_back(&mut self, buffer: Buffer) {
        if self.0.len() < KEPT && buffer.len <= LARGEST_KEPT {
            self.0.push(buffer);
        }
    }
}
