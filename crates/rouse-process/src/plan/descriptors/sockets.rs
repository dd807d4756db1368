//! Sockets without a partner in the snapshot, and connections that are reset.

use rouse_restorer::op::Op;
use rouse_snapshot::model::{DescriptionKind, SocketOption};

use super::{Made, on};
use crate::plan::Context;

impl Context<'_> {
    /// A socket that is not connected; or a datagram socket, with the address that it sends to.
    pub(super) fn socket(&mut self, list: &mut Vec<Op>, cell: u64, kind: &DescriptionKind) {
        let DescriptionKind::Socket {
            family,
            kind,
            protocol,
            bound,
            peer,
            listen,
            options,
        } = kind
        else {
            unreachable!("called for a socket only");
        };
        let at = Made::Cell(cell);
        let args = [*family as u64, *kind as u64, *protocol as u64];
        list.push(Op::syscall(libc::SYS_socket, &args).store(cell));
        self.options(list, at, options);
        if let Some(bound) = bound {
            let address = self.builder.bytes(bound, 8);
            let bind =
                Op::syscall(libc::SYS_bind, &[cell, address, bound.len() as u64]).indirect(0);
            // What a peer has led to may be an address that this sandbox does not have.
            list.push(if peer.is_some() {
                bind.ignore_error()
            } else {
                bind
            });
        }
        if let Some(peer) = peer {
            let address = self.builder.bytes(peer, 8);
            let connect = Op::syscall(libc::SYS_connect, &[cell, address, peer.len() as u64]);
            list.push(connect.indirect(0).ignore_error());
        }
        if let Some(backlog) = listen {
            list.push(Op::syscall(libc::SYS_listen, &[cell, *backlog as u64]).indirect(0));
        }
    }

    pub(super) fn options(&mut self, list: &mut Vec<Op>, socket: Made, options: &[SocketOption]) {
        for option in options {
            let value = self.builder.bytes(&option.value, 8);
            let args = [
                option.level as u64,
                option.name as u64,
                value,
                option.value.len() as u64,
            ];
            // Some options can be read but not set in every state; none of them changes what is said.
            list.push(on(socket, libc::SYS_setsockopt, &args).ignore_error());
        }
    }

    /// A connection that was open to somebody is reset in the copy: its owner sees an error and
    /// connects again. A real peer is made and closed with `SO_LINGER` 0, so that the function's
    /// side sees `ECONNRESET`, just as when a server goes away.
    pub(super) fn closed_connection(
        &mut self,
        list: &mut Vec<Op>,
        cell: u64,
        family: i32,
        kind: i32,
        queue: &[Vec<u8>],
    ) {
        let stream_family = match family {
            libc::AF_INET if kind == libc::SOCK_STREAM => {
                Some((16u64, vec![2u8, 0, 0, 0, 127, 0, 0, 1]))
            }
            libc::AF_INET6 if kind == libc::SOCK_STREAM => {
                let mut address = vec![10u8, 0, 0, 0, 0, 0, 0, 0];
                address.extend_from_slice(&[0; 15]);
                address.push(1);
                Some((28, address))
            }
            _ => None,
        };
        let Some((len, mut address)) = stream_family else {
            if family == libc::AF_UNIX {
                let both = self.builder.words(&[0]);
                list.push(Op::syscall(
                    libc::SYS_socketpair,
                    &[family as u64, kind as u64, 0, both],
                ));
                for message in queue {
                    let data = self.builder.bytes(message, 8);
                    let len = message.len() as u64;
                    list.push(
                        Op::syscall(libc::SYS_write, &[both + 4, data, len])
                            .indirect(0)
                            .exact(len),
                    );
                }
                list.push(Op::syscall(libc::SYS_close, &[both + 4]).indirect(0));
                list.push(Op::syscall(libc::SYS_dup, &[both]).indirect(0).store(cell));
            } else {
                list.push(
                    Op::syscall(libc::SYS_socket, &[family as u64, kind as u64, 0]).store(cell),
                );
            }
            return;
        };
        address.resize(32, 0);
        let address = self.builder.bytes(&address, 8);
        let address_len = self.builder.cell(len as u32);
        let listener = self.builder.cell(0);
        let peer = self.builder.cell(0);
        let linger = self.builder.bytes(&[1, 0, 0, 0, 0, 0, 0, 0], 8);
        list.push(Op::syscall(libc::SYS_socket, &[family as u64, kind as u64, 0]).store(listener));
        list.push(Op::syscall(libc::SYS_bind, &[listener, address, len]).indirect(0));
        list.push(Op::syscall(libc::SYS_listen, &[listener, 1]).indirect(0));
        list.push(
            Op::syscall(libc::SYS_getsockname, &[listener, address, address_len]).indirect(0),
        );
        list.push(Op::syscall(libc::SYS_socket, &[family as u64, kind as u64, 0]).store(cell));
        list.push(Op::syscall(libc::SYS_connect, &[cell, address, len]).indirect(0));
        list.push(
            Op::syscall(libc::SYS_accept4, &[listener, 0, 0, 0])
                .indirect(0)
                .store(peer),
        );
        let args = [
            peer,
            libc::SOL_SOCKET as u64,
            libc::SO_LINGER as u64,
            linger,
            8,
        ];
        list.push(Op::syscall(libc::SYS_setsockopt, &args).indirect(0));
        list.push(Op::syscall(libc::SYS_close, &[peer]).indirect(0));
        list.push(Op::syscall(libc::SYS_close, &[listener]).indirect(0));
    }
}
