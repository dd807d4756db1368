//! How a connection of the guest reaches the node.
//!
//! ```text
//!  in a directory:  dial(ports) ── connect ──────────> Unix socket named as the host's port, where the node listens
//!  handed over:     dial(ports) ── socketpair ── one end, and both ports ──> Connections::accept
//! ```
//!
//! The second way is for a VMM in its jail: it can name no file, so no socket either. It needs no answer from the node, so that
//! a node that is slow does not hold the guest's other devices up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rouse_sandbox::confine;
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::Ports;

/// The VMM's side of it.
#[derive(Debug)]
pub enum Dialer {
    /// To the socket in this directory that has the port for a name.
    Directory(PathBuf),
    /// To whoever has the other end of this socket.
    Handed {
        /// Of [`Connections::pair`].
        node: OwnedFd,
        /// Where somebody listens; other ports refuse connections.
        ports: Vec<u32>,
    },
}

impl Dialer {
    /// A socket whose other end is the node's, for a connection between these ports. Neither this nor the socket waits.
    ///
    /// # Errors
    /// If nobody listens, or the node does not take what is there already.
    pub fn dial(&self, ports: Ports) -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match self {
            Self::Directory(directory) => {
                let address = SocketAddrUnix::new(directory.join(ports.host.to_string()))?;
                // Where nobody accepts, the queue of the socket gets full, and this fails.
                let socket: OwnedFd =
                    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                rustix::net::connect(&socket, &address)?;
                Ok(socket.into())
            }
            Self::Handed { node, ports: open } => {
                if !open.contains(&ports.host) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (ours, theirs) =
                    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                // Fails when the node does not take what is there already.
                confine::send(node, &ports.number().to_le_bytes(), &[theirs.as_fd()])?;
                Ok(ours.into())
            }
        }
    }
}

/// A connection that comes out of a machine.
#[derive(Debug)]
pub struct Incoming {
    /// Between which ports. The guest's kernel gives the guest's ports below 1024 to privileged processes only.
    pub ports: Ports,
    /// It waits for what it does.
    pub stream: UnixStream,
}

/// The node's side: takes the connections of one machine.
#[derive(Debug)]
pub struct Connections(OwnedFd);

impl Connections {
    /// The node's end and the VMM's.
    ///
    /// # Errors
    /// If the host has no more sockets.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = confine::pair()?;
        let flags = rustix::fs::fcntl_getfl(&theirs)?;
        rustix::fs::fcntl_setfl(&theirs, flags | OFlags::NONBLOCK)?;
        Ok((Self(ours), theirs))
    }

    /// Waits for the next connection. `None` when the VMM is gone.
    ///
    /// A VMM may be its guest's by now: what is no connection is passed over.
    ///
    /// # Errors
    /// If the system refuses to wait.
    pub fn accept(&self) -> io::Result<Option<Incoming>> {
        while let Some((bytes, descriptors)) = confine::receive(&self.0)? {
            let (Ok(ports), Ok([socket])) = (
                <[u8; 8]>::try_from(bytes),
                <[OwnedFd; 1]>::try_from(descriptors),
            ) else {
                continue;
            };
            if is_stream(&socket) {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                let ports = Ports::of_number(u64::from_le_bytes(ports));
                return Ok(Some(Incoming { ports, stream }));
            }
        }
        Ok(None)
    }
}

/// A connected one, not any other file: of those, reading may have effects.
fn is_stream(socket: &OwnedFd) -> bool {
    sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(socket) == Ok(false)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair(ports: &[u32]) -> (Connections, Dialer) {
        let (connections, node) = Connections::pair().expect("sockets can be made");
        let ports = ports.to_vec();
        (connections, Dialer::Handed { node, ports })
    }

    fn to(host: u32) -> Ports {
        Ports { guest: 2000, host }
    }

    #[test]
    fn a_connection_is_handed_over_with_its_ports() {
        let (connections, dialer) = pair(&[9001, 1024]);
        for port in [1024, 9001] {
            let ports = Ports {
                guest: 70_000 + port,
                host: port,
            };
            let mut guest = dialer.dial(ports).expect("somebody listens");
            guest.write_all(b"hello").expect("there is room");
            let found = connections.accept().expect("it can wait");
            let mut found = found.expect("the VMM is there");
            assert_eq!(found.ports, ports);
            drop(guest);
            let mut text = String::new();
            found.stream.read_to_string(&mut text).expect("it is text");
            assert_eq!(text, "hello");
        }
        let refused = dialer.dial(to(1025)).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(dialer);
        assert!(connections.accept().expect("it can wait").is_none());
    }

    #[test]
    fn a_node_that_takes_nothing_holds_nobody_up() {
        let (connections, dialer) = pair(&[1]);
        let Dialer::Handed { node, .. } = &dialer else {
            unreachable!("it was made so")
        };
        // The least that there can be: a few messages.
        sockopt::set_socket_send_buffer_size(node, 0).expect("it can be small");
        let mut open = Vec::new();
        let error = (0..100)
            .find_map(|_| dialer.dial(to(1)).map(|stream| open.push(stream)).err())
            .expect("the buffer is full");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!open.is_empty());
        assert!(connections.accept().expect("it can wait").is_some());
    }

    #[test]
    fn what_is_no_connection_is_passed_over() {
        let (connections, dialer) = pair(&[7]);
        let Dialer::Handed { node, .. } = &dialer else {
            unreachable!("it was made so")
        };
        let file = std::fs::File::open("/dev/null").expect("it is there");
        let listens = std::net::TcpListener::bind("127.0.0.1:0").expect("there are ports");
        let (datagrams, _other) =
            std::os::unix::net::UnixDatagram::pair().expect("sockets can be made");
        let (stream, _other) = UnixStream::pair().expect("sockets can be made");
        let port = to(7).number().to_le_bytes();
        let send = |bytes: &[u8], with: &[std::os::fd::BorrowedFd<'_>]| {
            confine::send(node, bytes, with).expect("it is taken");
        };
        send(&port, &[file.as_fd()]);
        send(&port, &[listens.as_fd()]);
        send(&port, &[datagrams.as_fd()]);
        send(&port, &[]);
        send(&port[..7], &[stream.as_fd()]);
        send(&[0; 9], &[stream.as_fd()]);
        send(&port, &[stream.as_fd(), stream.as_fd()]);
        let _guest = dialer.dial(to(7)).expect("somebody listens");
        drop(dialer);
        assert!(connections.accept().expect("it can wait").is_some());
        assert!(connections.accept().expect("it can wait").is_none());
    }
}
