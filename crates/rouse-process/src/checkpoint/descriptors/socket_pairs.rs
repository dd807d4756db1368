//! Connected UNIX sockets of a process that ends: what is queued in them, and which belong together.
//!
//! Not every kernel says who a socket's peer is. But the process never runs again, so its sockets may be
//! used: after all queues are read, every socket sends its own number, and whoever receives it is the peer.
//! Those of a process that goes on must not be used: see [`super::unix_peers`].

use std::os::fd::OwnedFd;

use rouse_snapshot::model::DescriptionKind;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, send};

use super::{socket_options, unix_queues};
use crate::checkpoint::Afterwards;
use crate::checkpoint::error::{CheckpointError, Obstacle};

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
    let take = |socket: &UnixSocket| unix_queues::read(socket, Afterwards::Ends);
    let queues = sockets.iter().map(take).collect::<Result<Vec<_>, _>>()?;
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
    let hears = |listener: usize, speaker: usize| heard[listener].contains(&(speaker as u32));
    let all = 0..sockets.len();
    let mut peers = Vec::with_capacity(sockets.len());
    for (own, socket) in sockets.iter().enumerate() {
        let is_peer = |peer: &usize| *peer != own && (hears(own, *peer) || hears(*peer, own));
        let peer = all.clone().find(is_peer);
        if peer.is_some_and(|peer| !hears(own, peer) || !hears(peer, own)) {
            return Err(half_closed(socket));
        }
        peers.push(peer);
    }
    Ok(kinds(sockets, &peers, queues))
}

pub(super) fn half_closed(socket: &UnixSocket) -> CheckpointError {
    Obstacle::descriptor(socket.fd, "half-closed socket pair").into()
}

/// Pairs, and those whose peer (by its place among the sockets) is gone: (index of the description, kind).
pub(super) fn kinds(
    sockets: &[UnixSocket],
    peers: &[Option<usize>],
    queues: Vec<Vec<Vec<u8>>>,
) -> Vec<(usize, DescriptionKind)> {
    let mut pairs = 0;
    let mut pair_of = vec![None; sockets.len()];
    let mut resolved = Vec::with_capacity(sockets.len());
    for (own, (socket, queue)) in sockets.iter().zip(queues).enumerate() {
        let kind = match peers[own] {
            Some(peer) => {
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
            None => DescriptionKind::ClosedConnection {
                family: libc::AF_UNIX,
                kind: socket.kind,
                queue,
            },
        };
        resolved.push((socket.description, kind));
    }
    resolved
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
