//! Messages with the sender's pid, as the kernel vouches for it (`SO_PASSCRED`).
//!
//! A clone does not know its pid on the host; the kernel translates it for the receiver.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::libc::ucred;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

/// Bytes that a message may have: a failure text or time stamps.
const ROOM: usize = 4096;

/// Makes the kernel attach credentials to every message that arrives.
pub fn enable(socket: BorrowedFd<'_>) -> io::Result<()> {
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok(())
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Empty when the other end is closed.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub pid: Option<i32>,
    /// A descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
}

/// The next message, without waiting.
pub fn receive(socket: BorrowedFd<'_>) -> nix::Result<Message> {
    let mut buffer = vec![0; ROOM];
    let mut space = cmsg_space!(ucred, RawFd);
    let mut vectors = [std::io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut vectors,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let (mut pid, mut descriptor) = (None, None);
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmCredentials(credentials) => pid = Some(credentials.pid()),
            ControlMessageOwned::ScmRights(received) => {
                for fd in received {
                    // SAFETY: the kernel has just made it for this message, and nothing else owns it.
                    descriptor = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            _ => {}
        }
    }
    let len = message.bytes;
    buffer.truncate(len);
    Ok(Message {
        bytes: buffer,
        pid: pid.filter(|pid| *pid != 0),
        descriptor,
    })
}
