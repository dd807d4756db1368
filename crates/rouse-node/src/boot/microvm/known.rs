//! What the guest of a snapshot knew when it was written down. A file beside the snapshot.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::seals::Seal;

/// Its name in the snapshot's directory.
const FILE: &str = "guest.json";
/// A larger file is none.
const MOST: u64 = 64 << 10;

/// What the guest of a snapshot knew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestKnows {
    /// The guest's port of the connection on which its runtime was parked.
    pub parked: u16,
    /// Its disks; of a template without that of the package.
    pub disks: Vec<Seal>,
}

impl GuestKnows {
    /// Writes it beside a snapshot.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(FILE);
        fs::write(&path, serde_json::to_vec(self)?)?;
        File::open(&path)?.sync_all()?;
        File::open(directory)?.sync_all()
    }

    /// Reads that of a snapshot.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        match fs::metadata(&path)?.len() {
            0..=MOST => Ok(serde_json::from_slice(&fs::read(path)?)?),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let disk = r#"{"place":"/","sha256":"00"}"#;
        let known = GuestKnows {
            parked: 40_000,
            disks: vec![serde_json::from_str(disk).unwrap()],
        };
        known.write(directory.path()).unwrap();
        assert_eq!(GuestKnows::read(directory.path()).unwrap(), known);
        let no_port = r#"{"parked":65536,"disks":[]}"#;
        let more = r#"{"parked":1,"disks":[{"place":"/","sha256":"","more":1}]}"#;
        for damaged in ["", "{", r#"{"disks":[]}"#, no_port, more] {
            fs::write(directory.path().join(FILE), damaged).unwrap();
            assert!(GuestKnows::read(directory.path()).is_err(), "{damaged}");
        }
    }
}
