//! Writing a pack: nobody can see it before it is whole and on disk.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};

use rouse_snapshot::page_map::{DictionaryId, PACK_ALIGN, PackId};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::NamedTempFile;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::layout::{Entry, FORMAT_VERSION, HEADER_LEN, Header, MAGIC};
use super::{PackDir, PackEntry, TEMPORARY_PREFIX};

const BUFFER_LEN: usize = 1 << 20;

/// A pack under construction, in a file that is removed if it is not published.
#[derive(Debug)]
pub struct PackWriter {
    id: PackId,
    label: [u8; 32],
    out: BufWriter<NamedTempFile>,
    at: u64,
    hot_end: u64,
    entries: Vec<PackEntry>,
    dictionaries: Vec<DictionaryId>,
}

impl PackWriter {
    /// An empty pack of a sharing domain.
    ///
    /// # Errors
    /// What making a file says.
    pub fn create(dir: &PackDir, label: [u8; 32]) -> io::Result<Self> {
        let mut id = [0; 8];
        rustix::io::retry_on_intr(|| {
            rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        })?;
        let file = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(dir.path())?;
        let mut out = BufWriter::with_capacity(BUFFER_LEN, file);
        out.write_all(&[0; PACK_ALIGN as usize])?;
        Ok(Self {
            id: PackId(u64::from_le_bytes(id)),
            label,
            out,
            at: PACK_ALIGN,
            hot_end: PACK_ALIGN,
            entries: Vec::new(),
            dictionaries: Vec::new(),
        })
    }

    /// Name that the pack will have.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Appends the stored bytes of a chunk. `entry` gets its offset here.
    ///
    /// # Errors
    /// What writing says.
    pub fn push(&mut self, mut entry: PackEntry, stored: &[u8]) -> io::Result<u64> {
        debug_assert_eq!(entry.stored_len as usize, stored.len());
        let offset = self.at;
        self.out.write_all(stored)?;
        self.at += stored.len() as u64;
        if let Some(dictionary) = entry.dictionary
            && !self.dictionaries.contains(&dictionary)
        {
            self.dictionaries.push(dictionary);
        }
        entry.offset = offset;
        self.entries.push(entry);
        Ok(offset)
    }

    /// What follows does not belong to the working set.
    ///
    /// # Errors
    /// What writing says.
    pub fn end_hot(&mut self) -> io::Result<()> {
        self.pad()?;
        self.hot_end = self.at;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        let end = self.at.next_multiple_of(PACK_ALIGN);
        let zeros = [0; PACK_ALIGN as usize];
        self.out.write_all(&zeros[..(end - self.at) as usize])?;
        self.at = end;
        Ok(())
    }

    /// Writes the index and syncs the file. `None` when there is no chunk in it.
    ///
    /// # Errors
    /// What writing and syncing says; too many dictionaries.
    pub fn seal(mut self) -> io::Result<Option<SealedPack>> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        self.pad()?;
        let mut index = Vec::with_capacity(self.entries.len() * size_of::<Entry>());
        for dictionary in &self.dictionaries {
            index.extend_from_slice(&dictionary.0.to_le_bytes());
        }
        for entry in &self.entries {
            let dictionary = match entry.dictionary {
                None => 0,
                // Small: one or two.
                Some(id) => self.dictionaries.iter().position(|d| *d == id).unwrap_or(0) + 1,
            };
            let dictionary = u16::try_from(dictionary).map_err(io::Error::other)?;
            let entry = Entry {
                id: entry.id.0,
                offset: U64::new(entry.offset),
                stored_len: U32::new(entry.stored_len),
                dictionary: U16::new(dictionary),
                pages: entry.pages as u8,
                codec: entry.codec as u8,
            };
            index.extend_from_slice(entry.as_bytes());
        }
        self.out.write_all(&index)?;
        let mut header = Header {
            magic: MAGIC,
            format_version: U32::new(FORMAT_VERSION),
            entries: U32::new(self.entries.len() as u32),
            id: U64::new(self.id.0),
            label: self.label,
            hot_end: U64::new(self.hot_end),
            index_offset: U64::new(self.at),
            dictionaries: U32::new(self.dictionaries.len() as u32),
            reserved: U32::ZERO,
            index_digest: *blake3::hash(&index).as_bytes(),
            header_digest: [0; 32],
        };
        header.header_digest = header.digest();
        let file = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.as_file()
            .write_all_at(&header.as_bytes()[..HEADER_LEN], 0)?;
        file.as_file().sync_all()?;
        Ok(Some(SealedPack {
            id: self.id,
            len: file.as_file().metadata()?.len(),
            file,
        }))
    }
}

/// A pack that is whole and on disk, but has no name yet.
#[derive(Debug)]
pub struct SealedPack {
    id: PackId,
    len: u64,
    file: NamedTempFile,
}

impl SealedPack {
    /// Length of the file, bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Gives it its name. From now on it is collected when nothing refers to it.
    ///
    /// # Errors
    /// What renaming and syncing says.
    pub fn publish(self, dir: &PackDir) -> io::Result<()> {
        let path = self.file.into_temp_path();
        renameat_with(
            CWD,
            &*path,
            CWD,
            dir.path_of(self.id),
            RenameFlags::NOREPLACE,
        )?;
        // Nothing is at the temporary path any more.
        let _ = path.keep();
        File::open(dir.path())?.sync_all()
    }
}
