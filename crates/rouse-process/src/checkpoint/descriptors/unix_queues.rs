//! What is queued in connected UNIX sockets.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::socket_options;
use super::socket_pairs::UnixSocket;
use crate::checkpoint::Afterwards;
use crate::checkpoint::error::{CheckpointError, Obstacle};

/// Larger than any message: `net.core.wmem_max` is about 208 KiB.
const MESSAGE_MAX: usize = 1 << 20;
/// Descriptors in one message, at most (`SCM_MAX_FD`).
const RIGHTS_MAX: usize = 253;

/// Everything that waits to be read: messages, or one piece for a stream. It is taken from a process that ends, and stays
/// where it is in one that goes on.
pub(super) fn read(
    socket: &UnixSocket,
    afterwards: Afterwards,
) -> Result<Vec<Vec<u8>>, CheckpointError> {
    match afterwards {
        Afterwards::Ends => receive_all(socket, RecvFlags::DONTWAIT),
        Afterwards::GoesOn => {
            let _place = PeekPlace::at_the_start(&socket.socket)?;
            receive_all(socket, RecvFlags::DONTWAIT | RecvFlags::PEEK)
        }
    }
}

fn receive_all(socket: &UnixSocket, flags: RecvFlags) -> Result<Vec<Vec<u8>>, CheckpointError> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS_MAX), ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &socket.socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            flags,
        );
        let bytes = match received {
            Ok(received) => received.bytes,
            // Empty; or an error that its owner would have read, like a reset.
            Err(_) => return Ok(messages),
        };
        if ancillary
            .drain()
            .any(|message| matches!(message, RecvAncillaryMessage::ScmRights(_)))
        {
            return Err(
                Obstacle::descriptor(socket.fd, "descriptors in flight on a UNIX socket").into(),
            );
        }
        // The end of a stream; datagrams may be empty.
        if bytes == 0 && socket.kind != libc::SOCK_DGRAM {
            return Ok(messages);
        }
        match messages.last_mut() {
            Some(stream) if socket.kind == libc::SOCK_STREAM => {
                stream.extend_from_slice(&buffer[..bytes])
            }
            _ => messages.push(buffer[..bytes].to_vec()),
        }
    }
}

/// Lets each look into a queue go on where the one before has ended (`SO_PEEK_OFF`), until it is dropped.
///
/// An empty datagram is seen once: the kernel counts bytes, and marks it instead. A second copy of the same queue lacks it.
struct PeekPlace<'a> {
    socket: &'a OwnedFd,
    before: i32,
}

impl<'a> PeekPlace<'a> {
    fn at_the_start(socket: &'a OwnedFd) -> Result<Self, CheckpointError> {
        let before = socket_options::get_number(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
            .map_err(CheckpointError::kernel("getsockopt(SO_PEEK_OFF)"))?;
        let place = Self { socket, before };
        place
            .set(0)
            .map_err(CheckpointError::kernel("setsockopt(SO_PEEK_OFF)"))?;
        Ok(place)
    }

    fn set(&self, offset: i32) -> std::io::Result<()> {
        // SAFETY: the option is one int, which is passed with its size.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEEK_OFF,
                (&raw const offset).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for PeekPlace<'_> {
    fn drop(&mut self) {
        // What could be set to 0 can be set to what it was.
        let _ = self.set(self.before);
    }
}
