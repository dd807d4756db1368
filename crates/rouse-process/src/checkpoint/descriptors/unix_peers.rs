//! Connected UNIX sockets of a process that goes on: nothing may be sent or taken, so the kernel is asked who belongs
//! together (`sock_diag(7)`, which kernels have as `CONFIG_UNIX_DIAG`).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rouse_snapshot::model::DescriptionKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::socket_pairs::{UnixSocket, half_closed, kinds};
use super::unix_queues;
use crate::checkpoint::Afterwards;
use crate::checkpoint::error::{CheckpointError, Obstacle};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// Headers of a netlink message, and of the answer in it (`struct unix_diag_msg`).
const NETLINK_HEADER: usize = 16;
const ANSWER: usize = 16;

/// Says for each socket what it is: (index of the description, kind). Changes nothing.
pub(super) fn resolve(
    pid: i32,
    sockets: &[UnixSocket],
) -> Result<Vec<(usize, DescriptionKind)>, CheckpointError> {
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let inodes = sockets.iter().map(inode).collect::<Result<Vec<_>, _>>()?;
    let places: HashMap<u32, usize> = inodes.iter().copied().zip(0..).collect();
    let path = format!("/proc/{pid}/ns/net");
    let namespace: OwnedFd = std::fs::File::open(&path)
        .map_err(|source| CheckpointError::Read { path, source })?
        .into();
    // A thread of its own enters the network namespace, and ends there.
    let peers = std::thread::scope(|scope| {
        let ask = || peers(&namespace, &inodes);
        let asked = scope.spawn(ask).join();
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let peers = peers.map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT) => {
            let reason =
                "connected UNIX socket, whose peer this kernel does not tell (CONFIG_UNIX_DIAG)";
            Obstacle::descriptor(sockets[0].fd, reason).into()
        }
        _ => CheckpointError::kernel("sock_diag")(source),
    })?;
    let mut found = Vec::with_capacity(sockets.len());
    let mut queues = Vec::with_capacity(sockets.len());
    for (socket, peer) in sockets.iter().zip(peers) {
        // One that is not the process's own is as good as gone.
        let peer = peer.and_then(|inode| places.get(&inode).copied());
        let ends = ends(&socket.socket).map_err(CheckpointError::kernel("poll"))?;
        let is_over = ends.contains(PollFlags::HUP);
        if !is_over && peer.is_some() && ends.contains(PollFlags::RDHUP) {
            return Err(half_closed(socket));
        }
        found.push(peer.filter(|_| !is_over));
        queues.push(unix_queues::read(socket, Afterwards::GoesOn)?);
    }
    Ok(kinds(sockets, &found, queues))
}

fn inode(socket: &UnixSocket) -> Result<u32, CheckpointError> {
    let stat = rustix::fs::fstat(&socket.socket).map_err(CheckpointError::kernel("fstat"))?;
    // `sock_diag` knows them by 32 bits, too.
    Ok(stat.st_ino as u32)
}

fn ends(socket: &OwnedFd) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once))?;
    Ok(polled[0].revents())
}

/// The inode of each socket's peer, if it has one.
fn peers(namespace: &OwnedFd, inodes: &[u32]) -> io::Result<Vec<Option<u32>>> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let channel = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    inodes.iter().map(|inode| peer(&channel, *inode)).collect()
}

fn peer(channel: &OwnedFd, inode: u32) -> io::Result<Option<u32>> {
    rustix::net::send(channel, &question(inode), SendFlags::empty())?;
    let mut buffer = [0u8; 4096];
    let (len, _) = rustix::net::recv(channel, buffer.as_mut_slice(), RecvFlags::empty())?;
    answer(&buffer[..len])
}

/// `struct nlmsghdr`, then `struct unix_diag_req`.
fn question(inode: u32) -> [u8; 40] {
    const REQUEST: u16 = 1;
    const ANY: u32 = !0;
    let mut bytes = [0; 40];
    let mut at = 0;
    let mut put = |value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
        at += value.len();
    };
    put(&40u32.to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&REQUEST.to_ne_bytes());
    put(&[0; 8]);
    put(&[libc::AF_UNIX as u8, 0, 0, 0]);
    put(&ANY.to_ne_bytes());
    put(&inode.to_ne_bytes());
    put(&UDIAG_SHOW_PEER.to_ne_bytes());
    // No cookie.
    put(&ANY.to_ne_bytes());
    put(&ANY.to_ne_bytes());
    bytes
}

fn answer(bytes: &[u8]) -> io::Result<Option<u32>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let half = |at: usize| {
        let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
        found
            .map(|bytes| u16::from_ne_bytes(*bytes))
            .ok_or_else(malformed)
    };
    let word = |at: usize| {
        let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
        found
            .map(|bytes| u32::from_ne_bytes(*bytes))
            .ok_or_else(malformed)
    };
    if half(4)? == libc::NLMSG_ERROR as u16 {
        let error = word(NETLINK_HEADER)? as i32;
        return Err(io::Error::from_raw_os_error(-error));
    }
    let end = (word(0)? as usize).min(bytes.len());
    let mut at = NETLINK_HEADER + ANSWER;
    while at + 4 <= end {
        let (len, kind) = (usize::from(half(at)?), half(at + 2)?);
        if kind == UNIX_DIAG_PEER {
            // One that is closed has no inode any more.
            return word(at + 4).map(|inode| (inode != 0).then_some(inode));
        }
        at += len.max(4).next_multiple_of(4);
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn the_kernel_tells_who_belongs_together() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (c, d) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let inode = |fd: i32| {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            let link = link.to_string_lossy().into_owned();
            link.trim_start_matches("socket:[")
                .trim_end_matches(']')
                .parse::<u32>()
                .unwrap()
        };
        let inodes: Vec<u32> = [a.as_raw_fd(), b.as_raw_fd(), c.as_raw_fd(), d.as_raw_fd()]
            .map(inode)
            .to_vec();
        let own: OwnedFd = std::fs::File::open("/proc/self/ns/net").unwrap().into();
        let ask = |inodes: Vec<u32>| {
            let own = own.try_clone().unwrap();
            std::thread::spawn(move || peers(&own, &inodes))
                .join()
                .unwrap()
        };
        let expected = [1, 0, 3, 2].map(|at: usize| Some(inodes[at])).to_vec();
        assert_eq!(ask(inodes.clone()).unwrap(), expected);
        drop(b);
        assert_eq!(ask(vec![inodes[0]]).unwrap(), vec![None]);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_refused() {
        let mut whole = [0; 40];
        whole[0] = 40;
        whole[4] = SOCK_DIAG_BY_FAMILY as u8;
        whole[32] = 8;
        whole[34] = UNIX_DIAG_PEER as u8;
        whole[36] = 7;
        assert_eq!(answer(&whole).unwrap(), Some(7));
        for len in 0..6 {
            assert!(answer(&whole[..len]).is_err(), "{len}");
        }
        for len in 6..40 {
            assert_ne!(answer(&whole[..len]).ok().flatten(), Some(7), "{len}");
        }
    }
}
