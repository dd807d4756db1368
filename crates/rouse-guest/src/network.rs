//! The guest's two networks: loopback, and connections to the host.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, socket};

/// The host, for connections of this kind.
const HOST: u32 = libc::VMADDR_CID_HOST;

/// Connects to `port` of the host from one of `sources`, the first that is free.
pub fn to_host(port: u32, sources: impl Iterator<Item = u32>) -> Result<OwnedFd, String> {
    let failed = |errno| format!("cannot connect to port {port} of the host: {errno}");
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed)?;
    let mut bound = Err(Errno::EADDRINUSE);
    for source in sources {
        bound = bind(
            socket.as_raw_fd(),
            &VsockAddr::new(libc::VMADDR_CID_ANY, source),
        );
        if bound != Err(Errno::EADDRINUSE) {
            break;
        }
    }
    bound.map_err(failed)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port)).map_err(failed)?;
    Ok(socket)
}

/// Switches loopback on.
pub fn loopback() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot switch loopback on: {error}");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(libc::IFF_UP).expect("a small number"),
        },
    };
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` whose name ends with a zero and whose flags are set, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    Ok(())
}
