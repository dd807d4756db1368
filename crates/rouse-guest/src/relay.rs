//! The runtime API on loopback: each connection of the function is one to the host, byte for byte.
//!
//! The host speaks the protocol, the guest only carries it: so nothing here needs to understand what a function sends, and
//! connections that are idle in a snapshot are carried on in each copy.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use rouse_guest::protocol::{API_PORT, RESERVED};

use crate::network;

/// Takes connections from now on, in threads of its own.
pub fn start() -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot serve the runtime API: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, API_PORT)).map_err(failed)?;
    thread::Builder::new()
        .name("relay".to_owned())
        .spawn(move || {
            for client in listener.incoming() {
                // A connection that fails is the function's to see: it is closed.
                if let Err(error) = client.and_then(carry) {
                    println!("rouse-guest: a connection to the runtime API failed: {error}");
                }
            }
        })
        .map_err(failed)?;
    Ok(())
}

fn carry(client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    // The host tells a runtime's connections apart by their ports. One that was closed a moment ago may still have the same.
    let port = u32::from(client.peer_addr()?.port());
    let sources = std::iter::once(port).chain(*RESERVED.end() + 1..=u16::MAX.into());
    let host = network::to_host(API_PORT.into(), sources).map_err(io::Error::other)?;
    let host = File::from(host);
    let (client, host) = (Arc::new(client), Arc::new(host));
    let (from, to) = (Arc::clone(&client), Arc::clone(&host));
    thread::Builder::new().spawn(move || {
        // The other direction sees that the connection is closed.
        drop(io::copy(&mut &*from, &mut &*to));
        // It fails if the host has closed it.
        rustix::net::shutdown(to.as_fd(), rustix::net::Shutdown::Write).ok();
    })?;
    thread::Builder::new().spawn(move || {
        drop(io::copy(&mut &*host, &mut &*client));
        drop(client.shutdown(Shutdown::Both));
    })?;
    Ok(())
}
