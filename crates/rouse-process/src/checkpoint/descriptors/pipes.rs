//! Pipes between threads of the process: both ends are its own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rouse_snapshot::model::DescriptionKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::checkpoint::error::{CheckpointError, Obstacle};

/// One end of a pipe.
#[derive(Debug)]
pub(super) struct PipeEnd {
    /// Index of its description.
    pub(super) description: usize,
    /// A descriptor of the process for it.
    pub(super) fd: i32,
    /// What both ends have in common.
    pub(super) inode: u64,
    /// Status flags.
    pub(super) flags: u32,
    /// A duplicate of it.
    pub(super) pipe: OwnedFd,
}

impl PipeEnd {
    fn is_write_end(&self) -> bool {
        self.flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32
    }
}

/// Says for each end what it is: (index of the description, kind).
pub(super) fn resolve(ends: &[PipeEnd]) -> Result<Vec<(usize, DescriptionKind)>, CheckpointError> {
    let mut pipes: BTreeMap<u64, Vec<&PipeEnd>> = BTreeMap::new();
    for end in ends {
        pipes.entry(end.inode).or_default().push(end);
    }
    let mut resolved = Vec::with_capacity(ends.len());
    for (pipe, ends) in (0u32..).zip(pipes.values()) {
        let has_writer = ends.iter().any(|end| end.is_write_end());
        let has_reader = ends.iter().any(|end| !end.is_write_end());
        let has_both_ends = has_reader && has_writer;
        let mut content_read = false;
        for end in ends {
            refuse_unusual(end)?;
            if !has_both_ends && !other_end_is_closed(end)? {
                return Err(Obstacle::descriptor(end.fd, "pipe to another process").into());
            }
            let capacity = rustix::pipe::fcntl_getpipe_size(&end.pipe)
                .map_err(CheckpointError::kernel("fcntl(F_GETPIPE_SZ)"))?;
            let mut held = Vec::new();
            if !end.is_write_end() && !content_read {
                content_read = true;
                held = content(&end.pipe, capacity)?;
            }
            let kind = DescriptionKind::Pipe {
                pipe,
                write_end: end.is_write_end(),
                content: held,
                capacity: capacity as u32,
            };
            resolved.push((end.description, kind));
        }
    }
    Ok(resolved)
}

fn refuse_unusual(end: &PipeEnd) -> Result<(), Obstacle> {
    if end.flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32 {
        return Err(Obstacle::descriptor(
            end.fd,
            "pipe that is open for reading and writing at once",
        ));
    }
    if end.flags & libc::O_DIRECT as u32 != 0 {
        return Err(Obstacle::descriptor(end.fd, "pipe in packet mode"));
    }
    Ok(())
}

/// The kernel reports a pipe without a writer as hung up, one without a reader as an error.
fn other_end_is_closed(end: &PipeEnd) -> Result<bool, CheckpointError> {
    let mut polled = [PollFd::new(&end.pipe, PollFlags::empty())];
    poll(
        &mut polled,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .map_err(CheckpointError::kernel("poll"))?;
    Ok(polled[0]
        .revents()
        .intersects(PollFlags::HUP | PollFlags::ERR))
}

/// What is in a pipe, which stays in it: `tee` makes a second pipe that holds the same.
fn content(pipe: &OwnedFd, capacity: usize) -> Result<Vec<u8>, CheckpointError> {
    let mut len: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a variable of that type.
    if unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut len) } < 0 {
        return Err(CheckpointError::kernel("ioctl(FIONREAD)")(
            io::Error::last_os_error(),
        ));
    }
    let mut content = vec![0; len as usize];
    if content.is_empty() {
        return Ok(content);
    }
    let (copy, into) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(CheckpointError::kernel("pipe2"))?;
    rustix::pipe::fcntl_setpipe_size(&into, capacity)
        .map_err(CheckpointError::kernel("fcntl(F_SETPIPE_SZ)"))?;
    // Everything is there already and has room, so nothing blocks.
    let held = rustix::pipe::tee(pipe, &into, content.len(), SpliceFlags::NONBLOCK)
        .map_err(CheckpointError::kernel("tee"))?;
    drop(into);
    content.truncate(held);
    let mut done = 0;
    while done < content.len() {
        done += match rustix::io::read(&copy, &mut content[done..]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(CheckpointError::kernel("read")(error)),
        };
    }
    content.truncate(done);
    Ok(content)
}
