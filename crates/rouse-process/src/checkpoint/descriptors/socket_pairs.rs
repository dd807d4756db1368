//! Connected UNIX sockets: what is queued in them, and which belong together.
//!
//! The kernel does not say directly who a socket's peer is. But the process never runs again, so its sockets may be
//! used: after all queues are read, every socket sends its own number, and whoever receives it is the peer.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rouse_snapshot::model::DescriptionKind;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::socket_options;
use crate::checkpoint::error::{CheckpointError, Obstacle};

/// Larger than any message: `net.core.wmem_max` is about 208 KiB.
const MESSAGE_MAX: usize = 1 << 20;
/// Descriptors in one message, at most (`SCM_MAX_FD`).
const RIGHTS_MAX: usize = 253;

/// A connected UNIX socket of the process.
#[derive(Debug)]
pub(super) struct UnixSocket {
    /// Index of its description.
    pub(super) description: usize,
    /// A descriptor of the process for it.
    pub(super) fd: i32,
    /// `SOCK_*` type.
    pub(super) kind: i32,
    /// A duplicate of it.
    pub(super) socket: OwnedFd,
}

/// Says for each socket what it is: (index of the description, kind).
pub(super) fn resolve(
    sockets: &[UnixSocket],
) -> Result<Vec<(usize, DescriptionKind)>, CheckpointError> {
    let queues = sockets.iter().map(drain).collect::<Result<Vec<_>, _>>()?;
    for (number, socket) in (0u32..).zip(sockets) {
        // A socket whose peer is gone, or shut down, cannot send.
        let _ = send(
            &socket.socket,
            &number.to_ne_bytes(),
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
    }
    let heard = sockets
        .iter()
        .map(heard_from)
        .collect::<Result<Vec<_>, _>>()?;
    let mut resolved = Vec::with_capacity(sockets.len());
    let mut pairs = 0;
    let mut pair_of = vec![None; sockets.len()];
    for (own, (socket, queue)) in sockets.iter().zip(queues).enumerate() {
        let hears = |listener: usize, speaker: usize| heard[listener].contains(&(speaker as u32));
        let peer = (0..sockets.len())
            .find(|peer| *peer != own && (hears(own, *peer) || hears(*peer, own)));
        let kind = match peer {
            Some(peer) if hears(own, peer) && hears(peer, own) => {
                let pair = *pair_of[own].get_or_insert_with(|| {
                    pairs += 1;
                    pairs - 1
                });
                pair_of[peer] = Some(pair);
                DescriptionKind::SocketPair {
                    pair,
                    second: peer < own,
                    kind: socket.kind,
                    queue,
                    options: socket_options::all(&socket.socket, libc::AF_UNIX),
                }
            }
            Some(_) => {
                return Err(Obstacle::descriptor(socket.fd, "half-closed socket pair").into());
            }
            None => DescriptionKind::ClosedConnection {
                family: libc::AF_UNIX,
                kind: socket.kind,
                queue,
            },
        };
        resolved.push((socket.description, kind));
    }
    Ok(resolved)
}

/// Takes everything that waits to be read: messages, or one piece for a stream.
fn drain(socket: &UnixSocket) -> Result<Vec<Vec<u8>>, CheckpointError> {
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
            RecvFlags::DONTWAIT,
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

/// Numbers of the sockets that sent theirs to this one.
fn heard_from(socket: &UnixSocket) -> Result<Vec<u32>, CheckpointError> {
    let mut numbers = Vec::new();
    loop {
        let mut number = [0u8; 4];
        match rustix::net::recv(&socket.socket, number.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, 4)) => numbers.push(u32::from_ne_bytes(number)),
            Ok(_) | Err(Errno::AGAIN | Errno::CONNRESET | Errno::NOTCONN) => return Ok(numbers),
            Err(error) => return Err(CheckpointError::kernel("recv")(error)),
        }
    }
}
