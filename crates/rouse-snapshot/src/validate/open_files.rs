//! File references, open file descriptions and descriptors.

use super::{Check, Invalid, check_file_id, check_path, check_runs, ensure};
use crate::model::{DescriptionKind, FileRef, PAGE_SIZE, ProcessSnapshot, SocketOption};

const SOCK_STREAM: i32 = 1;
const SOCK_DGRAM: i32 = 2;
const SOCK_SEQPACKET: i32 = 5;
/// `sizeof(struct sockaddr_storage)`.
const SOCKADDR_MAX: usize = 128;
/// A memfd's name may be this long (`NAME_MAX` less the prefix `memfd:`).
const MEMFD_NAME_MAX: usize = 249;
/// `INT_MAX`: the kernel takes no longer option.
const OPTION_MAX: usize = i32::MAX as usize;

pub(super) fn check_files(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    for (index, file) in snapshot.files.iter().enumerate() {
        check_file(file).map_err(|why| Invalid::File { index, why })?;
    }
    Ok(())
}

fn check_file(file: &FileRef) -> Check {
    check_path(&file.path)?;
    check_path(&file.host_path)?;
    ensure(file.size <= i64::MAX as u64, "its size is too large")
}

pub(super) fn check_descriptions(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    for (index, description) in snapshot.descriptions.iter().enumerate() {
        check_kind(snapshot, &description.kind)
            .map_err(|why| Invalid::Description { index, why })?;
    }
    Ok(())
}

fn check_kind(snapshot: &ProcessSnapshot, kind: &DescriptionKind) -> Check {
    match kind {
        DescriptionKind::Log
        | DescriptionKind::ClosedConnection { .. }
        | DescriptionKind::TimerFd { .. }
        | DescriptionKind::SignalFd { .. } => Ok(()),
        DescriptionKind::RuntimeApi { options } => check_options(options),
        DescriptionKind::Path {
            path,
            offset,
            identity,
        } => {
            check_path(path)?;
            ensure(*offset <= i64::MAX as u64, "its offset is too large")?;
            identity.map_or(Ok(()), |file| check_file_id(snapshot, file))
        }
        DescriptionKind::Pipe {
            write_end,
            content,
            capacity,
            ..
        } => {
            ensure(
                !write_end || content.is_empty(),
                "the writing end of a pipe has content",
            )?;
            ensure(
                content.len() as u64 <= u64::from(*capacity),
                "a pipe holds more than it can",
            )
        }
        // The counter's largest value is one less than the largest number.
        DescriptionKind::EventFd { count, .. } => {
            ensure(*count < u64::MAX, "an eventfd counts too far")
        }
        DescriptionKind::Epoll { watches } => ensure(
            watches.iter().all(|watch| watch.fd >= 0),
            "it watches a negative descriptor",
        ),
        DescriptionKind::Inotify { watches } => {
            ensure(
                watches.iter().all(|watch| watch.wd > 0),
                "a watch descriptor is not positive",
            )?;
            ensure(
                watches.array_windows().all(|[a, b]| a.wd < b.wd),
                "its watches are not sorted, or one is there twice",
            )?;
            watches.iter().try_for_each(|watch| check_path(&watch.path))
        }
        DescriptionKind::SocketPair {
            kind,
            queue,
            options,
            ..
        } => {
            ensure(
                [SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET].contains(kind),
                "a socket pair has no such type",
            )?;
            ensure(
                *kind != SOCK_STREAM || queue.len() <= 1,
                "a stream has no separate messages",
            )?;
            check_options(options)
        }
        DescriptionKind::Socket {
            bound,
            peer,
            options,
            ..
        } => {
            ensure(
                [bound, peer]
                    .into_iter()
                    .flatten()
                    .all(|address| address.len() <= SOCKADDR_MAX),
                "a socket address is too long",
            )?;
            check_options(options)
        }
        DescriptionKind::MemFd {
            name,
            size,
            offset,
            saved,
            ..
        } => {
            ensure(
                name.len() <= MEMFD_NAME_MAX,
                "the name of a memfd is too long",
            )?;
            ensure(!name.contains(&0), "the name of a memfd holds a NUL")?;
            ensure(*size <= i64::MAX as u64, "a memfd is too large")?;
            ensure(*offset <= i64::MAX as u64, "its offset is too large")?;
            check_runs(
                saved,
                0,
                size.next_multiple_of(PAGE_SIZE),
                &[snapshot.pool_pages],
            )
        }
    }
}

fn check_options(options: &[SocketOption]) -> Check {
    ensure(
        options
            .iter()
            .all(|option| option.value.len() <= OPTION_MAX),
        "the value of a socket option is too long",
    )
}

pub(super) fn check_descriptors(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    let mut previous = None;
    for descriptor in &snapshot.descriptors {
        let fd = descriptor.fd;
        let exists = (descriptor.description.0 as usize) < snapshot.descriptions.len();
        ensure(fd >= 0, "it is negative")
            .and_then(|()| ensure(previous < Some(fd), "it is not sorted, or there twice"))
            .and_then(|()| ensure(exists, "refers to an open file that is not in the list"))
            .map_err(|why| Invalid::Descriptor { fd, why })?;
        previous = Some(fd);
    }
    Ok(())
}
