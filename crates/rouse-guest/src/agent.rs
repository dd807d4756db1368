//! The guest's end of the conversation with the host.

use std::fs::File;
use std::io::{self, BufReader};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rouse_guest::owners::Owners;
use rouse_guest::protocol::{self, CONTROL_PORT, RESERVED, Start, ToGuest, ToHost};
use rustix::process::{WaitOptions, wait};

use crate::function::Function;
use crate::package::{self, Device};
use crate::{fresh, network, reclaim, relay, survey};

/// Connects to the host, if there is one that listens.
pub fn connect() -> Result<File, String> {
    network::to_host(CONTROL_PORT, RESERVED).map(File::from)
}

/// Does what the host says, until it says that the machine is to be switched off, or is gone.
pub fn serve(host: File, report: String, has_root: bool) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot talk to the host: {error}");
    let writer = Writer(Arc::new(Mutex::new(host.try_clone().map_err(failed)?)));
    let mut reader = BufReader::new(host);
    writer.send(&ToHost::Ready(report)).map_err(failed)?;
    let mut function = None;
    // Until a template becomes a function.
    let mut package: Option<Device> = None;
    let mut is_child = false;
    while let Some(message) = protocol::receive(&mut reader).map_err(failed)? {
        let answer = match (message, &function) {
            (ToGuest::Off, _) => return Ok(()),
            (ToGuest::Start(_) | ToGuest::Template(_), Some(_)) => {
                Err("the function was started before".to_owned())
            }
            (ToGuest::Start(_) | ToGuest::Template(_), None) if !has_root => {
                Err("there is no disk for the root".to_owned())
            }
            (ToGuest::Start(start), None) => begin(&start, &writer).map(|started| {
                function = Some(started);
                ToHost::Started
            }),
            (ToGuest::Template(start), None) => package::let_go()
                .and_then(|device| {
                    package = Some(device);
                    begin(&start, &writer)
                })
                .map(|started| {
                    function = Some(started);
                    ToHost::Started
                }),
            (ToGuest::Pause | ToGuest::Resume(_) | ToGuest::Become(_) | ToGuest::GoOn, None) => {
                Err("no function was started".to_owned())
            }
            (ToGuest::Pause, Some(function)) => match pause(function, is_child) {
                Ok(owners) => {
                    for part in owners.parts() {
                        writer.send(&ToHost::Owners(part)).map_err(failed)?;
                    }
                    Ok(ToHost::Paused)
                }
                Err(reason) => Err(reason),
            },
            (ToGuest::Resume(_), Some(_)) if package.is_some() => {
                Err("a template goes on as a function only".to_owned())
            }
            (ToGuest::Become(fresh), Some(function)) => package
                .take()
                .ok_or_else(|| "it is a function already".to_owned())
                .and_then(|device| device.take_up())
                .and_then(|()| fresh::apply(&fresh))
                .and_then(|()| {
                    is_child = true;
                    function.thaw()
                })
                .map(|()| ToHost::Resumed),
            // In this order: the function must not see what it shares with other copies.
            (ToGuest::Resume(fresh), Some(function)) => fresh::apply(&fresh)
                .and_then(|()| function.thaw())
                .map(|()| ToHost::Resumed),
            (ToGuest::GoOn, Some(function)) => function.thaw().map(|()| ToHost::Resumed),
        };
        let answer = answer.unwrap_or_else(ToHost::Failed);
        writer.send(&answer).map_err(failed)?;
    }
    Ok(())
}

/// Stops the function and makes the machine as small as it can be.
///
/// What can be read again is dropped first, so that it is free when pages are counted; free memory is emptied last, as
/// counting leaves some behind. Pages of a template's child stay where they are: those that it shares with the template are not in
/// its snapshot.
fn pause(function: &Function, is_child: bool) -> Result<Owners, String> {
    function.freeze()?;
    reclaim::drop_caches().map_err(|error| format!("cannot drop the caches: {error}"))?;
    if !is_child {
        reclaim::compact();
    }
    // Without these two a snapshot is larger, and nobody knows what is in it. It is as good as any other.
    let owners = survey::owners(function.group()).unwrap_or_else(|error| {
        println!("rouse-guest: cannot find out whose pages are whose: {error}");
        Owners::default()
    });
    if let Err(error) = reclaim::empty_free_memory() {
        println!("rouse-guest: free memory stays as it is: {error}");
    }
    Ok(owners)
}

fn begin(start: &Start, writer: &Writer) -> Result<Function, String> {
    fresh::apply(&start.fresh)?;
    network::loopback()?;
    relay::start()?;
    let function = Function::start(start)?;
    let writer = writer.clone();
    thread::Builder::new()
        .name("reaper".to_owned())
        .spawn(move || reap(&writer))
        .map_err(|error| format!("cannot wait for processes: {error}"))?;
    Ok(function)
}

/// Waits for all processes: those whose parents have ended are pid 1's. When there are no more, the function has ended.
fn reap(writer: &Writer) {
    let mut last = String::new();
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                last = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit status {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => continue,
                };
            }
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            Err(_) => break,
        }
    }
    // If the host is gone, the machine is switched off anyway.
    drop(writer.send(&ToHost::Exited(last)));
}

/// Several threads speak to the host.
#[derive(Clone)]
struct Writer(Arc<Mutex<File>>);

impl Writer {
    fn send(&self, message: &ToHost) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::send(&mut *file, message)
    }
}
