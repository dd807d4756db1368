//! The node's key, and the keys derived from it.
//!
//! ```text
//!  node key ---- manifest key              signs manifests, which bind page maps
//!           `--- domain key of a tenant    names chunks: BLAKE3 of the plain bytes, keyed
//!           `--- domain key of templates
//! ```
//!
//! Chunks are equal when their names are equal, and names of two tenants' chunks never are: nobody
//! can find out by the size of a snapshot, or the time to write it, what another tenant has in memory.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rouse_snapshot::manifest::ManifestKey;
use rouse_snapshot::page_map::{ChunkId, Domain};

/// Name of a node's key in its state directory.
pub const NODE_KEY_FILE: &str = "node.key";

const KEY_LEN: usize = 32;
const MANIFEST_CONTEXT: &str = "rouse 2026-11 authentication of manifests";
const TENANT_CONTEXT: &str = "rouse 2026-11 names of chunks of a tenant";
const TEMPLATES_CONTEXT: &str = "rouse 2026-11 names of chunks of the operator's templates";

/// Why there is no node key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system says no.
    #[error("cannot {action} the node key {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The key's file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others than the owner may read or write it.
    #[error("the node key {path} has mode {mode:o}; others than its owner must not have access")]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("the node key {path} is {found} bytes long, not {KEY_LEN}")]
    Length {
        /// The key's file.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
    },
}

/// A secret that each node has one of: who has it can sign manifests and name chunks.
#[derive(Clone)]
pub struct NodeKey([u8; KEY_LEN]);

impl NodeKey {
    /// A key of these bytes, which must be random.
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Reads the key of a node; makes one, with mode 0600, when there is none yet.
    ///
    /// Of several processes that do this at once, all get the same key.
    ///
    /// # Errors
    /// A file that is no key, that others may read, or that cannot be read or made.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        create(path).map_err(|source| KeyError::Io {
            action: "make",
            path: path.into(),
            source,
        })?;
        Self::load(path)
    }

    /// Reads the key of a node.
    ///
    /// # Errors
    /// A file that is not there, is no key, or that others may read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io {
            action: "read",
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = path.into();
            return Err(KeyError::Exposed { path, mode });
        }
        let mut bytes = Vec::new();
        file.take(KEY_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let found = bytes.len();
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(KeyError::Length {
                path: path.into(),
                found,
            }),
        }
    }

    /// The key that signs manifests.
    pub fn manifest_key(&self) -> ManifestKey {
        ManifestKey::new(blake3::derive_key(MANIFEST_CONTEXT, &self.0))
    }

    /// The keys that name the chunks of a tenant's snapshots.
    pub fn domain_keys(&self, tenant: &str) -> DomainKeys {
        let derive = |context: &str, name: &str| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            // The node key has a fixed length: where the name begins is never in doubt.
            hasher.update(&self.0).update(name.as_bytes());
            *hasher.finalize().as_bytes()
        };
        DomainKeys {
            tenant: derive(TENANT_CONTEXT, tenant),
            templates: derive(TEMPLATES_CONTEXT, ""),
        }
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey")
    }
}

/// What names and verifies chunks of one tenant, and of the templates it may share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DomainKeys {
    tenant: [u8; KEY_LEN],
    templates: [u8; KEY_LEN],
}

impl DomainKeys {
    /// The name of a chunk with these plain bytes.
    pub fn id(&self, domain: Domain, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(self.key(domain), plain).as_bytes())
    }

    /// What a pack of this domain says of itself: the same for all packs of a domain, and
    /// different for any two domains.
    pub fn label(&self, domain: Domain) -> [u8; 32] {
        *blake3::keyed_hash(self.key(domain), b"label of the sharing domain").as_bytes()
    }

    /// For the pager, over a socket that nobody else can read.
    pub(crate) fn to_bytes(self) -> [u8; 2 * KEY_LEN] {
        let mut bytes = [0; 2 * KEY_LEN];
        bytes[..KEY_LEN].copy_from_slice(&self.tenant);
        bytes[KEY_LEN..].copy_from_slice(&self.templates);
        bytes
    }

    /// What [`DomainKeys::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: [u8; 2 * KEY_LEN]) -> Self {
        let (mut tenant, mut templates) = ([0; KEY_LEN], [0; KEY_LEN]);
        tenant.copy_from_slice(&bytes[..KEY_LEN]);
        templates.copy_from_slice(&bytes[KEY_LEN..]);
        Self { tenant, templates }
    }

    fn key(&self, domain: Domain) -> &[u8; KEY_LEN] {
        match domain {
            Domain::Tenant => &self.tenant,
            Domain::Templates => &self.templates,
        }
    }
}

impl fmt::Debug for DomainKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DomainKeys")
    }
}

/// Written whole and synced under another name, then linked: a key that was cut off would make
/// every snapshot unusable, and one that replaces another too.
fn create(path: &Path) -> io::Result<()> {
    let mut bytes = [0; KEY_LEN];
    // Before the random generator is seeded this waits; nothing else can be done about it.
    let got = rustix::io::retry_on_intr(|| {
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
    })?;
    if got != KEY_LEN {
        return Err(io::Error::other("too few random bytes"));
    }
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".node-key-")
        .tempdir_in(dir)?;
    let new = temporary.path().join("key");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    match fs::hard_link(&new, path) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(dir)?.sync_all(),
    }
}
