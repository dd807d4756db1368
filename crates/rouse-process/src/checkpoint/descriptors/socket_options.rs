//! Reading what a socket is, and the options that were set on it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rouse_snapshot::model::SocketOption;

/// Options that are numbers, saved when they are not zero: zero is what a new socket has.
const NUMBERS: [(i32, i32); 14] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
];
/// Numbers that are one on a new socket.
const ONES: [(i32, i32); 5] = [
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
];
/// Options of more than a number, again zero on a new socket.
const STRUCTURES: [(i32, i32); 5] = [
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
];
/// Numbers whose default is a setting of the host: saved where keep-alive is on.
const KEEPALIVE: [i32; 3] = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT];

/// The raw value of an option.
pub(super) fn get(socket: &OwnedFd, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = [0u8; 256];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: getsockopt writes at most `len` bytes to `value`, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value[..len as usize].to_vec())
}

/// An option that is a number.
pub(super) fn get_number(socket: &OwnedFd, level: i32, name: i32) -> io::Result<i32> {
    let value = get(socket, level, name)?;
    let bytes = value
        .first_chunk::<{ size_of::<i32>() }>()
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(i32::from_ne_bytes(*bytes))
}

/// All options worth setting again. Those that the kind of socket does not have are left out.
pub(super) fn all(socket: &OwnedFd, family: i32) -> Vec<SocketOption> {
    let mut options = Vec::new();
    for (level, name) in NUMBERS.into_iter().chain(STRUCTURES) {
        match get(socket, level, name) {
            Ok(value) if value.iter().any(|byte| *byte != 0) => {
                options.push(SocketOption { level, name, value })
            }
            _ => {}
        }
    }
    let own_level = match family {
        libc::AF_INET => libc::IPPROTO_IP,
        _ => libc::IPPROTO_IPV6,
    };
    for (level, name) in ONES.into_iter().filter(|(level, _)| *level == own_level) {
        match get_number(socket, level, name) {
            Ok(value) if value != 1 => options.push(SocketOption {
                level,
                name,
                value: value.to_ne_bytes().to_vec(),
            }),
            _ => {}
        }
    }
    if get_number(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE).is_ok_and(|on| on != 0) {
        for name in KEEPALIVE {
            if let Ok(value) = get(socket, libc::IPPROTO_TCP, name) {
                options.push(SocketOption {
                    level: libc::IPPROTO_TCP,
                    name,
                    value,
                });
            }
        }
    }
    options.extend(buffer_sizes(socket));
    if family == libc::AF_INET6 {
        // Its default is a setting of the host.
        if let Ok(value) = get(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) {
            options.push(SocketOption {
                level: libc::IPPROTO_IPV6,
                name: libc::IPV6_V6ONLY,
                value,
            });
        }
    }
    options
}

/// Sizes of buffers, where the program has set them: others follow the host's settings and the traffic.
fn buffer_sizes(socket: &OwnedFd) -> Vec<SocketOption> {
    const SO_BUF_LOCK: i32 = 72;
    let locked = get_number(socket, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)]
        .into_iter()
        .filter(|(bit, _)| locked & bit != 0)
        .filter_map(|(_, name)| {
            // The kernel doubles what it is given.
            let size = get_number(socket, libc::SOL_SOCKET, name).ok()? / 2;
            Some(SocketOption {
                level: libc::SOL_SOCKET,
                name,
                value: size.to_ne_bytes().to_vec(),
            })
        })
        .collect()
}

/// Which end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Own,
    Peer,
}

/// The raw address of one end.
pub(super) fn address(socket: &OwnedFd, end: End) -> io::Result<Vec<u8>> {
    let mut address = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut len = address.len() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: both calls write at most `len` bytes to `address`, which has that many.
    let result = unsafe {
        match end {
            End::Own => libc::getsockname(fd, address.as_mut_ptr().cast(), &raw mut len),
            End::Peer => libc::getpeername(fd, address.as_mut_ptr().cast(), &raw mut len),
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(address[..(len as usize).min(address.len())].to_vec())
}

/// The port of an IP address.
pub(super) fn port(address: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*address.get(2..)?.first_chunk()?))
}
