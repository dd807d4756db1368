//! The runtime API's socket in a sandbox's network namespace, with a first connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use crate::API_PORT;

/// Pending connections of the runtime API.
const BACKLOG: i32 = 1024;

/// The sockets that a sandbox starts with.
#[derive(Debug)]
pub struct ApiSockets {
    /// Listens on 127.0.0.1:9001.
    pub listener: OwnedFd,
    /// The function's end of a connection to it.
    pub client: OwnedFd,
    /// The node's end.
    pub server: OwnedFd,
}

impl ApiSockets {
    /// Opens them in the caller's network namespace.
    ///
    /// The node's end of the connection made ahead ends by a reset: the kernel then remembers nothing of it, and the
    /// namespace is clean for the next sandbox. The listener's other connections end as usual: a runtime whose
    /// connection was reset before a checkpoint would be restored with the reset.
    pub fn open() -> io::Result<ApiSockets> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, API_PORT);
        let listener = TcpListener::bind(address)?;
        // The standard library listens with a backlog of 128.
        // SAFETY: listen on a live socket takes a number only.
        if unsafe { libc::listen(listener.as_fd().as_raw_fd(), BACKLOG) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let client = TcpStream::connect(address)?;
        let (server, _) = listener.accept()?;
        rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO))?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        Ok(ApiSockets {
            listener: listener.into(),
            client: client.into(),
            server: server.into(),
        })
    }
}
