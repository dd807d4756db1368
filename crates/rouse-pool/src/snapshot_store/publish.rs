//! Making snapshots visible, exchanging and removing them, each in one step.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rouse_snapshot::manifest::{Binding, Subject, sign};
use rouse_snapshot::page_map::PageMap;
use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;

use super::error::Context;
use super::layout::{
    MANIFEST_FILE, TEMPORARY_PREFIX, create_dir, page_map_file, sync_dir, write_new,
};
use super::{SnapshotStore, StoreError, digest_of};
use crate::packs::SealedPack;

impl SnapshotStore {
    /// A new snapshot, see the order in the module's description.
    pub(super) fn publish(
        &self,
        target: &Path,
        snapshot: &impl Subject,
        binding: &Binding,
        page_map: &[u8],
        pack: Option<SealedPack>,
    ) -> Result<(), StoreError> {
        let parent = parent_of(target)?;
        create_dir(parent)?;
        // Mode 0700: what a function had in memory is nobody else's business.
        let partial = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .context("make a temporary directory in", parent)?;
        let dir = partial.path();
        let done = write_new(&dir.join(page_map_file(&binding.page_map)), page_map)
            .and_then(|()| write_new(&dir.join(MANIFEST_FILE), &self.manifest(snapshot, binding)))
            .and_then(|()| sync_dir(dir))
            .and_then(|()| self.publish_pack(pack))
            .and_then(|()| take_place(dir, target))
            .and_then(|()| {
                // Whether a directory is on disk that could not be synced is unknown; the caller
                // is told that it was not written, so it must not come back after a restart.
                sync_dir(parent).inspect_err(|_| discard(fs::remove_dir_all(target), target))
            });
        match done {
            Ok(()) => {
                // Nothing is at the temporary path any more.
                let _ = partial.keep();
                Ok(())
            }
            Err(error) => {
                let path = partial.path().to_owned();
                discard(partial.close(), &path);
                Err(error)
            }
        }
    }

    /// Another page map for a snapshot that exists, in the steps: pack, page map, manifest.
    /// Only the last of them can be seen.
    pub(super) fn replace(
        &self,
        dir: &Path,
        snapshot: &impl Subject,
        old: &Binding,
        map: &PageMap,
        pack: Option<SealedPack>,
    ) -> Result<(), StoreError> {
        let bytes = map.encode();
        let binding = Binding {
            page_map: digest_of(&bytes),
            ..old.clone()
        };
        if binding == *old {
            return Ok(());
        }
        let scratch = temporary_in(dir)?;
        let (pages, manifest) = (
            scratch.path().join("pages"),
            scratch.path().join("manifest"),
        );
        write_new(&pages, &bytes)?;
        write_new(&manifest, &self.manifest(snapshot, &binding))?;
        self.publish_pack(pack)?;
        let target = dir.join(page_map_file(&binding.page_map));
        renameat(CWD, &pages, CWD, &target).context("create", &target)?;
        // The page map is on disk before anything refers to it.
        sync_dir(dir)?;
        let target = dir.join(MANIFEST_FILE);
        renameat(CWD, &manifest, CWD, &target).context("replace", &target)?;
        sync_dir(dir)?;
        let outdated = dir.join(page_map_file(&old.page_map));
        discard(fs::remove_file(&outdated), &outdated);
        Ok(())
    }

    fn manifest(&self, snapshot: &impl Subject, binding: &Binding) -> Vec<u8> {
        sign(snapshot.encode(Some(binding)), &self.key.manifest_key())
    }

    fn publish_pack(&self, pack: Option<SealedPack>) -> Result<(), StoreError> {
        match pack {
            Some(pack) => pack
                .publish(self.packs())
                .context("create a pack in", self.packs().path()),
            None => Ok(()),
        }
    }
}

/// Out of sight first, so that nobody sees half a snapshot.
pub(super) fn remove(dir: &Path) -> Result<(), StoreError> {
    let parent = parent_of(dir)?;
    let grave = temporary_in(parent)?;
    fs::rename(dir, grave.path().join("snapshot")).context("remove", dir)?;
    sync_dir(parent)?;
    grave.close().context("remove", dir)
}

fn temporary_in(dir: &Path) -> Result<TempDir, StoreError> {
    tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempdir_in(dir)
        .context("make a temporary directory in", dir)
}

fn take_place(partial: &Path, target: &Path) -> Result<(), StoreError> {
    // A plain rename would silently take the place of an empty directory.
    match renameat_with(CWD, partial, CWD, target, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(StoreError::Exists {
            path: target.into(),
        }),
        renamed => renamed.context("create", target),
    }
}

/// The error that led here is the one to report; what cannot be removed now is collected later.
fn discard(removed: io::Result<()>, path: &Path) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "something outdated is left behind");
        }
        _ => {}
    }
}

fn parent_of(dir: &Path) -> Result<&Path, StoreError> {
    dir.parent().ok_or_else(|| StoreError::BadName {
        name: dir.display().to_string(),
    })
}
