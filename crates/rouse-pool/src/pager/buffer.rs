//! Memory for reads past the page cache.

use std::io;
use std::ptr::NonNull;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::PACK_ALIGN;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

// Mappings begin at a page.
const _: () = assert!(PAGE_SIZE.is_multiple_of(PACK_ALIGN));

/// Mapped, and there as a whole: the heap would have the pager wait for memory at the first touch of a page, and it is the one
/// who makes room. Bytes whose address and length are multiples of [`PACK_ALIGN`].
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a buffer owns its memory, as a `Vec` does.
unsafe impl Send for Buffer {}

impl Buffer {
    /// At least `len` bytes, of any contents.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(PAGE_SIZE as usize);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let buffer = Self { start, len };
        // SAFETY: the mapping is this value's own. It is unmapped if this fails.
        unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxPopulateWrite) }?;
        Ok(buffer)
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

impl Drop for Buffer {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast();
        // To cut it out of what the kernel has made one mapping takes memory. If there is none, addresses are lost, and nothing else.
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        let _ = unsafe { madvise(start, self.len, Advice::LinuxDontNeed) };
        // SAFETY: as above.
        let _ = unsafe { munmap(start, self.len) };
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
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn take(&mut self, len: usize) -> io::Result<Buffer> {
        match self.0.iter().position(|buffer| buffer.len >= len) {
            Some(at) => Ok(self.0.swap_remove(at)),
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
