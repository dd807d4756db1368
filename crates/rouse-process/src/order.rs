//! What the node tells a blank process or a template host, over a `SOCK_SEQPACKET` socket.
//!
//! A blank that is to be restored goes to the waiting room first; from then on it understands
//! only one more message, the arrival of its program (see `plan::waiting_room`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rouse_sandbox::exec::ExecRequest;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::image::LoadedProgram;
use crate::plan::waiting_room::{Arrival, MAX_FDS};

/// Bytes in one message: an order with a whole environment (Lambda allows 4 KiB of it, plus our own) fits easily.
const MAX_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Exec = b'x',
    Wait = b'w',
}

/// An order, as a blank process sees it.
#[derive(Debug)]
pub enum Order {
    /// Become this program. Descriptors: log, task mount.
    Exec(ExecRequest),
    /// Go to the waiting room, a program of this length whose first operation is at `entry`.
    /// Descriptor: its image.
    Wait {
        /// Length of the image, bytes.
        len: u64,
        /// Address of its first operation.
        entry: u64,
    },
}

/// Sends `Order::Exec`.
pub fn send_exec(
    control: BorrowedFd<'_>,
    request: &ExecRequest,
    log: BorrowedFd<'_>,
    task: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut bytes = vec![Tag::Exec as u8];
    serde_json::to_writer(&mut bytes, request)?;
    send(control, &bytes, &[log, task])
}

/// Sends `Order::Wait`.
pub fn send_wait(control: BorrowedFd<'_>, room: &LoadedProgram) -> io::Result<()> {
    let mut bytes = vec![Tag::Wait as u8];
    for word in [room.program.image.len() as u64, room.program.entry] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    send(control, &bytes, &[room.file.as_fd()])
}

/// Sends a program to a process in the waiting room; `fds` are those after the program's own.
pub fn send_program(
    control: BorrowedFd<'_>,
    program: &LoadedProgram,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut all = Vec::with_capacity(fds.len() + 1);
    all.push(program.file.as_fd());
    all.extend_from_slice(fds);
    let mut parts = all.chunks(MAX_FDS);
    send(
        control,
        &Arrival::of(&program.program).to_bytes(),
        parts.next().unwrap_or_default(),
    )?;
    // The program itself receives what did not fit.
    for part in parts {
        send(control, &[0], part)?;
    }
    Ok(())
}

/// Sends bytes with descriptors beside them.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Waits for the next order. `None` when the node has closed its end.
pub fn receive(control: BorrowedFd<'_>) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
    let (bytes, fds) = receive_message(control)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let Some((&tag, body)) = bytes.split_first() else {
        return Ok(None);
    };
    let order = if tag == Tag::Exec as u8 {
        Order::Exec(serde_json::from_slice(body)?)
    } else if tag == Tag::Wait as u8 {
        let word = |i: usize| {
            body.get(i * 8..)
                .and_then(|b| b.first_chunk())
                .map(|b| u64::from_le_bytes(*b))
        };
        let (Some(len), Some(entry)) = (word(0), word(1)) else {
            return Err(invalid());
        };
        Order::Wait { len, entry }
    } else {
        return Err(invalid());
    };
    Ok(Some((order, fds)))
}

fn receive_message(control: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut vectors = [IoSliceMut::new(&mut buffer)];
    let message = rustix::net::recvmsg(
        control.as_fd(),
        &mut vectors,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    buffer.truncate(message.bytes);
    Ok((buffer, fds))
}
