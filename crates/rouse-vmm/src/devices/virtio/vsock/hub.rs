//! All connections of a machine, and what is to be told to the guest beside their data.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Got, SavedConnection};
use super::dialer::Dialer;
use super::packet::{Credit, Operation, Packet, Ports};
use crate::devices::virtio::Violations;

/// No function needs more connections at a time: each costs the host a socket and up to 256 KiB.
pub const MOST_CONNECTIONS: usize = 64;
/// So many answers may wait for the guest to take them. Until it does, nothing more is taken from it.
const MOST_ANSWERS: usize = 256;

/// The connections.
pub struct Hub {
    dialer: Dialer,
    epoll: Epoll,
    connections: BTreeMap<Ports, Connection>,
    answers: VecDeque<Packet>,
    /// Whose turn it was last.
    last: Option<Ports>,
}

/// What is to be sent to the guest next.
pub enum Next {
    /// A packet, without data.
    Answer(Packet),
    /// What this connection reads.
    Data(Ports),
}

impl Hub {
    pub fn new(dialer: Dialer) -> io::Result<Self> {
        Ok(Self {
            dialer,
            epoll: Epoll::new()?,
            connections: BTreeMap::new(),
            answers: VecDeque::new(),
            last: None,
        })
    }

    /// Readable when a socket has news.
    pub fn source(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Whether the guest must first take what waits for it.
    pub fn is_full(&self) -> bool {
        self.answers.len() >= MOST_ANSWERS
    }

    /// Sees what the sockets have.
    pub fn poll(&mut self) {
        let mut events = [EpollEvent::default(); MOST_CONNECTIONS];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            let ports = Ports::of_number(event.data());
            if let Some(connection) = self.connections.get_mut(&ports) {
                connection.wake();
                self.flush(ports);
            }
        }
    }

    /// Takes a packet from the guest, with its data.
    pub fn take(&mut self, packet: Packet, data: &[u8], notes: &mut Violations) {
        let ports = packet.ports;
        let Some(connection) = self.connections.get_mut(&ports) else {
            match packet.operation {
                Operation::Request => self.open(ports, packet.credit),
                // An answer to a reset could go back and forth for ever.
                Operation::Reset => {}
                _ => self.refuse(ports),
            }
            return;
        };
        connection.set_credit(packet.credit);
        match packet.operation {
            Operation::Data(_) => {
                if let Err(error) = connection.take(data) {
                    notes.note(&error);
                    return self.reset(ports);
                }
                self.flush(ports);
            }
            Operation::Shutdown { receives, sends } => {
                connection.close(receives, sends);
                self.flush(ports);
            }
            Operation::CreditRequest => {
                let answer = connection.packet(Operation::CreditUpdate);
                self.answers.push_back(answer);
            }
            Operation::CreditUpdate => {}
            Operation::Reset => drop(self.connections.remove(&ports)),
            Operation::Request | Operation::Response => {
                notes.note(&"a connection was opened that is open");
                self.reset(ports);
            }
        }
    }

    fn open(&mut self, ports: Ports, credit: Credit) {
        if self.connections.len() >= MOST_CONNECTIONS {
            return self.refuse(ports);
        }
        let Ok(stream) = self.dialer.dial(ports) else {
            return self.refuse(ports);
        };
        let mut connection = Connection::new(ports, credit, stream);
        let answer = connection.packet(Operation::Response);
        if self.insert(connection).is_ok() {
            self.answers.push_back(answer);
        } else {
            self.refuse(ports);
        }
    }

    fn insert(&mut self, connection: Connection) -> io::Result<()> {
        let ports = connection.ports();
        let interest =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(
            ControlOperation::Add,
            connection.stream().as_raw_fd(),
            EpollEvent::new(interest, ports.number()),
        )?;
        // Closing a socket takes it out again.
        self.connections.insert(ports, connection);
        Ok(())
    }

    /// Writes what the guest sent, and ends a connection that is over or broken.
    fn flush(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        if connection.flush().is_err() || connection.is_over() {
            self.reset(ports);
        }
    }

    fn reset(&mut self, ports: Ports) {
        self.connections.remove(&ports);
        self.refuse(ports);
    }

    fn refuse(&mut self, ports: Ports) {
        self.answers.push_back(Packet {
            ports,
            operation: Operation::Reset,
            credit: Credit::default(),
        });
    }

    /// What to send to the guest next; connections take turns.
    pub fn next(&mut self) -> Option<Next> {
        if let Some(packet) = self.answers.pop_front() {
            return Some(Next::Answer(packet));
        }
        let owing = self.connections.values_mut().find(|one| one.owes_credit());
        if let Some(connection) = owing {
            return Some(Next::Answer(connection.packet(Operation::CreditUpdate)));
        }
        let after = self
            .last
            .map_or(0, |ports| ports.number().saturating_add(1));
        let ready = |connection: &&Connection| connection.may_deliver();
        let ports = self
            .connections
            .range(Ports::of_number(after)..)
            .chain(&self.connections)
            .map(|(_, connection)| connection)
            .find(ready)?
            .ports();
        self.last = Some(ports);
        Some(Next::Data(ports))
    }

    /// Puts `packet` back, which the guest had no room for.
    pub fn put_back(&mut self, packet: Packet) {
        self.answers.push_front(packet);
    }

    /// Reads what connection `ports` has for the guest into `bytes`, and returns the packet for it.
    pub fn read(&mut self, ports: Ports, bytes: &mut [u8]) -> Option<Packet> {
        let connection = self.connections.get_mut(&ports)?;
        match connection.read(bytes) {
            Ok(Got::Bytes(count)) => Some(connection.packet(Operation::Data(count))),
            Ok(Got::Nothing) => None,
            Ok(Got::End) => {
                connection.end_of_host();
                if connection.is_over() {
                    self.reset(ports);
                    return None;
                }
                let end = Operation::Shutdown {
                    receives: false,
                    sends: true,
                };
                let packet = connection.packet(end);
                self.answers.push_back(packet);
                None
            }
            Err(_) => {
                self.reset(ports);
                None
            }
        }
    }

    /// Ends all connections without a word.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.answers.clear();
    }

    pub fn save(&self) -> (Vec<SavedConnection>, Vec<Packet>) {
        let connections = self.connections.values().map(Connection::save);
        (
            connections.collect(),
            self.answers.iter().copied().collect(),
        )
    }

    /// Goes on with what was saved: each connection gets a new socket of the node, and the guest does not notice. Where the
    /// node has none, the guest is told that the connection is gone. The node gets them in the order of its own ports, so that it can
    /// tell what was open from what the guest opens afterwards.
    pub fn restore(&mut self, mut connections: Vec<SavedConnection>, answers: Vec<Packet>) {
        self.clear();
        self.answers.extend(answers);
        connections.sort_by_key(|saved| (saved.ports().host, saved.ports().guest));
        for saved in connections {
            let ports = saved.ports();
            let again = self.dialer.dial(ports);
            let inserted =
                again.and_then(|stream| self.insert(Connection::with_state(saved, stream)));
            if inserted.is_err() {
                self.refuse(ports);
            }
        }
    }
}
