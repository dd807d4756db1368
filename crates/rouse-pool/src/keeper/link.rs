//! The daemon's end of the control socket.
//!
//! A request is kept until it is answered. When a pager greets, it is new, and all that are kept
//! are sent again: the one before may have died over any of them. The thread that takes answers is
//! the one that sends again, so that a request is never sent after its answer was taken.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use rustix::net::{SendFlags, Shutdown};

use super::PagerError;
use super::events::PagerEvent;
use super::news::{News, PageFault};
use crate::pager::protocol::{Failure, MAX_DESCRIPTORS, MAX_PACKET, Notice, Outcome, Request};

/// A request is given up when it was sent this often: then it is what pagers die of.
const MAX_SENDS: u32 = 200;

#[derive(Debug)]
struct Kept {
    packet: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// How often it was sent.
    sends: AtomicU32,
    /// Nobody waits for the answer.
    posted: bool,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    kept: BTreeMap<u64, Arc<Kept>>,
    answers: BTreeMap<u64, Outcome>,
    gone: bool,
    news: News,
}

#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    state: Mutex<State>,
    answered: Condvar,
}

impl Link {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            state: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and waits for its end.
    pub fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u64, PagerError> {
        let id = self.send(request, descriptors, false)?;
        let mut state = self.state();
        loop {
            if let Some(outcome) = state.answers.remove(&id) {
                return outcome.map_err(error);
            }
            if state.gone {
                state.kept.remove(&id);
                return Err(PagerError::Gone);
            }
            state = self
                .answered
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends a request whose end does not matter.
    pub fn post(&self, request: &Request) {
        // Fails only when there is nobody left to do anything.
        let _ = self.send(request, &[], true);
    }

    fn send(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        posted: bool,
    ) -> Result<u64, PagerError> {
        let descriptors = descriptors
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
            .collect::<Result<_, _>>()
            .map_err(|error| PagerError::Io(error.into()))?;
        let mut state = self.state();
        if state.gone {
            return Err(PagerError::Gone);
        }
        state.next += 1;
        let id = state.next;
        let kept = Arc::new(Kept {
            packet: request.encode(id),
            descriptors,
            sends: AtomicU32::new(1),
            posted,
        });
        state.kept.insert(id, kept.clone());
        drop(state);
        self.transmit(&kept);
        Ok(id)
    }

    /// Failures show up at the reading end too, which tells everybody.
    fn transmit(&self, kept: &Kept) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = kept.descriptors.iter().map(OwnedFd::as_fd).collect();
        if !fds.is_empty() {
            let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            debug_assert!(pushed);
        }
        let packet = [IoSlice::new(&kept.packet)];
        while let Err(Errno::INTR) =
            rustix::net::sendmsg(&self.socket, &packet, &mut ancillary, SendFlags::NOSIGNAL)
        {
        }
    }

    /// Is the other end closed?
    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// What was heard of an instance's pages so far.
    pub fn fault_of(&self, token: u64) -> Option<PageFault> {
        self.state().news.of(token)
    }

    pub fn forget_faults_of(&self, token: u64) {
        self.state().news.forget(token);
    }

    /// Nothing is to be said any more.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Takes answers and events until the other end is closed. The body of a thread.
    pub fn listen(&self, events: &Sender<PagerEvent>) {
        let mut buffer = vec![0; MAX_PACKET];
        while let Some(notice) = self.next(&mut buffer) {
            match notice {
                Notice::Answer { id, outcome } => self.take(id, outcome),
                notice => {
                    self.state().news.hear(&notice);
                    if let Notice::Hello { generation } = notice
                        && generation > 1
                    {
                        self.send_again();
                    }
                    if let Some(event) = PagerEvent::of(notice) {
                        // Nobody has to listen.
                        let _ = events.send(event);
                    }
                }
            }
        }
        self.state().gone = true;
        self.answered.notify_all();
    }

    fn next(&self, buffer: &mut [u8]) -> Option<Notice> {
        loop {
            let mut iov = [IoSliceMut::new(buffer)];
            let mut ancillary = RecvAncillaryBuffer::default();
            let flags = RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut iov, &mut ancillary, flags) {
                Ok(received) if received.bytes == 0 => return None,
                Ok(received) => match Notice::decode(&buffer[..received.bytes]) {
                    Some(notice) => return Some(notice),
                    None => tracing::error!("a notice of the pager cannot be understood"),
                },
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn take(&self, id: u64, outcome: Outcome) {
        let mut state = self.state();
        // A second answer to a request that was sent again finds nothing.
        if let Some(kept) = state.kept.remove(&id)
            && !kept.posted
        {
            state.answers.insert(id, outcome);
            self.answered.notify_all();
        }
    }

    fn send_again(&self) {
        let kept: Vec<(u64, Arc<Kept>)> = {
            let state = self.state();
            state
                .kept
                .iter()
                .map(|(id, kept)| (*id, kept.clone()))
                .collect()
        };
        for (id, kept) in kept {
            if kept.sends.fetch_add(1, Ordering::Relaxed) < MAX_SENDS {
                self.transmit(&kept);
            } else {
                let detail = "every pager that got this request has died".to_owned();
                self.take(id, Err((Failure::Malformed, detail)));
            }
        }
    }
}

fn error((failure, detail): (Failure, String)) -> PagerError {
    match failure {
        Failure::UnknownPool => PagerError::UnknownPool(detail),
        Failure::Busy => PagerError::Busy(detail),
        Failure::Full => PagerError::Full(detail),
        Failure::Kernel => PagerError::Kernel(detail),
        Failure::Memory => PagerError::OutOfMemory(detail),
        Failure::Damaged => PagerError::Damaged(detail),
        Failure::Malformed => PagerError::Malformed(detail),
    }
}
