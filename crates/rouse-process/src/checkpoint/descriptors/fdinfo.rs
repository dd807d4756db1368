//! `/proc/PID/fdinfo/N`: what the kernel tells about an open file.

use rouse_snapshot::model::{DescriptionKind, EpollWatch};

use crate::checkpoint::clocks;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::proc_files;

/// One such file.
#[derive(Debug)]
pub(super) struct FdInfo {
    path: String,
    text: String,
    /// Status flags, without `O_CLOEXEC`.
    pub(super) flags: u32,
    pub(super) close_on_exec: bool,
    /// File offset, bytes.
    pub(super) position: u64,
}

impl FdInfo {
    pub(super) fn read(pid: i32, fd: i32) -> Result<Self, CheckpointError> {
        Self::parse(
            format!("/proc/{pid}/fdinfo/{fd}"),
            proc_files::read_text(pid, &format!("fdinfo/{fd}"))?,
        )
    }

    fn parse(path: String, text: String) -> Result<Self, CheckpointError> {
        let mut info = Self {
            path,
            text,
            flags: 0,
            close_on_exec: false,
            position: 0,
        };
        let flags = info.number("flags", 8)? as u32;
        info.flags = flags & !(libc::O_CLOEXEC as u32);
        info.close_on_exec = flags & libc::O_CLOEXEC as u32 != 0;
        // Signed: sockets and the like have none.
        info.position = info
            .value("pos")?
            .parse::<i64>()
            .map_err(|_| info.malformed("pos"))?
            .max(0) as u64;
        Ok(info)
    }

    /// The value of the line that begins with `key` and a colon.
    fn value(&self, key: &'static str) -> Result<&str, CheckpointError> {
        self.find(key).ok_or_else(|| self.malformed(key))
    }

    fn find(&self, key: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map(str::trim)
    }

    fn number(&self, key: &'static str, radix: u32) -> Result<u64, CheckpointError> {
        u64::from_str_radix(self.value(key)?, radix).map_err(|_| self.malformed(key))
    }

    fn malformed(&self, what: &'static str) -> CheckpointError {
        CheckpointError::Format {
            path: self.path.clone(),
            what,
        }
    }

    /// Is a lock held through it?
    pub(super) fn has_lock(&self) -> bool {
        self.find("lock").is_some()
    }

    pub(super) fn eventfd(&self) -> Result<DescriptionKind, CheckpointError> {
        // Kernels before 5.19 do not tell; the plain kind is by far the more common.
        let semaphore = self.find("eventfd-semaphore") == Some("1");
        Ok(DescriptionKind::EventFd {
            count: self.number("eventfd-count", 16)?,
            semaphore,
        })
    }

    pub(super) fn timerfd(&self, pid: i32) -> Result<DescriptionKind, CheckpointError> {
        let time = |key| {
            let malformed = || self.malformed(key);
            let inner = self
                .value(key)?
                .strip_prefix('(')
                .and_then(|rest| rest.strip_suffix(')'))
                .ok_or_else(malformed)?;
            let (seconds, ns) = inner.split_once(", ").ok_or_else(malformed)?;
            let seconds: u64 = seconds.parse().map_err(|_| malformed())?;
            let ns: u64 = ns.parse().map_err(|_| malformed())?;
            Ok::<u64, CheckpointError>(seconds.saturating_mul(1_000_000_000).saturating_add(ns))
        };
        let clock = self.number("clockid", 10)? as i32;
        let flags = self.number("settime flags", 8)? as i32;
        let remaining_ns = time("it_value")?;
        let is_absolute = flags & libc::TFD_TIMER_ABSTIME != 0 && remaining_ns > 0;
        let expires_at_ns = if is_absolute {
            clocks::now_of(pid, clock)?.saturating_add(remaining_ns)
        } else {
            0
        };
        Ok(DescriptionKind::TimerFd {
            clock,
            remaining_ns,
            expires_at_ns,
            cancel_on_set: flags & libc::TFD_TIMER_CANCEL_ON_SET != 0,
            interval_ns: time("it_interval")?,
            ticks: self.number("ticks", 10)?,
        })
    }

    pub(super) fn signalfd(&self) -> Result<DescriptionKind, CheckpointError> {
        Ok(DescriptionKind::SignalFd {
            mask: self.number("sigmask", 16)?,
        })
    }

    /// Lines like `tfd:        5 events:       19 data:       5  pos:0 ino:61af sdev:7`.
    pub(super) fn epoll_watches(&self) -> Result<Vec<EpollWatch>, CheckpointError> {
        let mut watches = Vec::new();
        for line in self.text.lines().filter(|line| line.starts_with("tfd:")) {
            let fields = Fields(line);
            let watch = || {
                Some(EpollWatch {
                    fd: fields.get("tfd")?.parse().ok()?,
                    events: u32::from_str_radix(fields.get("events")?, 16).ok()?,
                    data: u64::from_str_radix(fields.get("data")?, 16).ok()?,
                })
            };
            watches.push(watch().ok_or_else(|| self.malformed("epoll watch"))?);
        }
        Ok(watches)
    }

    /// Lines like `inotify wd:1 ino:2c1 sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a1…`.
    pub(super) fn inotify_watches(&self) -> Result<Vec<RawInotifyWatch>, CheckpointError> {
        let mut watches = Vec::new();
        for line in self
            .text
            .lines()
            .filter(|line| line.starts_with("inotify "))
        {
            let fields = Fields(line);
            let number = |key| u64::from_str_radix(fields.get(key)?, 16).ok();
            let watch = || {
                Some(RawInotifyWatch {
                    wd: number("wd")? as i32,
                    inode: number("ino")?,
                    device: number("sdev")?,
                    mask: number("mask")? as u32,
                    // Missing where the file system has no handles.
                    handle_type: number("fhandle-type").unwrap_or(0) as i32,
                    handle: fields
                        .get("f_handle")
                        .and_then(from_hex)
                        .unwrap_or_default(),
                })
            };
            watches.push(watch().ok_or_else(|| self.malformed("inotify watch"))?);
        }
        watches.sort_by_key(|watch| watch.wd);
        Ok(watches)
    }
}

/// An inotify watch, whose file is named by a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawInotifyWatch {
    pub(super) wd: i32,
    pub(super) inode: u64,
    /// The kernel's own encoding: 12 bits of major, 20 of minor number.
    pub(super) device: u64,
    pub(super) mask: u32,
    pub(super) handle_type: i32,
    pub(super) handle: Vec<u8>,
}

/// A line of `key:value` pairs, with blanks between them and sometimes behind the colon.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        let mut rest = self.0;
        loop {
            let at = rest.find(key)?;
            let starts_word = at == 0 || rest.as_bytes()[at - 1] == b' ';
            let behind = &rest[at + key.len()..];
            if let (true, Some(value)) = (starts_word, behind.strip_prefix(':')) {
                return value.split_whitespace().next();
            }
            rest = behind;
        }
    }
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len() / 2)
        .map(|byte| u8::from_str_radix(digits.get(byte * 2..byte * 2 + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    fn info(text: &str) -> FdInfo {
        FdInfo::parse(
            "fdinfo".to_owned(),
            format!("pos:\t7\nflags:\t02004002\nmnt_id:\t15\nino:\t1\n{text}"),
        )
        .unwrap()
    }

    #[test]
    fn separates_close_on_exec_from_status_flags() {
        let info = info("");
        assert!(info.close_on_exec && !info.has_lock());
        assert_eq!(
            (info.flags, info.position),
            ((libc::O_RDWR | libc::O_NONBLOCK) as u32, 7)
        );
    }

    #[test]
    fn reads_each_kind() {
        let counter =
            info("eventfd-count:               1f\neventfd-id: 3\neventfd-semaphore: 1\n");
        assert_eq!(
            counter.eventfd().unwrap(),
            DescriptionKind::EventFd {
                count: 31,
                semaphore: true
            }
        );
        let timer = info(
            "clockid: 1\nticks: 2\nsettime flags: 02\nit_value: (1, 5)\nit_interval: (3, 0)\n",
        )
        .timerfd(std::process::id() as i32)
        .unwrap();
        let expected = DescriptionKind::TimerFd {
            clock: 1,
            remaining_ns: 1_000_000_005,
            expires_at_ns: 0,
            cancel_on_set: true,
            interval_ns: 3_000_000_000,
            ticks: 2,
        };
        assert_eq!(timer, expected);
        assert_eq!(
            info("sigmask:\t0000000000000200\n").signalfd().unwrap(),
            DescriptionKind::SignalFd { mask: 0x200 }
        );
        let set = info(
            "tfd:        5 events:       19 data:         ffffffff00000005  pos:0 ino:61af sdev:7\n",
        );
        assert_eq!(
            set.epoll_watches().unwrap(),
            vec![EpollWatch {
                fd: 5,
                events: 0x19,
                data: 0xffff_ffff_0000_0005
            }]
        );
        let watch = &info("inotify wd:a ino:2c1 sdev:fe00000 mask:3c6 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:c10200000ff00000\n")
            .inotify_watches()
            .unwrap()[0];
        assert_eq!(
            (watch.wd, watch.inode, watch.device, watch.mask),
            (10, 0x2c1, 0xfe0_0000, 0x3c6)
        );
        assert_eq!(
            (watch.handle_type, watch.handle.as_slice()),
            (1, [0xc1, 2, 0, 0, 0x0f, 0xf0, 0, 0].as_slice())
        );
        assert!(info("eventfd-count: zz\n").eventfd().is_err());
    }
}
