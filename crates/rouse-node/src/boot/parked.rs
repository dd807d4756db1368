//! The connection on which the parked request of a copy waits for its answer.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

/// Of the kind that the sandbox has.
#[derive(Debug)]
pub enum ParkedStream {
    /// Inside of the sandbox.
    Loopback(TcpStream),
    /// Carried out of it.
    Carried(Carried),
}

/// A connection of a runtime that somebody carries out of its sandbox.
#[derive(Debug)]
pub struct Carried {
    /// The client's port.
    pub port: u16,
    /// What comes of it.
    pub stream: UnixStream,
}

impl ParkedStream {
    /// The client's port.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn port(&self) -> io::Result<u16> {
        match self {
            Self::Loopback(stream) => Ok(stream.peer_addr()?.port()),
            Self::Carried(carried) => Ok(carried.port),
        }
    }

    /// As sockets have it.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Loopback(stream) => stream.set_nonblocking(on),
            Self::Carried(carried) => carried.stream.set_nonblocking(on),
        }
    }

    /// Writes what is taken at once.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Loopback(stream) => Write::write(&mut { stream }, bytes),
            Self::Carried(carried) => Write::write(&mut &carried.stream, bytes),
        }
    }

    /// Waits until something can be read, or the client is gone.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub async fn readable(self) -> io::Result<()> {
        self.set_nonblocking(true)?;
        match self {
            Self::Loopback(stream) => tokio::net::TcpStream::from_std(stream)?.readable().await,
            Self::Carried(carried) => {
                let stream = tokio::net::UnixStream::from_std(carried.stream)?;
                stream.readable().await
            }
        }
    }
}

impl From<TcpStream> for ParkedStream {
    fn from(stream: TcpStream) -> Self {
        Self::Loopback(stream)
    }
}
