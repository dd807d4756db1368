//! Arbitrary open files.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use rouse_snapshot::model::*;

use super::memory::{object_size, pieces, runs};
use super::{bytes, file_id, large, path};

fn options() -> impl Strategy<Value = Vec<SocketOption>> {
    let option = (any::<(i32, i32)>(), bytes(20));
    vec(
        option.prop_map(|((level, name), value)| SocketOption { level, name, value }),
        0..3,
    )
}

fn kind() -> impl Strategy<Value = DescriptionKind> {
    let pipe = (any::<(u32, bool)>(), bytes(50)).prop_map(|((pipe, write_end), content)| {
        let content = if write_end { vec![] } else { content };
        DescriptionKind::Pipe {
            pipe,
            write_end,
            content,
            capacity: 4096,
        }
    });
    let pair = (
        any::<(u32, bool)>(),
        0usize..3,
        vec(bytes(20), 0..3),
        options(),
    )
        .prop_map(|((pair, second), kind, mut queue, options)| {
            let kind = [1, 2, 5][kind];
            queue.truncate(if kind == 1 { 1 } else { 3 });
            DescriptionKind::SocketPair {
                pair,
                second,
                kind,
                queue,
                options,
            }
        });
    let socket = (
        any::<(i32, i32, i32)>(),
        option::of(bytes(128)),
        any::<Option<i32>>(),
        options(),
    );
    let epoll = any::<Vec<(u32, u64)>>().prop_map(|watches| DescriptionKind::Epoll {
        watches: watches
            .into_iter()
            .enumerate()
            .map(|(fd, (events, data))| EpollWatch {
                fd: fd as i32,
                events,
                data,
            })
            .collect(),
    });
    let inotify = btree_map(1i32.., (path(), any::<u32>()), 0..4).prop_map(|watches| {
        let watch = |(wd, (path, mask)): (i32, (Vec<u8>, u32))| InotifyWatch { wd, path, mask };
        DescriptionKind::Inotify {
            watches: watches.into_iter().map(watch).collect(),
        }
    });
    let memfd = (0u32..3, vec(1u8.., 0..20), any::<u32>(), large(), pieces()).prop_map(
        |(object, name, seals, offset, pieces)| {
            let size = object_size(object);
            let saved = runs(0, size.div_ceil(PAGE_SIZE), &pieces);
            DescriptionKind::MemFd {
                object,
                name,
                size,
                seals,
                offset,
                saved,
            }
        },
    );
    prop_oneof![
        Just(DescriptionKind::Log),
        options().prop_map(|options| DescriptionKind::RuntimeApi { options }),
        any::<(i32, i32)>().prop_map(|(family, kind)| DescriptionKind::ClosedConnection {
            family,
            kind,
            queue: std::vec::Vec::from([std::vec::Vec::from([1; 3])])
        }),
        (path(), large(), option::of(file_id())).prop_map(|(path, offset, identity)| {
            DescriptionKind::Path {
                path,
                offset,
                identity,
            }
        }),
        pipe,
        (0..u64::MAX, any::<bool>())
            .prop_map(|(count, semaphore)| DescriptionKind::EventFd { count, semaphore }),
        any::<(i32, [u64; 4], bool)>().prop_map(
            |(clock, [remaining_ns, expires_at_ns, interval_ns, ticks], cancel_on_set)| {
                DescriptionKind::TimerFd {
                    clock,
                    remaining_ns,
                    expires_at_ns,
                    cancel_on_set,
                    interval_ns,
                    ticks,
                }
            }
        ),
        any::<u64>().prop_map(|mask| DescriptionKind::SignalFd { mask }),
        epoll,
        inotify,
        pair,
        socket.prop_map(|((family, kind, protocol), bound, listen, options)| {
            DescriptionKind::Socket {
                family,
                kind,
                protocol,
                peer: bound.clone(),
                bound,
                listen,
                options,
            }
        }),
        memfd,
    ]
}

pub fn open_files() -> impl Strategy<Value = (Vec<Description>, Vec<Descriptor>)> {
    let description = (any::<u32>(), kind()).prop_map(|(flags, kind)| Description { flags, kind });
    let fds = btree_map(0i32.., any::<(bool, prop::sample::Index)>(), 0..10);
    (vec(description, 1..8), fds).prop_map(|(descriptions, fds)| {
        let descriptor = |(fd, (close_on_exec, which)): (i32, (bool, prop::sample::Index))| {
            let description = DescriptionId(which.index(descriptions.len()) as u32);
            Descriptor {
                fd,
                close_on_exec,
                description,
            }
        };
        let descriptors = fds.into_iter().map(descriptor).collect();
        (descriptions, descriptors)
    })
}
