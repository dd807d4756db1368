//! Queues as directories: `queues/NAME/` below the state directory, one file for each message.
//!
//! A file whose name ends with `.json` is whole; who has handled a message removes its file. Messages of one event have one
//! name, so that a delivery that is made again writes the same file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where a queue's messages are.
pub fn directory(state: &Path, name: &str) -> PathBuf {
    state.join("queues").join(name)
}

/// Adds a message. When this returns, it is on disk.
///
/// `id` orders the messages of a queue and must not hold a slash, which request ids and numbers do not.
pub fn put(state: &Path, name: &str, id: &str, message: &[u8]) -> io::Result<()> {
    let directory = directory(state, name);
    fs::create_dir_all(&directory)?;
    let unfinished = directory.join(format!("{id}.part"));
    let mut file = File::create(&unfinished)?;
    file.write_all(message)?;
    file.sync_all()?;
    fs::rename(&unfinished, directory.join(format!("{id}.json")))?;
    File::open(&directory)?.sync_all()?;
    // The directory itself may be new.
    File::open(state.join("queues"))?.sync_all()?;
    File::open(state)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_there_once_however_often_it_is_put() {
        let state = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            put(state.path(), "q", "1-a", b"{}").unwrap();
        }
        put(state.path(), "q", "2-b", b"[]").unwrap();
        let mut names: Vec<_> = fs::read_dir(directory(state.path(), "q"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["1-a.json", "2-b.json"]);
    }
}
