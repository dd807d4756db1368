//! Sockets: the runtime-API connection, other connections, and sockets that are not connected.

use std::os::fd::OwnedFd;

use rouse_snapshot::model::DescriptionKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::multicast::{self, Group};
use super::socket_options::{self, End};
use crate::checkpoint::Afterwards;
use crate::checkpoint::error::{CheckpointError, Obstacle};

/// Where the runtime API listens inside of every sandbox.
const API_PORT: u16 = 9001;
/// What `listen` is given by most programs that do not care; the kernel does not tell for UNIX sockets.
const DEFAULT_BACKLOG: i32 = 128;
const TCP_LISTEN: u8 = 10;
const TCP_CLOSE: u8 = 7;
/// Offset of `tcpi_sacked` in `struct tcp_info`: for a listening socket, its backlog.
const TCPI_SACKED: usize = 28;

/// What a socket is.
#[derive(Debug)]
pub(super) enum SocketKind {
    /// Something that can be said at once.
    Known(DescriptionKind),
    /// A connected UNIX socket, whose peer has to be found.
    ConnectedUnix {
        /// `SOCK_*` type.
        kind: i32,
    },
}

/// Says what `socket`, a duplicate of the descriptor `fd`, is.
pub(super) fn identify(
    socket: &OwnedFd,
    fd: i32,
    api_client_port: u16,
    multicast_groups: &[Group],
    afterwards: Afterwards,
) -> Result<SocketKind, CheckpointError> {
    let number = |name, call| {
        socket_options::get_number(socket, libc::SOL_SOCKET, name)
            .map_err(CheckpointError::kernel(call))
    };
    let family = number(libc::SO_DOMAIN, "getsockopt(SO_DOMAIN)")?;
    let kind = number(libc::SO_TYPE, "getsockopt(SO_TYPE)")?;
    let protocol = number(libc::SO_PROTOCOL, "getsockopt(SO_PROTOCOL)")?;
    let listening = number(libc::SO_ACCEPTCONN, "getsockopt(SO_ACCEPTCONN)")? != 0;
    let own = socket_options::address(socket, End::Own)
        .map_err(CheckpointError::kernel("getsockname"))?;
    let peer = socket_options::address(socket, End::Peer).ok();
    let is_ip = matches!(family, libc::AF_INET | libc::AF_INET6);
    if !is_ip && !matches!(family, libc::AF_UNIX | libc::AF_NETLINK) {
        return Err(Obstacle::descriptor(fd, format!("socket of address family {family}")).into());
    }
    if kind == libc::SOCK_RAW && family != libc::AF_NETLINK {
        return Err(Obstacle::descriptor(fd, "raw socket").into());
    }
    if let (true, Some(peer)) = (is_ip, &peer) {
        let ports = (socket_options::port(&own), socket_options::port(peer));
        if kind == libc::SOCK_STREAM && ports == (Some(api_client_port), Some(API_PORT)) {
            return Ok(SocketKind::Known(DescriptionKind::RuntimeApi {
                options: socket_options::all(socket, family),
            }));
        }
    }
    let tcp_info =
        socket_options::get(socket, libc::IPPROTO_TCP, libc::TCP_INFO).unwrap_or_default();
    // A TCP socket without a peer may be on its way to one.
    let connecting = is_ip
        && tcp_info
            .first()
            .is_some_and(|state| ![TCP_LISTEN, TCP_CLOSE].contains(state));
    if family == libc::AF_UNIX && peer.is_some() {
        return Ok(SocketKind::ConnectedUnix { kind });
    }
    let is_datagram = kind == libc::SOCK_DGRAM;
    // Reset by an earlier restore, which the program has not noticed yet.
    let reset = || match afterwards {
        Afterwards::Ends => socket_options::get_number(socket, libc::SOL_SOCKET, libc::SO_ERROR)
            .is_ok_and(|error| error == libc::ECONNRESET),
        // To be told the error is to take it.
        Afterwards::GoesOn => has_error(socket),
    };
    if is_ip && !is_datagram && (peer.is_some() || connecting || reset()) {
        return Ok(SocketKind::Known(DescriptionKind::ClosedConnection {
            family,
            kind,
            queue: Vec::new(),
        }));
    }
    let backlog = tcp_info
        .get(TCPI_SACKED..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| i32::from_ne_bytes(*bytes));
    let mut options = socket_options::all(socket, family);
    if is_ip && is_datagram {
        let memberships = multicast::memberships(socket, fd, family, multicast_groups)?;
        options.extend(memberships);
    }
    Ok(SocketKind::Known(DescriptionKind::Socket {
        family,
        kind,
        protocol,
        bound: is_bound(family, &own).then_some(own),
        peer: peer.filter(|_| is_ip && is_datagram),
        listen: listening.then_some(backlog.unwrap_or(DEFAULT_BACKLOG)),
        options,
    }))
}

/// Does an error wait to be told?
fn has_error(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

fn is_bound(family: i32, address: &[u8]) -> bool {
    match family {
        libc::AF_INET | libc::AF_INET6 => socket_options::port(address) != Some(0),
        // Only the family: no name.
        libc::AF_UNIX => address.len() > 2,
        // struct sockaddr_nl: family, padding, port id, groups.
        _ => address
            .get(4..12)
            .is_some_and(|rest| rest.iter().any(|byte| *byte != 0)),
    }
}
