//! Reading the text files of `/proc/PID`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::error::CheckpointError;

/// Reads `/proc/PID/NAME`.
pub(crate) fn read(pid: i32, name: &str) -> Result<Vec<u8>, CheckpointError> {
    let path = format!("/proc/{pid}/{name}");
    fs::read(&path).map_err(|source| CheckpointError::Read { path, source })
}

/// Reads `/proc/PID/NAME` as text.
pub(crate) fn read_text(pid: i32, name: &str) -> Result<String, CheckpointError> {
    Ok(String::from_utf8_lossy(&read(pid, name)?).into_owned())
}

/// Where the link `/proc/PID/NAME` points to.
pub(crate) fn read_link(pid: i32, name: &str) -> Result<Vec<u8>, CheckpointError> {
    let path = format!("/proc/{pid}/{name}");
    match fs::read_link(&path) {
        Ok(target) => Ok(PathBuf::into_os_string(target).into_vec()),
        Err(source) => Err(CheckpointError::Read { path, source }),
    }
}

/// The numeric entries of the directory `/proc/PID/NAME`, sorted.
pub(crate) fn numeric_entries(pid: i32, name: &str) -> Result<Vec<i32>, CheckpointError> {
    let path = format!("/proc/{pid}/{name}");
    numbers_in(&path)
}

/// The numeric entries of a directory, sorted.
pub(crate) fn numbers_in(path: &str) -> Result<Vec<i32>, CheckpointError> {
    let failed = |source| CheckpointError::Read {
        path: path.to_owned(),
        source,
    };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let name: OsString = entry.map_err(failed)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// `/proc/PID/status` (or that of a thread): `Key:\tvalue` lines.
#[derive(Debug)]
pub(crate) struct Status {
    path: String,
    text: String,
}

impl Status {
    /// Reads the status of a process or thread, by its id on the host.
    pub(crate) fn read(tid: i32) -> Result<Self, CheckpointError> {
        Ok(Self {
            path: format!("/proc/{tid}/status"),
            text: read_text(tid, "status")?,
        })
    }

    /// The value of a line.
    pub(crate) fn value(&self, key: &'static str) -> Result<&str, CheckpointError> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map(str::trim)
            .ok_or_else(|| self.malformed(key))
    }

    /// The value of a line in another base.
    pub(crate) fn number(&self, key: &'static str, radix: u32) -> Result<u64, CheckpointError> {
        u64::from_str_radix(self.value(key)?, radix).map_err(|_| self.malformed(key))
    }

    /// The id in the innermost pid namespace.
    pub(crate) fn innermost_id(&self) -> Result<i32, CheckpointError> {
        self.value("NSpid")?
            .split_whitespace()
            .next_back()
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| self.malformed("NSpid"))
    }

    fn malformed(&self, what: &'static str) -> CheckpointError {
        CheckpointError::Format {
            path: self.path.clone(),
            what,
        }
    }
}

/// The name of a process or thread, by its id on the host.
pub(crate) fn name(tid: i32) -> Result<Vec<u8>, CheckpointError> {
    let mut name = read(tid, "comm")?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Ok(name)
}
