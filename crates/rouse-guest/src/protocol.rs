//! The conversation between the host and the agent in its guest: one JSON object a line, over a connection that the agent
//! opens to [`CONTROL_PORT`] from one of the [`RESERVED`] ports.
//!
//! ```text
//!  agent                       host
//!    ready        ───────────>          the machine has booted
//!                 <───────────  start   the function's runtime; its API is a connection to [`API_PORT`]
//!                             or template   a runtime without a function: the disk of its package is not mounted
//!    started      ───────────>
//!                 <───────────  pause   no instruction of the function runs after `paused`; caches and free memory are emptied
//!    owners       ───────────>          any number of them: parts of a table of what each page belongs to
//!    paused       ───────────>          ... snapshot, and in each machine that is restored from it:
//!                 <───────────  resume  clock and randomness are set, then the function goes on
//!                             or become  of a template: before that, the disk of the package is taken up and mounted
//!    resumed      ───────────>
//!                 <───────────  go_on   or, in the machine itself: the function goes on as if nothing had been
//!    resumed      ───────────>
//!    exited       ───────────>          at any time
//!                 <───────────  off
//! ```
//!
//! Either side may be lying: lines are bounded ([`MOST`]), and what is not known is refused.

use std::io::{self, BufRead, Write};
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The port of this conversation on the host.
pub const CONTROL_PORT: u32 = 1024;
/// From which ports of the guest the agent connects: only privileged processes may have them, so that the host can tell it from
/// the function.
pub const RESERVED: RangeInclusive<u32> = 512..=1023;
/// The port that takes what the function prints.
pub const OUTPUT_PORT: u32 = 1025;
/// The port of the runtime API, on the host as on the guest's loopback. Where it can be, the relay connects from the port
/// that its client has on loopback; from no higher one than there can be there.
pub const API_PORT: u16 = 9001;
/// No line is longer, in bytes: 4 KiB of environment, and what JSON makes of it.
pub const MOST: u64 = 256 << 10;

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToGuest {
    /// Starts the function. Once in a machine's life.
    Start(Start),
    /// Starts the runtime of a language template, without the package's disk. In the place of `Start`.
    Template(Start),
    /// Stops it before a snapshot.
    Pause,
    /// Lets it go on, in a machine that may be a copy.
    Resume(Fresh),
    /// Lets a template go on as a function, whose package the machine has as a disk. In the place of `Resume`, once.
    Become(Fresh),
    /// Lets it go on in the machine that was paused, as if nothing had been.
    GoOn,
    /// Switches the machine off.
    Off,
}

/// From the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToHost {
    /// The machine has booted; a line about it.
    Ready(String),
    /// The function's runtime was started.
    Started,
    /// A part of the table of owners, [`crate::owners::Owners::parts`]. Before `Paused`.
    Owners(String),
    /// It does not run any more.
    Paused,
    /// It runs again.
    Resumed,
    /// It has ended; how, in words.
    Exited(String),
    /// What was asked for cannot be done; the function is in no known state.
    Failed(String),
}

/// The function's runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The program, as an absolute path, and its arguments.
    pub arguments: Vec<String>,
    /// All of its environment.
    pub environment: Vec<(String, String)>,
    /// Where it starts.
    pub directory: String,
    /// Whom it runs as: user and group.
    pub owner: (u32, u32),
    /// What its machine must not share with any other.
    pub fresh: Fresh,
}

/// What differs in each copy of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fresh {
    /// Nanoseconds since 1970.
    pub unix_time: u64,
    /// From the host's generator.
    pub random: [u8; 32],
}

/// Sends `message`.
///
/// # Errors
/// Those of `stream`.
pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Waits for a message. `None` when the other side has closed the connection.
///
/// # Errors
/// Those of `stream`; `InvalidData` for what is no message.
pub fn receive<T: DeserializeOwned>(stream: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let mut limited = io::Read::take(&mut *stream, MOST);
    if limited.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        let reason = "a message was cut off, or is too long";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let start = ToGuest::Start(Start {
            arguments: vec!["/usr/bin/python3".to_owned(), "a\nb".to_owned()],
            environment: vec![("A".to_owned(), "=\"".to_owned())],
            directory: "/var/task".to_owned(),
            owner: (993, 990),
            fresh: Fresh {
                unix_time: u64::MAX,
                random: [7; 32],
            },
        });
        let mut wire = Vec::new();
        send(&mut wire, &start).expect("a vector takes it");
        let fresh = Fresh {
            unix_time: 0,
            random: [0; 32],
        };
        let more = [ToGuest::Pause, ToGuest::Become(fresh)];
        for message in &more {
            send(&mut wire, message).expect("a vector takes it");
        }
        let mut wire = wire.as_slice();
        for message in [start].into_iter().chain(more) {
            assert_eq!(receive(&mut wire).expect("it is a message"), Some(message));
        }
        assert_eq!(receive::<ToGuest>(&mut wire).expect("it is the end"), None);
    }

    proptest! {
        #[test]
        fn what_is_no_message_is_refused(bytes: Vec<u8>) {
            // None of these is shorter than the shortest message.
            prop_assume!(!bytes.starts_with(b"\""));
            let received = receive::<ToGuest>(&mut bytes.as_slice());
            prop_assert!(received.is_err() || bytes.is_empty());
        }

        #[test]
        fn a_line_without_an_end_is_not_kept(more in 0_usize..3) {
            let endless = vec![b' '; usize::try_from(MOST).expect("small") + more];
            prop_assert!(receive::<ToHost>(&mut endless.as_slice()).is_err());
        }
    }
}
