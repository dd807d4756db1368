//! A client that behaves as Firecracker does, against the handler: what it maps, what it sends, what it does to its memory.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rouse_pool::SnapshotStore;
use rouse_pool::firecracker::{
    self, Contents, FileContents, HandshakeError, Served, SnapshotContents,
};
use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions};
use rouse_pool::uffd::Device;
use rouse_snapshot::model::MemoryImage;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
/// Nobody waits so long, but for a test that asks for it.
const PATIENCE: Duration = Duration::from_secs(600);

/// A page of the memory file: every third one is zeros, the others can be compressed.
fn page(number: u64) -> Vec<u8> {
    match number % 3 {
        0 => vec![0; PAGE],
        _ => (0..PAGE as u64 / 8)
            .flat_map(|at| (number * 1000 + at % 50).to_le_bytes())
            .collect(),
    }
}

fn memory_file(pages: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for number in 0..pages {
        file.write_all(&page(number)).unwrap();
    }
    file
}

/// A machine: regions in the order of the file, without the holes between them.
struct Vmm {
    start: usize,
    len: usize,
    regions: Vec<(usize, usize)>,
    stream: Option<UnixStream>,
    server: Option<JoinHandle<Served>>,
}

// SAFETY: only addresses of memory that lives until the value is dropped; tests read and drop it as guests do.
unsafe impl Sync for Vmm {}

/// What Firecracker says of its memory, by a name that a version of it used.
#[derive(Clone, Copy)]
enum Says {
    PageSize,
    PageSizeKib,
    Both,
}

impl Vmm {
    /// Regions of so many pages, with a hole of as many between two. Returns before the handler has the message.
    fn new(sizes: &[usize], page_size: usize, says: Says, contents: Box<dyn Contents>) -> Self {
        let holes = sizes.iter().map(|pages| 2 * pages * PAGE).sum::<usize>();
        let len = holes.next_multiple_of(HUGE) + HUGE;
        // SAFETY: a new mapping at an address that the kernel chooses. Firecracker aligns to 2 MiB, whatever the page size.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .unwrap() as usize;
        let uffd = Device::open().unwrap().create().unwrap();
        enable(uffd.as_fd());
        let (mut at, mut regions) = (reserved.next_multiple_of(HUGE), Vec::new());
        for pages in sizes {
            regions.push((at, pages * PAGE));
            register(uffd.as_fd(), at, pages * PAGE);
            at += 2 * pages * PAGE;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let handshake = firecracker::receive(&theirs, contents.pages(), PATIENCE).unwrap();
            assert_eq!(handshake.pid, Some(std::process::id() as i32));
            firecracker::serve(&theirs, handshake, &*contents).unwrap()
        });
        send(
            &ours,
            json(&regions, page_size, says).as_bytes(),
            &[uffd.as_fd()],
        );
        Self {
            start: reserved,
            len,
            regions,
            // Firecracker never closes it, and keeps a copy of the userfaultfd (here, the handler's is the only one).
            stream: Some(ours),
            server: Some(server),
        }
    }

    /// Address of a page of the file.
    fn at(&self, number: u64) -> usize {
        let mut offset = number as usize * PAGE;
        for (start, len) in &self.regions {
            match offset.checked_sub(*len) {
                None => return start + offset,
                Some(rest) => offset = rest,
            }
        }
        panic!("the file is shorter");
    }

    fn read(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        // SAFETY: the page is mapped as long as `self` lives.
        unsafe {
            std::ptr::copy_nonoverlapping(self.at(number) as *const u8, bytes.as_mut_ptr(), PAGE);
        }
        bytes
    }

    /// The balloon.
    fn remove(&self, pages: Range<u64>) {
        let len = (pages.end - pages.start) as usize * PAGE;
        // SAFETY: the range is mapped, and nothing but tests' reads refers to it.
        unsafe { rustix::mm::madvise(self.at(pages.start) as *mut _, len, Advice::LinuxDontNeed) }
            .unwrap();
    }

    /// Ends the machine.
    fn end(mut self) -> Served {
        drop(self.stream.take());
        self.server.take().unwrap().join().unwrap()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { rustix::mm::munmap(self.start as *mut _, self.len) }.unwrap();
    }
}

fn ioctl(fd: BorrowedFd<'_>, request: u64, argument: &mut [u64]) {
    // SAFETY: the requests below take structures of as many words as they are given.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// `UFFDIO_API` with `EVENT_REMOVE` alone, as Firecracker does.
fn enable(uffd: BorrowedFd<'_>) {
    ioctl(uffd, 0xc018_aa3f, &mut [0xaa, 1 << 3, 0]);
}

/// `UFFDIO_REGISTER` for missing pages.
fn register(uffd: BorrowedFd<'_>, start: usize, len: usize) {
    ioctl(uffd, 0xc020_aa00, &mut [start as u64, len as u64, 1, 0]);
}

fn json(regions: &[(usize, usize)], page_size: usize, says: Says) -> String {
    let mut offset = 0;
    let regions = regions.iter().map(|(start, len)| {
        let mut region = serde_json::json!({
            "base_host_virt_addr": start, "size": len, "offset": offset,
        });
        offset += len;
        if matches!(says, Says::PageSize | Says::Both) {
            region["page_size"] = page_size.into();
        }
        if matches!(says, Says::PageSizeKib | Says::Both) {
            // In bytes, whatever its name says.
            region["page_size_kib"] = page_size.into();
        }
        region
    });
    serde_json::Value::from_iter(regions).to_string()
}

fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let bytes = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(stream, &bytes, &mut control, SendFlags::empty()).unwrap();
}

fn from_file(pages: u64) -> Box<dyn Contents> {
    Box::new(FileContents::new(memory_file(pages)).unwrap())
}

#[test]
fn every_page_is_that_of_the_file() {
    for says in [Says::PageSize, Says::PageSizeKib, Says::Both] {
        let vmm = Vmm::new(&[100, 60], PAGE, says, from_file(160));
        thread::scope(|scope| {
            for step in [7, 11, 13, 17] {
                let vmm = &vmm;
                scope.spawn(move || {
                    for i in 0..160 {
                        let number = i * step % 160;
                        assert_eq!(vmm.read(number), page(number), "page {number}");
                    }
                });
            }
        });
        let served = vmm.end();
        assert_eq!((served.demanded_pages, served.zeroed_pages), (160, 0));
    }
}

#[test]
fn huge_pages_are_filled_as_a_whole() {
    let vmm = Vmm::new(&[1024], HUGE, Says::Both, from_file(1024));
    for number in [1023, 3, 511, 512] {
        assert_eq!(vmm.read(number), page(number));
    }
    vmm.remove(0..512);
    assert_eq!(vmm.read(4), vec![0; PAGE]);
    assert_eq!(vmm.read(600), page(600));
    let served = vmm.end();
    assert_eq!((served.demanded_pages, served.zeroed_pages), (1024, 512));
}

#[test]
fn what_the_balloon_took_is_zeros() {
    let vmm = Vmm::new(&[64], PAGE, Says::Both, from_file(64));
    assert_eq!(vmm.read(10), page(10));
    // One that was there, and some that never were.
    vmm.remove(10..20);
    for number in 10..20 {
        assert_eq!(vmm.read(number), vec![0; PAGE]);
    }
    // And again, after it was filled with zeros.
    vmm.remove(12..13);
    assert_eq!(vmm.read(12), vec![0; PAGE]);
    assert_eq!((vmm.read(9 + 1), vmm.read(20)), (vec![0; PAGE], page(20)));
    assert_eq!(vmm.end().zeroed_pages, 11);
}

/// While one thread gives memory back, others touch it: filling is refused again and again, and nobody may wait for ever.
#[test]
fn a_flood_of_removes_stops_nobody() {
    let vmm = Vmm::new(&[256], PAGE, Says::Both, from_file(512));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = [5_u64, 7, 9]
            .into_iter()
            .map(|step| {
                let vmm = &vmm;
                scope.spawn(move || {
                    for i in 0..3000 {
                        let number = i * step % 256;
                        let bytes = vmm.read(number);
                        assert!(
                            bytes == page(number) || bytes.iter().all(|byte| *byte == 0),
                            "page {number} is neither the file's nor zeros"
                        );
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut turn = 0;
            while !over.load(Ordering::Acquire) {
                turn = (turn + 37) % 120;
                vmm.remove(turn..turn + 5);
            }
        });
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        over.store(true, Ordering::Release);
        results.into_iter().for_each(|result| result.unwrap());
    });
    // What was never given back is still the file's.
    for number in 130..256 {
        assert_eq!(vmm.read(number), page(number));
    }
    vmm.end();
}

fn stored(store: &SnapshotStore) -> StoredSnapshot<MemoryImage> {
    store.open_as("vm").unwrap()
}

#[test]
fn a_stored_memory_file_is_compressed_and_its_working_set_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(directory.path(), NodeKey::new([7; 32])).unwrap();
    let (image, pool) = firecracker::import(memory_file(600)).unwrap();
    let report = store
        .write("vm", &image, &pool, &WriteOptions::new("tenant"))
        .unwrap();
    assert!(report.pack_bytes < 600 * PAGE as u64 / 4, "{report:?}");
    let wanted = [5, 100, 101, 300, 599, 7, 450];
    let run = || {
        let contents = SnapshotContents::new(stored(&store)).unwrap();
        let vmm = Vmm::new(&[400, 200], PAGE, Says::Both, Box::new(contents));
        for number in wanted {
            assert_eq!(vmm.read(number), page(number), "page {number}");
        }
        vmm
    };
    let served = run().end();
    assert_eq!(served.prefetched_pages, 0);
    assert_eq!(served.order.len() as u64, served.faults);

    let hot = stored(&store).snapshot.pool_pages_of(&served.order);
    let options = WriteOptions {
        hot: &hot,
        ..WriteOptions::new("tenant")
    };
    store.rewrite("vm", &options).unwrap();
    let vmm = run();
    // All of it is still right, also what was not in the working set.
    for number in 0..600 {
        assert_eq!(vmm.read(number), page(number), "page {number}");
    }
    let served = vmm.end();
    // Who asks is served first, so that it may have been faster; but not with page 7.
    assert!(served.prefetched_pages > 0, "{served:?}");
}

#[test]
fn a_damaged_page_fails_and_the_others_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(directory.path(), NodeKey::new([7; 32])).unwrap();
    let (image, pool) = firecracker::import(memory_file(64)).unwrap();
    store
        .write("vm", &image, &pool, &WriteOptions::new("tenant"))
        .unwrap();
    let chunk = *stored(&store).map.piece_of(20).1.chunk().unwrap();
    let pack = store.packs().path_of(chunk.pack);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[chunk.offset as usize + 5] ^= 1;
    std::fs::write(&pack, bytes).unwrap();

    let contents = SnapshotContents::new(stored(&store)).unwrap();
    let vmm = Vmm::new(&[64], PAGE, Says::Both, Box::new(contents));
    // A system call fails where an instruction would be killed.
    let (_read, write) = rustix::pipe::pipe().unwrap();
    // SAFETY: the kernel checks the address.
    let count = unsafe { libc::write(write.as_raw_fd(), vmm.at(20) as *const _, 8) };
    let error = std::io::Error::last_os_error();
    assert_eq!((count, error.raw_os_error()), (-1, Some(libc::EFAULT)));
    assert_eq!((vmm.read(1), vmm.read(50)), (page(1), page(50)));
    assert_eq!(vmm.end().damaged_pages, 1);
}

/// What a handler makes of one or several messages.
fn answer(messages: &[(&[u8], usize)]) -> Result<(), HandshakeError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    for (bytes, descriptors) in messages {
        send(&ours, bytes, &vec![null.as_fd(); *descriptors]);
    }
    drop(ours);
    firecracker::receive(&theirs, 1000, PATIENCE).map(drop)
}

#[test]
fn a_message_may_come_in_parts() {
    let text = json(&[(HUGE, 8 * PAGE)], PAGE, Says::Both);
    let (one, other) = text.as_bytes().split_at(20);
    answer(&[(text.as_bytes(), 1)]).unwrap();
    answer(&[(one, 1), (other, 0)]).unwrap();
    answer(&[(one, 0), (other, 1)]).unwrap();
    answer(&[(text.as_bytes(), 0), (b" ", 1)]).unwrap();
}

#[test]
fn what_is_no_handshake_is_refused() {
    let text = json(&[(HUGE, 8 * PAGE)], PAGE, Says::Both);
    let text = text.as_bytes();
    let is = |result: Result<(), HandshakeError>, expected: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    is(answer(&[(text, 0)]), "ended before");
    is(answer(&[]), "ended before");
    is(answer(&[(text, 2)]), "2 descriptors");
    is(answer(&[(b"GET / HTTP/1.1", 1)]), "no list of regions");
    is(answer(&[(b"{}", 1)]), "no list of regions");
    is(answer(&[(&[b' '; 70_000], 1)]), "more than 65536 bytes");
    let beyond = json(&[(HUGE, 2000 * PAGE)], PAGE, Says::Both);
    is(answer(&[(beyond.as_bytes(), 1)]), "beyond the end");
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let result = firecracker::receive(&theirs, 1, Duration::from_millis(20)).map(drop);
    assert!(matches!(result, Err(HandshakeError::Timeout)));
}
