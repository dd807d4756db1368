//! Measures [`CostInputs`] on this host, in a fraction of a second.
//!
//! Each number is the best of a few rounds: what disturbs a round makes it slower, never faster.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::PACK_ALIGN;
use rustix::fs::{MemfdFlags, OFlags};
use rustix::mm::Advice;

use super::inputs::{CodecCost, CostInputs, Transfer};
use super::mapping::{Mapping, scattered};
use crate::codec::{CodecId, Codecs};
use crate::pool::{FarMemory, prefer, write_all_at};
use crate::uffd::{Device, Event, Events, Neighbours, Userfaultfd};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages that are mapped or copied in a round: few enough for a round between two interruptions.
const PAGES: usize = 512;
/// Rounds go through so many times as many pages, more than a processor's cache holds.
const WINDOWS: usize = 16;
const ROUNDS: usize = 3 * WINDOWS;
/// Of a codec: a round takes as long as many of the others.
const CODEC_ROUNDS: usize = 3;
/// Pages that the kernel maps along with one that is read, at most. Each fault that is counted is one of its own.
const FAULT_AROUND: usize = 16;
/// Mappings that are made in a round.
const MAPPINGS: usize = 64;
/// Faults that are looked at one by one.
const LONE_FAULTS: usize = 65;
/// Faults that a handler is asked to answer.
const HANDLED: usize = 64;
/// Pieces that a codec is tried with, each of as many pages as pieces have at most.
const PIECES: usize = 16;
const PIECE: usize = 16 * PAGE;
/// What is read from the disk.
const DISK_BYTES: usize = 16 << 20;
const DISK_READ: usize = 256 << 10;
/// Small reads, for the latency.
const DISK_SMALL: usize = 32;
/// A disk that is so slow is not measured to the end.
const DISK_PATIENCE: Duration = Duration::from_millis(300);

/// Measures memory, codecs, and the disk on which `store` is. What cannot be measured is as it was in `inputs`.
///
/// Returns false if that is so of memory or disk: a full disk now says nothing about later.
pub fn measure(store: &Path, inputs: &mut CostInputs) -> bool {
    let mut is_whole = true;
    if let Err(error) = measure_memory(inputs) {
        tracing::warn!(%error, "the costs of memory could not be measured");
        is_whole = false;
    }
    match handler_fault() {
        Ok(ns) => inputs.handler_fault_ns = ns,
        Err(error) => tracing::debug!(%error, "the cost of a handled fault could not be measured"),
    }
    inputs.codecs = CodecId::ALL
        .into_iter()
        .filter_map(|codec| codec_cost(codec).ok())
        .collect();
    match disk(store) {
        Ok(transfer) => inputs.disk = transfer,
        Err(error) => {
            tracing::warn!(%error, "the disk could not be measured");
            is_whole = false;
        }
    }
    is_whole
}

/// Measures reads of pages that lie on far memory.
///
/// # Errors
/// What the kernel says about the node, or the file system about the directory.
pub fn measure_far(far: &FarMemory) -> io::Result<Transfer> {
    let pages = PAGES * WINDOWS;
    let file = match far {
        FarMemory::Node(node) => {
            let file = rustix::fs::memfd_create("rouse-measure", MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&file, (pages * PAGE) as u64)?;
            prefer(file.as_fd(), pages as u64, *node)?;
            file
        }
        FarMemory::Directory(directory) => {
            let file = directory.new_file((pages * PAGE) as u64);
            file.map_err(io::Error::other)?
        }
    };
    let contents = sample(PAGES * PAGE, 1);
    for window in 0..WINDOWS {
        write_all_at(file.as_fd(), &contents, (window * PAGES * PAGE) as u64)?;
    }
    let mapping = Mapping::private(&file, 0, pages)?;
    mapping.advise(Advice::LinuxPopulateRead)?;
    let latency = best(WINDOWS, |number| {
        let begin = Instant::now();
        for place in scattered(PAGES) {
            mapping.read(number * PAGES + place);
        }
        Ok(begin.elapsed())
    })?;
    let mut copy = vec![0_u8; PAGES * PAGE];
    let copied = best(WINDOWS, |number| {
        let begin = Instant::now();
        mapping.copy(number * PAGES, &mut copy);
        std::hint::black_box(&mut copy);
        Ok(begin.elapsed())
    })?;
    Ok(Transfer {
        latency_ns: latency / PAGES as f64,
        bytes_per_s: copy.len() as f64 * 1e9 / copied.max(1.0),
    })
}

fn best(rounds: usize, mut round: impl FnMut(usize) -> io::Result<Duration>) -> io::Result<f64> {
    let mut best = f64::INFINITY;
    for number in 0..rounds {
        best = best.min(round(number)?.as_nanos() as f64);
    }
    Ok(best)
}

fn measure_memory(inputs: &mut CostInputs) -> io::Result<()> {
    let file = rustix::fs::memfd_create("rouse-measure", MemfdFlags::CLOEXEC)?;
    let contents = sample(PAGES * PAGE, 1);
    let pages = PAGES as f64;
    let window = |number: usize| number % WINDOWS * PAGES;
    inputs.fill_ns = best(ROUNDS, |number| {
        let at = (window(number) * PAGE) as u64;
        // Begun anew, so that pages are made and not only written.
        if at == 0 {
            rustix::fs::ftruncate(&file, 0)?;
        }
        let begin = Instant::now();
        write_all_at(file.as_fd(), &contents, at)?;
        Ok(begin.elapsed())
    })? / pages;
    let mut copies = vec![0_u8; contents.len() * WINDOWS];
    let copied = best(ROUNDS, |number| {
        let copy = &mut copies[window(number) * PAGE..][..contents.len()];
        let begin = Instant::now();
        copy.copy_from_slice(std::hint::black_box(&contents));
        std::hint::black_box(copy);
        Ok(begin.elapsed())
    })?;
    inputs.copy_bytes_per_s = contents.len() as f64 * 1e9 / copied.max(1.0);
    let timed = |touch: &dyn Fn(&Mapping) -> io::Result<()>| {
        best(ROUNDS, |number| {
            let mapping = Mapping::private(&file, window(number), PAGES)?;
            let begin = Instant::now();
            touch(&mapping)?;
            Ok(begin.elapsed())
        })
    };
    inputs.map_ahead_ns = timed(&|mapping| mapping.advise(Advice::LinuxPopulateRead))? / pages;
    inputs.copy_ahead_ns = timed(&|mapping| mapping.advise(Advice::LinuxPopulateWrite))? / pages;
    let faults = pages / FAULT_AROUND as f64;
    inputs.map_fault_ns = timed(&|mapping| {
        mapping.read_each(FAULT_AROUND);
        Ok(())
    })? / faults;
    inputs.copy_fault_ns = timed(&|mapping| {
        mapping.write_each();
        Ok(())
    })? / pages;
    inputs.recopy_ns = best(ROUNDS, |number| {
        let mapping = Mapping::private(&file, window(number), PAGES)?;
        mapping.advise(Advice::LinuxPopulateRead)?;
        let begin = Instant::now();
        mapping.advise(Advice::LinuxPopulateWrite)?;
        Ok(begin.elapsed())
    })? / pages;
    inputs.read_ns = best(ROUNDS, |number| {
        let mapping = Mapping::private(&file, window(number), PAGES)?;
        let begin = Instant::now();
        mapping.read_from(&file, window(number))?;
        Ok(begin.elapsed())
    })? / pages;
    inputs.mapping_ns = best(ROUNDS, |number| {
        let begin = Instant::now();
        let mappings = (0..MAPPINGS).map(|index| {
            // Of every other page, so that the kernel does not join them.
            Mapping::bare(&file, window(number) + 2 * index, 1)
        });
        let mappings = mappings.collect::<io::Result<Vec<_>>>()?;
        drop(mappings);
        Ok(begin.elapsed())
    })? / MAPPINGS as f64;
    inputs.lone_map_fault_ns = lone(&file, &mut copies, |mapping, page| mapping.read(page))?;
    inputs.lone_copy_fault_ns = lone(&file, &mut copies, |mapping, page| mapping.write(page))?;
    Ok(())
}

/// The usual time of a fault between which other memory is used, so that little of what the kernel needs for it is in the
/// processor's caches.
fn lone(file: &OwnedFd, other: &mut [u8], touch: impl Fn(&Mapping, usize)) -> io::Result<f64> {
    let mapping = Mapping::private(file, 0, LONE_FAULTS * FAULT_AROUND)?;
    let mut took: Vec<f64> = (0..LONE_FAULTS)
        .map(|number| {
            let part = other.len() / LONE_FAULTS;
            for byte in other[number * part..][..part].iter_mut().step_by(64) {
                *byte = byte.wrapping_add(1);
            }
            let begin = Instant::now();
            touch(&mapping, number * FAULT_AROUND);
            begin.elapsed().as_nanos() as f64
        })
        .collect();
    took.sort_by(f64::total_cmp);
    Ok(took[LONE_FAULTS / 2])
}

/// A fault that a thread of this process answers: what the way there and back takes, without the page itself.
fn handler_fault() -> io::Result<f64> {
    let file = rustix::fs::memfd_create("rouse-measure", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, (HANDLED * PAGE) as u64)?;
    let mapping = Mapping::private(&file, 0, HANDLED)?;
    let device = Device::open()?;
    let descriptor = device.create()?;
    let uffd = Userfaultfd::new(descriptor.as_fd());
    uffd.enable(Events::None)?;
    let base = mapping.address();
    uffd.register(base, (HANDLED * PAGE) as u64, Neighbours::Mapped)?;
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    // When it ends, whatever the reason, the descriptor is closed, and nobody waits for a page any more.
    let (file, stop) = (&file, &stop);
    let answer = move |descriptor: OwnedFd| -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        let uffd = Userfaultfd::new(descriptor.as_fd());
        let page = vec![7_u8; PAGE];
        loop {
            let mut polled = [
                PollFd::new(&descriptor, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            poll(&mut polled, None)?;
            if polled[1].revents().contains(PollFlags::IN) {
                return Ok(());
            }
            let mut events = Vec::new();
            uffd.read(&mut events)?;
            for event in events {
                if let Event::Fault { address, .. } = event {
                    let page_address = address & !(PAGE_SIZE - 1);
                    let index = (page_address - base) / PAGE_SIZE;
                    write_all_at(file.as_fd(), &page, index * PAGE_SIZE)?;
                    uffd.wake(page_address, PAGE_SIZE)?;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let handler = scope.spawn(move || answer(descriptor));
        let mut took = f64::INFINITY;
        for page in 0..HANDLED {
            let begin = Instant::now();
            mapping.read(page);
            took = took.min(begin.elapsed().as_nanos() as f64);
        }
        rustix::io::write(stop, &1_u64.to_ne_bytes())?;
        match handler.join() {
            Ok(result) => result.map(|()| took),
            Err(_) => Err(io::Error::other("the handler panicked")),
        }
    })
}

fn codec_cost(codec: CodecId) -> io::Result<CodecCost> {
    let codecs = Codecs::software();
    let codec = codecs.get(codec);
    let pieces: Vec<Vec<u8>> = (0..PIECES).map(|seed| sample(PIECE, seed as u64)).collect();
    let pages = (PIECES * PIECE / PAGE) as f64;
    let mut stored: Vec<Vec<u8>> = vec![Vec::new(); PIECES];
    let encode_ns = best(CODEC_ROUNDS, |_| {
        let begin = Instant::now();
        for (plain, stored) in pieces.iter().zip(&mut stored) {
            codec.encode(plain, None, stored)?;
        }
        Ok(begin.elapsed())
    })?;
    let mut plain = vec![0; PIECE];
    let decode_ns = best(CODEC_ROUNDS, |_| {
        let begin = Instant::now();
        for stored in &stored {
            codec.decode(stored, None, &mut plain)?;
            // What is filled has been verified.
            std::hint::black_box(blake3::keyed_hash(&[0; 32], &plain));
        }
        Ok(begin.elapsed())
    })?;
    Ok(CodecCost {
        codec: codec_name(codec.id()).into(),
        encode_ns: encode_ns / pages,
        decode_ns: decode_ns / pages,
    })
}

/// Name of a codec in reports and in [`CodecCost`].
pub(super) fn codec_name(codec: CodecId) -> &'static str {
    match codec {
        CodecId::None => "none",
        CodecId::Lz4 => "lz4",
        CodecId::Zstd => "zstd",
        CodecId::Deflate => "deflate",
    }
}

/// Bytes that are like those of a process: small numbers, pointers, text, and some that are random.
fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        match random() % 4 {
            0 => bytes.extend((random() % 1000).to_le_bytes()),
            1 => bytes.extend((0x7f12_3400_0000 + random() % (1 << 20) * 16).to_le_bytes()),
            2 => bytes.extend(format!("name_{} = value ", random() % 5000).bytes()),
            _ => bytes.extend(random().to_le_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

/// Reads past the page cache from a file of our own on the store's disk.
fn disk(store: &Path) -> io::Result<Transfer> {
    let path = store.join(".tmp-measure");
    let file = File::create(&path);
    let open = |flags: OFlags| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits() as i32);
        options.open(&path)
    };
    let reader = open(OFlags::DIRECT).or_else(|_| open(OFlags::empty()));
    // Before anything is written: nothing is left of it, whenever the node is killed.
    let _ = std::fs::remove_file(&path);
    read_disk(&file?, &reader?)
}

fn read_disk(file: &File, reader: &File) -> io::Result<Transfer> {
    let contents = sample(1 << 20, 3);
    for at in (0..DISK_BYTES).step_by(contents.len()) {
        file.write_all_at(&contents, at as u64)?;
    }
    file.sync_all()?;
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut buffer = Aligned::new(DISK_READ)?;
    let begin = Instant::now();
    let mut small = f64::INFINITY;
    for index in 0..DISK_SMALL {
        let at = (index * 7919 % (DISK_BYTES / PAGE)) * PAGE;
        let one = Instant::now();
        reader.read_exact_at(&mut buffer.bytes()[..PAGE], at as u64)?;
        small = small.min(one.elapsed().as_nanos() as f64);
        if begin.elapsed() > DISK_PATIENCE {
            break;
        }
    }
    let (begin, mut read) = (Instant::now(), 0);
    while read < DISK_BYTES && begin.elapsed() < DISK_PATIENCE {
        reader.read_exact_at(buffer.bytes(), read as u64)?;
        read += DISK_READ;
    }
    Ok(Transfer {
        latency_ns: small,
        bytes_per_s: read as f64 / begin.elapsed().as_secs_f64().max(1e-9),
    })
}

/// Memory for direct reads.
struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> io::Result<Self> {
        let bytes = vec![0; len + PACK_ALIGN as usize];
        let skip = bytes.as_ptr().align_offset(PACK_ALIGN as usize);
        if skip > PACK_ALIGN as usize {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { bytes, skip, len })
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + self.len]
    }
}
