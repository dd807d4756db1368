//! What a VMM sends when it connects: one message with its regions and its userfaultfd.
//!
//! Firecracker sends JSON without a length before it or an end behind it, and the descriptor with it. Which part of a stream
//! a descriptor comes with is not sure; so whatever comes is gathered until it is JSON and a descriptor is there.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::socket_peercred,
};

use super::HandshakeError;
use super::pages::{Regions, SentRegion};

/// More than this is no list of regions.
const MOST_BYTES: usize = 64 << 10;
/// Descriptors that are taken from one message, to be closed if they are too many.
const MOST_DESCRIPTORS: usize = 8;

/// A VMM that is to be served.
#[derive(Debug)]
pub struct Handshake {
    /// Its memory.
    pub regions: Regions,
    /// Watches its memory.
    pub uffd: OwnedFd,
    /// Its process, for whoever wants to end it.
    pub pid: Option<i32>,
}

/// Receives it, for a memory file of so many pages. Waits no longer than `patience`.
///
/// # Errors
/// See [`HandshakeError`].
pub fn receive(
    stream: &UnixStream,
    pages: u64,
    patience: Duration,
) -> Result<Handshake, HandshakeError> {
    let deadline = Instant::now() + patience;
    let pid = socket_peercred(stream)
        .ok()
        .map(|peer| peer.pid.as_raw_pid());
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        wait(stream, deadline)?;
        gather(stream, &mut text, &mut descriptors)?;
        match serde_json::from_slice::<Vec<SentRegion>>(&text) {
            Ok(sent) if descriptors.len() == 1 => {
                let regions = Regions::new(&sent, pages)?;
                let uffd = descriptors.remove(0);
                return Ok(Handshake { regions, uffd, pid });
            }
            // The descriptor may come with what is still to be read.
            Ok(_) if descriptors.is_empty() => {}
            Ok(_) => {
                let found = descriptors.len();
                return Err(HandshakeError::Descriptors { found });
            }
            Err(error) if error.is_eof() => {}
            Err(error) => return Err(HandshakeError::Json(error)),
        }
    }
}

fn wait(stream: &UnixStream, deadline: Instant) -> Result<(), HandshakeError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| HandshakeError::Timeout)?;
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(HandshakeError::Timeout),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(HandshakeError::Receive(error.into())),
        }
    }
}

fn gather(
    stream: &UnixStream,
    text: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<(), HandshakeError> {
    let mut bytes = [0; 4096];
    let mut space =
        [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = match recvmsg(
        stream,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut control,
        flags,
    ) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
        Err(error) => return Err(HandshakeError::Receive(error.into())),
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if descriptors.len() > 1 {
        let found = descriptors.len();
        return Err(HandshakeError::Descriptors { found });
    }
    if received.bytes == 0 {
        return Err(HandshakeError::Closed);
    }
    text.extend_from_slice(&bytes[..received.bytes]);
    match text.len() > MOST_BYTES {
        true => Err(HandshakeError::TooLong { most: MOST_BYTES }),
        false => Ok(()),
    }
}
