//! One connection: the guest's end, and the socket of the node.
//!
//! ```text
//!  guest ── Data ──> to_host ── write ──> socket      at most ROOM bytes wait here; the guest knows, by `taken`,
//!                    (a buffer)                       how many have left
//!  guest <── Data ── read ─────────────── socket      nothing waits here but what a snapshot brought (`from_host`);
//!                                                     no more is read than the guest has room for
//! ```

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};

use super::packet::{Credit, MOST, Operation, Packet, Ports};

/// Bytes from the guest that may wait for the node. The guest is told.
pub const ROOM: u32 = 256 << 10;

/// Bytes from the node that a snapshot takes along: more than a socket holds, if the host's limits are the usual ones.
const MOST_UNREAD: usize = 1 << 20;

/// The guest sent more than it was told there is room for.
#[derive(Debug, thiserror::Error)]
#[error("a connection got more data than it has room for")]
pub struct OverCredit;

/// What the guest may still do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Closed {
    /// The guest takes no more.
    guest_receives: bool,
    /// The guest sends no more.
    guest_sends: bool,
    /// The node sends no more, and the guest was told.
    host_sends: bool,
}

/// All of a connection but its socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedConnection {
    ports: Ports,
    closed: Closed,
    /// From the guest, for the node.
    to_host: VecDeque<u8>,
    /// From the node, for the guest: what was in the socket.
    from_host: VecDeque<u8>,
    /// Bytes that have left `to_host`, modulo 2^32.
    taken: u32,
    /// The same, as the guest was told last.
    announced: u32,
    /// Bytes that were sent to the guest, modulo 2^32.
    sent: u32,
    /// What the guest can take.
    credit: Credit,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    state: SavedConnection,
    stream: UnixStream,
    /// The socket may have something: it said so, and has not been found empty since.
    readable: bool,
    writable: bool,
}

/// What came of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// So many bytes.
    Bytes(u32),
    /// Nothing now.
    Nothing,
    /// The node will send no more.
    End,
}

impl Connection {
    /// A new one, which the guest asked for with `credit`.
    pub fn new(ports: Ports, credit: Credit, stream: UnixStream) -> Self {
        let state = SavedConnection {
            ports,
            closed: Closed::default(),
            to_host: VecDeque::new(),
            from_host: VecDeque::new(),
            taken: 0,
            announced: 0,
            sent: 0,
            credit,
        };
        Self::with_state(state, stream)
    }

    /// One that goes on where another was when its machine was saved.
    pub fn with_state(state: SavedConnection, stream: UnixStream) -> Self {
        Self {
            state,
            stream,
            readable: true,
            writable: true,
        }
    }

    /// Its state now, with what lies unread in the socket. That stays there too.
    pub fn save(&self) -> SavedConnection {
        let mut saved = self.state.clone();
        let mut waiting = vec![0; MOST_UNREAD.saturating_sub(saved.from_host.len())];
        // Nothing there, or an end that the next reading will find.
        let (_, count) = rustix::net::recv(
            &self.stream,
            &mut *waiting,
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        )
        .unwrap_or_default();
        saved.from_host.extend(&waiting[..count.min(waiting.len())]);
        saved
    }

    pub fn ports(&self) -> Ports {
        self.state.ports
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The socket says that something has changed.
    pub fn wake(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// What the guest says that it can take.
    pub fn set_credit(&mut self, credit: Credit) {
        self.state.credit = credit;
    }

    /// A packet of this connection to the guest.
    pub fn packet(&mut self, operation: Operation) -> Packet {
        self.state.announced = self.state.taken;
        Packet {
            ports: self.state.ports,
            operation,
            credit: Credit {
                room: ROOM,
                taken: self.state.taken,
            },
        }
    }

    /// Takes `bytes` from the guest.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), OverCredit> {
        if self.state.closed.guest_sends || self.state.to_host.len() + bytes.len() > ROOM as usize {
            return Err(OverCredit);
        }
        self.state.to_host.extend(bytes);
        Ok(())
    }

    /// The guest will do less with it.
    pub fn close(&mut self, receives: bool, sends: bool) {
        self.state.closed.guest_receives |= receives;
        self.state.closed.guest_sends |= sends;
    }

    /// The guest was told that the node sends no more.
    pub fn end_of_host(&mut self) {
        self.state.closed.host_sends = true;
        self.readable = false;
    }

    /// Both sides are done, and all that the guest sent was written.
    pub fn is_over(&self) -> bool {
        let closed = self.state.closed;
        closed.guest_sends
            && (closed.guest_receives || closed.host_sends)
            && self.state.to_host.is_empty()
    }

    /// Writes to the socket what it takes.
    ///
    /// # Errors
    /// If the node has closed it.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.writable && !self.state.to_host.is_empty() {
            let (front, _) = self.state.to_host.as_slices();
            match self.stream.write(front) {
                Ok(count) => {
                    self.state.to_host.drain(..count);
                    let count = u32::try_from(count).expect("less than ROOM");
                    self.state.taken = self.state.taken.wrapping_add(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.state.closed.guest_sends && self.state.to_host.is_empty() {
            // The node may be gone, in which case the next reading tells.
            drop(self.stream.shutdown(Shutdown::Write));
        }
        Ok(())
    }

    /// Whether the guest believes in less than half of the room that there is.
    pub fn owes_credit(&self) -> bool {
        self.state.taken.wrapping_sub(self.state.announced) >= ROOM / 2
    }

    /// Whether something may be there for the guest, which can take it.
    pub fn may_deliver(&self) -> bool {
        let waiting = !self.state.from_host.is_empty();
        (waiting || self.readable)
            && self.allowance() > 0
            && !self.state.closed.guest_receives
            && !self.state.closed.host_sends
    }

    /// Bytes that the guest has room for. What it says may be anything; it only harms itself.
    fn allowance(&self) -> u32 {
        let on_the_way = self.state.sent.wrapping_sub(self.state.credit.taken);
        self.state.credit.room.saturating_sub(on_the_way)
    }

    /// Reads what is there for the guest, as far as it fits into `bytes` and the guest has room.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<Got> {
        let limit = bytes
            .len()
            .min(self.allowance() as usize)
            .min(MOST as usize);
        let bytes = &mut bytes[..limit];
        let count = if self.state.from_host.is_empty() {
            match self.stream.read(bytes) {
                Ok(0) if limit > 0 => return Ok(Got::End),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    0
                }
                Err(error) => return Err(error),
            }
        } else {
            self.state.from_host.read(bytes)?
        };
        let count = u32::try_from(count).expect("less than MOST");
        self.state.sent = self.state.sent.wrapping_add(count);
        Ok(if count > 0 {
            Got::Bytes(count)
        } else {
            Got::Nothing
        })
    }
}

impl SavedConnection {
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether a connection can be in this state.
    pub fn is_possible(&self) -> bool {
        self.to_host.len() <= ROOM as usize && self.from_host.len() <= MOST_UNREAD
    }
}
