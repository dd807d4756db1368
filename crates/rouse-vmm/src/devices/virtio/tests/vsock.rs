//! Connections, between a driver and a node that listens on a Unix socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{DATA, Driver, ENTRIES, Ring, readable, writable};
use crate::devices::virtio::vsock::{Credit, HEADER, Operation, Packet, Ports};
use crate::devices::virtio::{DeviceConfig, Event, Vsock};

const PORTS: Ports = Ports {
    guest: 77,
    host: 9001,
};
const BUFFER: u32 = 4096;
const ROOM: u32 = 256 << 10;

/// A guest with its connections, and the node's end of them.
struct Pair {
    driver: Driver,
    receive: Ring,
    transmit: Ring,
    node: UnixListener,
    directory: TempDir,
    /// Where the next packet is received.
    next: u64,
}

fn config(directory: &TempDir) -> DeviceConfig {
    DeviceConfig {
        vsock: Some(Vsock {
            directory: directory.path().to_owned(),
        }),
        balloon: None,
        ..DeviceConfig::default()
    }
}

impl Pair {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join(PORTS.host.to_string());
        let node = UnixListener::bind(path).expect("a socket can be made");
        let driver = Driver::new(&config(&directory));
        let mut rings = driver.start(0, 3);
        let mut receive = rings.remove(0);
        for slot in 0..u64::from(ENTRIES) {
            receive.add(&[writable(slot_of(slot), BUFFER)]);
        }
        Self {
            driver,
            receive,
            transmit: rings.remove(0),
            node,
            directory,
            next: 0,
        }
    }

    /// The guest sends a packet.
    fn send(&mut self, ports: Ports, operation: Operation, credit: Credit, data: &[u8]) {
        let packet = Packet {
            ports,
            operation,
            credit,
        };
        // A packet to the guest with its ends turned round.
        let mut bytes = packet.to_guest(3);
        bytes[..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        self.send_raw(&bytes, data);
    }

    fn send_raw(&mut self, header: &[u8], data: &[u8]) {
        let put = |bytes: &[u8], at| {
            let written = self.driver.memory.write_slice(bytes, GuestAddress(at));
            written.expect("it lies in memory");
        };
        put(header, DATA);
        put(data, DATA + 0x100);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("tests send little");
        let header = readable(DATA, length(header));
        if data.is_empty() {
            self.transmit.add(&[header]);
        } else {
            self.transmit
                .add(&[header, readable(DATA + 0x100, length(data))]);
        }
        self.driver.serve(0, Event::Queue(1));
        assert_eq!(self.transmit.used().len(), 1);
    }

    /// What the guest has received, and it offers the buffers again.
    fn received(&mut self) -> Vec<(Packet, Vec<u8>)> {
        self.driver.serve(0, Event::Source);
        let mut all = Vec::new();
        for length in self.receive.used() {
            let place = slot_of(self.next % u64::from(ENTRIES));
            self.next += 1;
            let mut bytes = vec![0; length as usize];
            self.driver
                .memory
                .read_slice(&mut bytes, GuestAddress(place))
                .expect("it lies in memory");
            let data = bytes.split_off(HEADER);
            let mut header: [u8; HEADER] = bytes.try_into().expect("a header");
            header[..16].rotate_left(8);
            header[16..24].rotate_left(4);
            let packet = Packet::parse(header, 3, data.len() as u64).expect("the device's own");
            all.push((packet, data));
            self.receive.add(&[writable(place, BUFFER)]);
        }
        all
    }

    /// A guest that is connected, and the node's end.
    fn connected() -> (Self, UnixStream) {
        let mut pair = Self::new();
        pair.send(PORTS, Operation::Request, credit(100, 0), b"");
        let answers = pair.received();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0.operation, Operation::Response);
        assert_eq!(answers[0].0.credit, credit(ROOM, 0));
        let (stream, _) = pair.node.accept().expect("the device has connected");
        (pair, stream)
    }

    fn violations(&self) -> u64 {
        self.driver.violations(0)
    }
}

fn slot_of(slot: u64) -> u64 {
    DATA + 0x10_0000 + slot * u64::from(BUFFER)
}

fn credit(room: u32, taken: u32) -> Credit {
    Credit { room, taken }
}

fn read(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("so much was sent");
    bytes
}

#[test]
fn bytes_go_both_ways_and_no_more_than_there_is_room_for() {
    let (mut pair, mut node) = Pair::connected();
    pair.send(PORTS, Operation::Data(5), credit(100, 0), b"hello");
    assert_eq!(read(&mut node, 5), b"hello");
    // The guest has room for 100 bytes.
    node.write_all(&[7; 150]).expect("the socket takes it");
    let first = pair.received();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].0.operation, Operation::Data(100));
    assert_eq!(first[0].0.credit.taken, 5);
    assert!(pair.received().is_empty());
    pair.send(PORTS, Operation::CreditUpdate, credit(100, 100), b"");
    let second = pair.received();
    assert_eq!(second[0].0.operation, Operation::Data(50));
    assert_eq!(second[0].1, [7; 50]);
    // It asks, and is answered.
    pair.send(PORTS, Operation::CreditRequest, credit(100, 150), b"");
    assert_eq!(pair.received()[0].0.operation, Operation::CreditUpdate);
    assert_eq!(pair.violations(), 0);
}

#[test]
fn a_guest_is_told_when_there_is_room_again() {
    let (mut pair, mut node) = Pair::connected();
    let mut sent = 0_u32;
    let mut told = 0;
    while sent < 3 * ROOM {
        assert!(sent.wrapping_sub(told) + 4096 <= ROOM, "it was not told");
        pair.send(PORTS, Operation::Data(4096), credit(100, 0), &[1; 4096]);
        sent += 4096;
        // The node takes it; what did not fit into the socket follows.
        drop(read(&mut node, 4096));
        for (packet, _) in pair.received() {
            assert_eq!(packet.operation, Operation::CreditUpdate);
            told = packet.credit.taken;
        }
    }
    assert_eq!(pair.violations(), 0);
}

#[test]
fn more_than_there_is_room_for_ends_the_connection() {
    let (mut pair, _node) = Pair::connected();
    let mut answers = Vec::new();
    // The node takes nothing: its socket gets full, then the room.
    for _ in 0..4 * ROOM / 4096 {
        pair.send(PORTS, Operation::Data(4096), credit(100, 0), &[1; 4096]);
        answers.extend(pair.received());
        if pair.violations() > 0 {
            break;
        }
    }
    assert_eq!(pair.violations(), 1);
    assert_eq!(
        answers.last().expect("it was told").0.operation,
        Operation::Reset
    );
}

#[test]
fn both_ends_can_close() {
    let (mut pair, node) = Pair::connected();
    drop(node);
    let end = Operation::Shutdown {
        receives: false,
        sends: true,
    };
    assert_eq!(pair.received()[0].0.operation, end);
    let end = Operation::Shutdown {
        receives: true,
        sends: true,
    };
    pair.send(PORTS, end, credit(100, 0), b"");
    assert_eq!(pair.received()[0].0.operation, Operation::Reset);

    let (mut pair, mut node) = Pair::connected();
    pair.send(PORTS, Operation::Data(3), credit(100, 0), b"bye");
    pair.send(PORTS, end, credit(100, 0), b"");
    assert_eq!(pair.received()[0].0.operation, Operation::Reset);
    let mut rest = Vec::new();
    node.read_to_end(&mut rest).expect("it was closed");
    assert_eq!(rest, b"bye");
    assert_eq!(pair.violations(), 0);
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let mut pair = Pair::new();
    for host in [1, 0, u32::MAX] {
        let ports = Ports { guest: 5, host };
        pair.send(ports, Operation::Request, credit(100, 0), b"");
        let answers = pair.received();
        assert_eq!(
            (answers[0].0.ports, answers[0].0.operation),
            (ports, Operation::Reset)
        );
    }
    // What belongs to no connection.
    pair.send(PORTS, Operation::Data(1), credit(100, 0), b"x");
    assert_eq!(pair.received()[0].0.operation, Operation::Reset);
}

#[test]
fn a_flood_of_connections_is_bounded() {
    let mut pair = Pair::new();
    let mut open = 0;
    for guest in 0..500 {
        let ports = Ports {
            guest,
            host: PORTS.host,
        };
        pair.send(ports, Operation::Request, credit(100, 0), b"");
        for (packet, _) in pair.received() {
            open += usize::from(packet.operation == Operation::Response);
        }
    }
    assert!((1..=64).contains(&open), "{open} connections are open");
}

#[test]
fn answers_that_are_not_taken_hold_the_guest_up_and_nothing_else() {
    let mut pair = Pair::new();
    let packet = Packet {
        ports: PORTS,
        operation: Operation::CreditUpdate,
        credit: credit(0, 0),
    };
    let mut bytes = packet.to_guest(3);
    bytes[..16].rotate_left(8);
    bytes[16..24].rotate_left(4);
    pair.driver
        .memory
        .write_slice(&bytes, GuestAddress(DATA))
        .expect("it lies in memory");
    let mut taken = 0;
    for _ in 0..1000 {
        pair.transmit.add(&[readable(DATA, 44)]);
        pair.driver.serve(0, Event::Queue(1));
        let used = pair.transmit.used().len();
        taken += used;
        if used == 0 {
            break;
        }
    }
    // What the guest had buffers for, and what may wait.
    assert_eq!(taken, usize::from(ENTRIES) + 256);
    // It takes them, and things go on.
    let resets = pair.received().len();
    assert_eq!(resets, usize::from(ENTRIES));
    pair.driver.serve(0, Event::Queue(0));
    assert_eq!(pair.transmit.used().len(), 1);
}

#[test]
fn connections_survive_their_machine() {
    let (mut pair, mut node) = Pair::connected();
    pair.send(PORTS, Operation::Data(5), credit(100, 0), b"first");
    assert_eq!(read(&mut node, 5), b"first");
    // Something is on its way to the guest.
    node.write_all(b"unread").expect("the socket takes it");
    let saved = pair.driver.bus.save();

    // Two machines go on from there, each with a node of its own.
    for name in [b"one", b"two"] {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join(PORTS.host.to_string());
        let listener = UnixListener::bind(path).expect("a socket can be made");
        let driver = Driver::new(&config(&directory));
        let mut memory = vec![0; super::driver::MEMORY];
        let all = GuestAddress(0);
        let from = &pair.driver.memory;
        from.read_slice(&mut memory, all).expect("all of it");
        driver.memory.write_slice(&memory, all).expect("all of it");
        driver.bus.restore(&saved).expect("it was saved");
        let (mut node, _) = listener.accept().expect("it has connected again");

        let mut rings = driver.start_again(&pair);
        let mut copy = Pair {
            receive: rings.remove(0),
            transmit: rings.remove(0),
            driver,
            node: listener,
            directory,
            next: pair.next,
        };
        let packets = copy.received();
        assert_eq!(packets[0].0.operation, Operation::Data(6));
        assert_eq!(packets[0].1, b"unread");
        // The counts go on, too.
        assert_eq!(packets[0].0.credit.taken, 5);
        copy.send(PORTS, Operation::Data(3), credit(100, 6), name);
        assert_eq!(read(&mut node, 3), name);
        node.write_all(b"answer").expect("the socket takes it");
        assert_eq!(copy.received()[0].1, b"answer");
        assert_eq!(copy.violations(), 0);
    }
    // The first machine was not disturbed.
    assert_eq!(pair.received()[0].1, b"unread");
}

impl Driver {
    /// The rings of `pair`, in this machine's memory.
    fn start_again(&self, pair: &Pair) -> Vec<Ring> {
        [&pair.receive, &pair.transmit]
            .map(|ring| ring.in_memory(self.memory.clone()))
            .into()
    }
}

#[test]
fn without_a_node_a_restored_connection_is_closed() {
    let (pair, _node) = Pair::connected();
    let saved = pair.driver.bus.save();
    let path = pair.directory.path().join(PORTS.host.to_string());
    std::fs::remove_file(path).expect("it is there");
    pair.driver.bus.restore(&saved).expect("it was saved");
    let mut pair = pair;
    assert_eq!(pair.received()[0].0.operation, Operation::Reset);
}
