//! The virtual memory areas of a process, as `/proc/PID/smaps` lists them.

use std::ops::Range;

use super::error::CheckpointError;
use super::proc_files;

/// One line of `/proc/PID/maps` with the flags of `smaps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vma {
    /// Addresses.
    pub(crate) range: Range<u64>,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
    pub(crate) shared: bool,
    /// Offset in the file, bytes.
    pub(crate) offset: u64,
    /// Device number of the file, as text (`fe:00`): only ever compared.
    pub(crate) device: String,
    /// Inode number of the file, 0 when there is none.
    pub(crate) inode: u64,
    /// Path or name, without the mark of a deleted file.
    pub(crate) path: Vec<u8>,
    /// Did the path carry ` (deleted)`?
    pub(crate) deleted: bool,
    /// Protection key.
    pub(crate) pkey: u32,
    /// Two-letter codes of the `VmFlags` line, separated by spaces.
    codes: String,
}

impl Vma {
    /// Has this flag, by its code in `VmFlags`?
    pub(crate) fn has(&self, code: &str) -> bool {
        self.codes.split_ascii_whitespace().any(|its| its == code)
    }

    /// Is its file on this device?
    pub(crate) fn is_on(&self, device: u64) -> bool {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        self.device == format!("{major:02x}:{minor:02x}")
    }

    /// The name that `PR_SET_VMA_ANON_NAME` gave to anonymous memory; empty without one.
    pub(crate) fn given_name(&self) -> &[u8] {
        let inside = |prefix| self.path.strip_prefix(prefix)?.strip_suffix(b"]");
        inside(b"[anon:".as_slice())
            .or_else(|| inside(b"[anon_shmem:"))
            .unwrap_or_default()
    }

    /// A part of it.
    pub(crate) fn part(&self, range: Range<u64>) -> Self {
        Self {
            offset: match self.inode {
                0 => self.offset,
                _ => self.offset + (range.start - self.range.start),
            },
            range,
            ..self.clone()
        }
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u64 {
        (self.range.end - self.range.start) / 4096
    }

    /// Name of its link in `/proc/PID/map_files`.
    pub(crate) fn map_file(&self) -> String {
        format!("map_files/{:x}-{:x}", self.range.start, self.range.end)
    }
}

/// All mappings of a process, in address order.
pub(crate) fn read(pid: i32) -> Result<Vec<Vma>, CheckpointError> {
    parse(&proc_files::read(pid, "smaps")?).ok_or_else(|| CheckpointError::Format {
        path: format!("/proc/{pid}/smaps"),
        what: "mapping",
    })
}

/// The same without flags and protection keys, from `/proc/PID/maps`: that does not look at pages.
pub(crate) fn read_plain(pid: i32) -> Result<Vec<Vma>, CheckpointError> {
    parse(&proc_files::read(pid, "maps")?).ok_or_else(|| CheckpointError::Format {
        path: format!("/proc/{pid}/maps"),
        what: "mapping",
    })
}

pub(crate) fn parse(smaps: &[u8]) -> Option<Vec<Vma>> {
    let mut vmas: Vec<Vma> = Vec::new();
    for line in smaps.split(|byte| *byte == b'\n') {
        match line.first() {
            // Lines of attributes begin with a capital, addresses are lower-case hexadecimal.
            Some(first) if first.is_ascii_uppercase() => {
                let vma = vmas.last_mut()?;
                if let Some(codes) = line.strip_prefix(b"VmFlags:") {
                    vma.codes = std::str::from_utf8(codes).ok()?.trim().to_owned();
                } else if let Some(pkey) = line.strip_prefix(b"ProtectionKey:") {
                    vma.pkey = std::str::from_utf8(pkey).ok()?.trim().parse().ok()?;
                }
            }
            Some(_) => vmas.push(parse_header(line)?),
            None => {}
        }
    }
    Some(vmas)
}

/// `start-end perms offset dev inode   path`; the path may hold spaces and bytes that are no text.
fn parse_header(line: &[u8]) -> Option<Vma> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = field()?.split_once('-')?;
    let permissions = field()?.as_bytes();
    let offset = u64::from_str_radix(field()?, 16).ok()?;
    let device = field()?.to_owned();
    let inode = field()?.parse().ok()?;
    let name = fields.next().unwrap_or_default();
    let name = &name[name
        .iter()
        .position(|byte| *byte != b' ')
        .unwrap_or(name.len())..];
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(name) => (name, true),
        None => (name, false),
    };
    Some(Vma {
        range: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
        read: permissions.first() == Some(&b'r'),
        write: permissions.get(1) == Some(&b'w'),
        execute: permissions.get(2) == Some(&b'x'),
        shared: permissions.get(3) == Some(&b's'),
        offset,
        device,
        inode,
        path: unescape(name),
        deleted,
        pkey: 0,
        codes: String::new(),
    })
}

/// The kernel writes a newline in a path as `\012`, and nothing else specially.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.windows(4).position(|bytes| bytes == b"\\012") {
        plain.extend_from_slice(&rest[..at]);
        plain.push(b'\n');
        rest = &rest[at + 4..];
    }
    plain.extend_from_slice(rest);
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    const SMAPS: &[u8] = b"\
7f0000000000-7f0000002000 rw-p 00001000 fe:00 325843                     /usr/lib/a b\\012c (deleted)
Size:                  8 kB
ProtectionKey:         3
VmFlags: rd wr mr mw me dc ac 
7ffc9545d000-7ffc9547e000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac 
7ffc9547e000-7ffc9547f000 ---s 00000000 00:01 5
VmFlags: sh mr mw me ms
";

    #[test]
    fn reads_paths_flags_and_keys() {
        let vmas = parse(SMAPS).unwrap();
        assert_eq!(vmas.len(), 3);
        assert_eq!(vmas[0].path, b"/usr/lib/a b\nc");
        assert!(vmas[0].deleted && vmas[0].write && !vmas[0].shared);
        assert_eq!(
            (vmas[0].pkey, vmas[0].inode, vmas[0].offset, vmas[0].pages()),
            (3, 325_843, 0x1000, 2)
        );
        assert!(vmas[1].has("gd") && !vmas[0].has("gd"));
        assert_eq!(vmas[1].path, b"[stack]");
        assert!(vmas[2].shared && !vmas[2].read && vmas[2].path.is_empty());
        assert_eq!(vmas[0].map_file(), "map_files/7f0000000000-7f0000002000");
    }

    #[test]
    fn refuses_what_is_not_smaps() {
        assert_eq!(parse(b"Size: 8 kB\n"), None);
        assert_eq!(parse(b"7f-zz rw-p 0 0:0 0\n"), None);
    }
}
