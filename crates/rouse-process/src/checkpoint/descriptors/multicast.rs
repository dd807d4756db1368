//! Memberships of multicast groups. A socket does not list its own; but each of its groups is in the
//! list of its network namespace, and a socket can be asked about one group.

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rouse_snapshot::model::SocketOption;

use crate::checkpoint::error::{CheckpointError, Obstacle};
use crate::checkpoint::proc_files;

const MCAST_MSFILTER: i32 = 48;
/// All senders but those listed.
const MCAST_EXCLUDE: u32 = 0;
/// The one device that each sandbox has, under the same number.
const LOOPBACK: &str = "lo";

/// A group that somebody in a network namespace is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    interface: u32,
    device: String,
    /// 4 or 16 bytes.
    address: Vec<u8>,
}

impl Group {
    fn is_ipv4(&self) -> bool {
        self.address.len() == size_of::<u32>()
    }
}

/// `struct group_filter` without sources.
#[repr(C)]
struct GroupFilter {
    interface: u32,
    group: libc::sockaddr_storage,
    mode: u32,
    sources: u32,
}

const _: () = assert!(size_of::<GroupFilter>() == 144 && offset_of!(GroupFilter, group) == 8);

/// The groups of the network namespace of a process. Systems without IPv6 or multicast list none.
pub(super) fn groups(pid: i32) -> Vec<Group> {
    let read = |name| proc_files::read_text(pid, name).unwrap_or_default();
    let mut groups = parse_ipv4(&read("net/igmp"));
    groups.extend(read("net/igmp6").lines().filter_map(parse_ipv6));
    groups
}

/// A line `1 lo : 1 V3` for a device, then, indented by tabs, `010000E0 1 0:00000000 0` for each of its groups.
fn parse_ipv4(text: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut device = None;
    for line in text.lines().skip(1) {
        let mut fields = line.split_whitespace();
        let Some(first) = fields.next() else { continue };
        if !line.starts_with('\t') {
            device = first.parse::<u32>().ok().zip(fields.next());
        } else if let (Some((interface, name)), Ok(address)) =
            (device, u32::from_str_radix(first, 16))
        {
            groups.push(Group {
                interface,
                device: name.to_owned(),
                address: address.to_ne_bytes().to_vec(),
            });
        }
    }
    groups
}

/// `1    lo              ff020000000000000000000000000001     1 0000000C 0`.
fn parse_ipv6(line: &str) -> Option<Group> {
    let mut fields = line.split_whitespace();
    let interface = fields.next()?.parse().ok()?;
    let device = fields.next()?.to_owned();
    let address = u128::from_str_radix(fields.next()?, 16).ok()?;
    Some(Group {
        interface,
        device,
        address: address.to_be_bytes().to_vec(),
    })
}

/// The memberships of `socket`, a duplicate of the datagram socket `fd`, as options to set again.
pub(super) fn memberships(
    socket: &OwnedFd,
    fd: i32,
    family: i32,
    groups: &[Group],
) -> Result<Vec<SocketOption>, CheckpointError> {
    // A socket of IPv6 may be in groups of both.
    let candidates = groups
        .iter()
        .filter(|group| family == libc::AF_INET6 || group.is_ipv4());
    let mut options = Vec::new();
    for group in candidates {
        let Some(filter) = filter(socket, group) else {
            continue;
        };
        let obstacle = |what: String| CheckpointError::from(Obstacle::descriptor(fd, what));
        if (filter.mode, filter.sources) != (MCAST_EXCLUDE, 0) {
            return Err(obstacle(
                "multicast group with a list of senders".to_owned(),
            ));
        }
        if group.device != LOOPBACK {
            return Err(obstacle(format!("multicast group on {}", group.device)));
        }
        let mut value = group.address.clone();
        let (level, name) = if group.is_ipv4() {
            // struct ip_mreqn: group, address of the device, its number.
            value.extend_from_slice(&[0; 4]);
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP)
        };
        value.extend_from_slice(&group.interface.to_ne_bytes());
        options.push(SocketOption { level, name, value });
    }
    Ok(options)
}

/// Whom the socket hears in a group; `None` when it is not in it.
fn filter(socket: &OwnedFd, group: &Group) -> Option<GroupFilter> {
    // SAFETY: the structure consists of integers only.
    let mut filter: GroupFilter = unsafe { std::mem::zeroed() };
    filter.interface = group.interface;
    // struct sockaddr_in holds its address at 4, sockaddr_in6 at 8.
    let (family, level, at) = if group.is_ipv4() {
        (libc::AF_INET, libc::IPPROTO_IP, 4)
    } else {
        (libc::AF_INET6, libc::IPPROTO_IPV6, 8)
    };
    filter.group.ss_family = family as libc::sa_family_t;
    // SAFETY: a `sockaddr_storage` has 128 bytes, any of which may hold any value.
    let storage = unsafe {
        std::slice::from_raw_parts_mut(
            (&raw mut filter.group).cast::<u8>(),
            size_of::<libc::sockaddr_storage>(),
        )
    };
    storage[at..at + group.address.len()].copy_from_slice(&group.address);
    let mut len = size_of::<GroupFilter>() as libc::socklen_t;
    // SAFETY: getsockopt reads and writes at most `len` bytes of the filter, which has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            MCAST_MSFILTER,
            (&raw mut filter).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_lists_of_a_namespace() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\t\t\t\t010203EF     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0      :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let group = |interface, device: &str, address: &[u8]| Group {
            interface,
            device: device.to_owned(),
            address: address.to_vec(),
        };
        let expected = [
            group(1, "lo", &[0xef, 3, 2, 1]),
            group(1, "lo", &[224, 0, 0, 1]),
            group(2, "eth0", &[224, 0, 0, 1]),
        ];
        assert_eq!(parse_ipv4(igmp), expected);
        let line = "1    lo              ff020000000000000000000000000001     1 0000000C 0";
        let mut address = [0; 16];
        (address[0], address[1], address[15]) = (0xff, 2, 1);
        assert_eq!(parse_ipv6(line), Some(group(1, "lo", &address)));
        assert_eq!(parse_ipv4(""), []);
        assert_eq!(parse_ipv6(""), None);
    }
}
