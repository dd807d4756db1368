//! The pager's end of the control socket. Never waits for the daemon.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};

use super::super::arena::Arena;
use super::super::protocol::{MAX_DESCRIPTORS, MAX_PACKET, Notice};
use super::super::reserve::Ballast;

/// A request, or why there is none.
#[derive(Debug)]
pub(super) enum Received {
    Packet(Vec<u8>, Vec<OwnedFd>),
    Nothing,
    Closed,
}

#[derive(Debug)]
pub(super) struct Control {
    /// Belongs to the keeper.
    socket: RawFd,
    waiting: VecDeque<Vec<u8>>,
    listening_for_room: bool,
    closed: bool,
    buffer: Vec<u8>,
}

impl Control {
    pub fn new(arena: &Arena) -> Self {
        Self {
            socket: arena.socket.load(Ordering::Relaxed),
            waiting: VecDeque::new(),
            listening_for_room: false,
            closed: false,
            buffer: vec![0; MAX_PACKET],
        }
    }

    pub fn fd(&self) -> RawFd {
        self.socket
    }

    fn socket(&self) -> BorrowedFd<'static> {
        // SAFETY: the keeper never closes it, and the sweep of a new pager spares it.
        unsafe { BorrowedFd::borrow_raw(self.socket) }
    }

    /// Sends a notice, now or when there is room.
    pub fn send(&mut self, notice: Notice) {
        if !self.closed {
            self.waiting.push_back(notice.encode());
        }
    }

    /// Sends what is waiting, as far as the daemon takes it. A packet takes memory, too, and it may be the one that says that there is
    /// none: then `ballast` is let go of.
    ///
    /// Returns whether it is to be called again, later: there was no memory even so.
    #[must_use]
    pub fn flush(&mut self, epoll: BorrowedFd<'_>, ballast: &Ballast) -> bool {
        let mut has_made_room = false;
        while let Some(packet) = self.waiting.front() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = rustix::net::sendmsg(
                self.socket(),
                &[IoSlice::new(packet)],
                &mut rustix::net::SendAncillaryBuffer::default(),
                flags,
            );
            match sent {
                Err(Errno::AGAIN) => {
                    self.listen_for_room(epoll, true);
                    return false;
                }
                // The socket has room, and would say so each time.
                Err(Errno::NOBUFS | Errno::NOMEM) if has_made_room => {
                    self.listen_for_room(epoll, false);
                    return true;
                }
                Err(Errno::NOBUFS | Errno::NOMEM) => {
                    ballast.release();
                    has_made_room = true;
                }
                Err(Errno::INTR) => {}
                // Refused for good only when the daemon is gone, which shows up in `receive`.
                _ => {
                    self.waiting.pop_front();
                }
            }
        }
        self.listen_for_room(epoll, false);
        false
    }

    /// Has the daemon got all that was to be said? One that is gone needs nothing.
    pub fn has_said_all(&self) -> bool {
        self.waiting.is_empty()
    }

    fn listen_for_room(&mut self, epoll: BorrowedFd<'_>, wanted: bool) {
        if self.listening_for_room == wanted || self.closed {
            return;
        }
        self.listening_for_room = wanted;
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, wanted);
        let data = epoll::EventData::new_u64(super::CONTROL);
        let _ = epoll::modify(epoll, self.socket(), data, flags);
    }

    /// Nothing will be sent or received any more.
    pub fn close(&mut self, epoll: BorrowedFd<'_>) {
        self.closed = true;
        self.waiting.clear();
        let _ = epoll::delete(epoll, self.socket());
    }

    /// Takes the next packet.
    pub fn receive(&mut self) -> io::Result<Received> {
        if self.closed {
            return Ok(Received::Nothing);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let socket = self.socket();
        let received = loop {
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut iov = [IoSliceMut::new(&mut self.buffer)];
            match rustix::net::recvmsg(socket, &mut iov, &mut ancillary, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET) => return Ok(Received::Closed),
                Err(error) => return Err(error.into()),
            }
        };
        let descriptors = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        match received.bytes {
            0 => Ok(Received::Closed),
            len => Ok(Received::Packet(self.buffer[..len].to_vec(), descriptors)),
        }
    }
}
