//! The way to the network.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use rouse_sandbox::{Limits, Network, SandboxKind};

use crate::driver::{LIMITS, Node};

/// Prints what a server says, or how it cannot be reached.
const ASK: &str = "
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as server: print(server.recv(100).decode())
except OSError as error: print('unreachable')
print(open('/etc/resolv.conf').read().strip())
";

/// An address of the host's own that is not a loopback address, if it has one.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the kernel chooses the address that it would send from.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

/// Seconds to wait for what must be answered, and for what must not be.
const PATIENCE: &str = "120";
const LONG_ENOUGH: &str = "10";

fn ask(node: &Node, network: Network, address: &str, port: u16, timeout: &str) -> String {
    let limits = Limits { network, ..LIMITS };
    let sandbox = node.spawner.create(limits, SandboxKind::Blank).unwrap();
    let output = node.run(
        &sandbox,
        &[
            "/usr/bin/python3",
            "-c",
            ASK,
            address,
            &port.to_string(),
            timeout,
        ],
    );
    sandbox.destroy();
    output
}

pub fn only_outbound_sandboxes_reach_the_network(node: &Node) {
    if !Path::new("/usr/bin/slirp4netns").exists() {
        let limits = Limits {
            network: Network::Outbound,
            ..LIMITS
        };
        let error = node.spawner.create(limits, SandboxKind::Blank).unwrap_err();
        assert!(error.to_string().contains("slirp4netns"), "{error}");
        return;
    }
    let server = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let mut rest = Vec::new();
        while rest != b"enough" {
            let (mut connection, _) = server.accept().unwrap();
            let _ = connection.write_all(b"hello");
            rest.clear();
            let _ = connection.read_to_end(&mut rest);
        }
    });
    // The host's loopback is 10.0.2.2 to slirp4netns, and switched off.
    for address in ["127.0.0.1", "10.0.2.2"] {
        assert_eq!(
            ask(node, Network::Outbound, address, port, LONG_ENOUGH),
            "unreachable\nnameserver 10.0.2.3\n"
        );
    }
    if let Some(address) = own_address() {
        let address = address.to_string();
        assert_eq!(
            ask(node, Network::None, &address, port, LONG_ENOUGH),
            "unreachable\n\n"
        );
        assert_eq!(
            ask(node, Network::Outbound, &address, port, PATIENCE),
            "hello\nnameserver 10.0.2.3\n"
        );
    } else {
        println!("(the host has no address to be reached at)");
    }
    // No connection is open any more when this test has ended: others count descriptors.
    let mut last = TcpStream::connect(("127.0.0.1", port)).unwrap();
    last.write_all(b"enough").unwrap();
    drop(last);
    serving.join().unwrap();
}
