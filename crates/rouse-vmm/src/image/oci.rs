//! A root from an OCI image layout: a directory with `index.json` and `blobs/`, as `skopeo copy docker://... oci:DIRECTORY`
//! makes it.
//!
//! Layers are unpacked one over the other, with what they take away ("whiteouts"). Each blob is compared with its digest
//! first. The three documents are read here by the few fields that matter, and not through a crate that has all of them.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{ImageError, build, file};

/// No document is longer, in bytes.
const MOST_DOCUMENT: u64 = 4 << 20;

/// A layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A file of it cannot be read, or a layer not be unpacked.
    #[error("cannot read {what}")]
    Read {
        /// Of the layout.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A document is none.
    #[error("{what} cannot be understood")]
    Json {
        /// Of the layout.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A digest is no SHA-256, or not that of its blob.
    #[error("the blob {0} is not what its digest says")]
    Digest(String),
    /// There is no image for this processor.
    #[error("there is no image for linux on amd64 in it")]
    NoImage,
    /// Of a kind that is not known.
    #[error("a layer is of kind {0}")]
    Kind(String),
    /// A layer takes something away that does not lie in the root.
    #[error("a layer reaches outside of the root: {0}")]
    Outside(String),
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Makes an image at `target` of the layout in `layout`.
///
/// # Errors
/// If it is no layout, damaged, or for other processors; and those of [`super::build`].
pub fn build_layout(layout: &Path, target: &Path) -> Result<(), ImageError> {
    let root = tempfile::tempdir().map_err(file(Path::new("a temporary directory")))?;
    unpack(layout, root.path()).map_err(|source| ImageError::Oci {
        path: layout.to_owned(),
        source,
    })?;
    build(root.path(), target)
}

fn unpack(layout: &Path, root: &Path) -> Result<(), OciError> {
    let index = File::open(layout.join("index.json")).map_err(read("index.json"))?;
    let mut index: Index = document("index.json", index)?;
    // An image for several processors is an index below the index.
    for _ in 0..2 {
        let chosen = choose(&index).ok_or(OciError::NoImage)?;
        let blob = blob(layout, &chosen.digest)?;
        if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
            index = document(&chosen.digest, blob)?;
            continue;
        }
        let manifest: Manifest = document(&chosen.digest, blob)?;
        return manifest
            .layers
            .iter()
            .try_for_each(|layer| unpack_layer(layout, layer, root));
    }
    Err(OciError::NoImage)
}

fn choose(index: &Index) -> Option<&Descriptor> {
    index.manifests.iter().find(|descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
    })
}

/// The blob with this digest, which it was seen to have.
fn blob(layout: &Path, digest: &str) -> Result<File, OciError> {
    let wrong = || OciError::Digest(digest.to_owned());
    let hex = digest.strip_prefix("sha256:").ok_or_else(wrong)?;
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut blob = File::open(layout.join("blobs/sha256").join(hex)).map_err(read(digest))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match blob.read(&mut chunk).map_err(read(digest))? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if found != hex.to_ascii_lowercase() {
        return Err(wrong());
    }
    blob.rewind().map_err(read(digest))?;
    Ok(blob)
}

fn document<T: serde::de::DeserializeOwned>(what: &str, file: File) -> Result<T, OciError> {
    let mut bytes = Vec::new();
    file.take(MOST_DOCUMENT)
        .read_to_end(&mut bytes)
        .map_err(read(what))?;
    serde_json::from_slice(&bytes).map_err(|source| OciError::Json {
        what: what.to_owned(),
        source,
    })
}

fn unpack_layer(layout: &Path, layer: &Descriptor, root: &Path) -> Result<(), OciError> {
    let blob = io::BufReader::new(blob(layout, &layer.digest)?);
    let plain: Box<dyn Read> = match layer.media_type.rsplit(['+', '.']).next() {
        Some("gzip") => Box::new(GzDecoder::new(blob)),
        Some("zstd") => Box::new(zstd::Decoder::new(blob).map_err(read(&layer.digest))?),
        Some("tar") => Box::new(blob),
        _ => return Err(OciError::Kind(layer.media_type.clone())),
    };
    let mut archive = tar::Archive::new(plain);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    for entry in archive.entries().map_err(read(&layer.digest))? {
        let mut entry = entry.map_err(read(&layer.digest))?;
        let path = entry.path().map_err(read(&layer.digest))?.into_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(hidden) = name.strip_prefix(".wh.") {
            take_away(root, &path, hidden)?;
        } else {
            // It refuses what would come to lie outside of `root`, also through links.
            entry
                .unpack_in(root)
                .map_err(read(&path.to_string_lossy()))?;
        }
    }
    Ok(())
}

/// What the entry `path` of a layer says is not there any more: `hidden` beside it, or all that is.
fn take_away(root: &Path, path: &Path, hidden: &str) -> Result<(), OciError> {
    let outside = || OciError::Outside(path.display().to_string());
    let parent = path.parent().unwrap_or(Path::new(""));
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !parent.components().all(plain) || matches!(hidden, "" | "." | "..") {
        return Err(outside());
    }
    let root = root.canonicalize().map_err(read("the root"))?;
    // A link may lead elsewhere.
    let Ok(parent) = root.join(parent).canonicalize() else {
        return Ok(());
    };
    if !parent.starts_with(&root) {
        return Err(outside());
    }
    let gone: Vec<PathBuf> = if hidden == ".wh..opq" {
        let entries = fs::read_dir(&parent).map_err(read("a directory"))?;
        entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .collect()
    } else {
        vec![parent.join(hidden)]
    };
    for path in gone {
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(_) => Ok(()),
        };
        removed.map_err(read(&path.to_string_lossy()))?;
    }
    Ok(())
}

fn read(what: &str) -> impl FnOnce(io::Error) -> OciError + use<> {
    let what = what.to_owned();
    move |source| OciError::Read { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> String {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("sha256:{hex}")
    }

    /// Stores a blob, and returns its digest.
    fn store(layout: &Path, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("it can be made");
        fs::write(blobs.join(&digest[7..]), bytes).expect("it can be written");
        digest
    }

    fn layer(files: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(contents.len() as u64);
            archive
                .append_data(&mut header, path, contents.as_bytes())
                .expect("a vector takes it");
        }
        archive.into_inner().expect("a vector takes it")
    }

    /// A layout with these layers, the second one packed.
    fn layout(layers: [&[(&str, &str)]; 2]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path();
        let one = store(path, &layer(layers[0]));
        let packed = zstd::encode_all(layer(layers[1]).as_slice(), 1).expect("it packs");
        let two = store(path, &packed);
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let manifest = format!(
            r#"{{"layers":[{{"mediaType":"{kind}","digest":"{one}"}},{{"mediaType":"{kind}+zstd","digest":"{two}"}}]}}"#
        );
        let manifest = store(path, manifest.as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let index = format!(r#"{{"manifests":[{{"mediaType":"{kind}","digest":"{manifest}"}}]}}"#);
        fs::write(path.join("index.json"), index).expect("it can be written");
        directory
    }

    #[test]
    fn layers_lie_above_each_other() {
        let layout = layout([
            &[("a/one", "1"), ("a/two", "2"), ("b/three", "3"), ("c", "4")],
            &[
                ("a/.wh.one", ""),
                ("b/.wh..wh..opq", ""),
                ("b/new", "5"),
                ("c", "6"),
            ],
        ]);
        let root = tempfile::tempdir().expect("a directory can be made");
        unpack(layout.path(), root.path()).expect("it is a layout");
        let text = |name: &str| fs::read_to_string(root.path().join(name)).ok();
        assert_eq!(text("a/one"), None);
        assert_eq!(text("b/three"), None);
        assert_eq!(text("a/two").as_deref(), Some("2"));
        assert_eq!(text("b/new").as_deref(), Some("5"));
        assert_eq!(text("c").as_deref(), Some("6"));
    }

    #[test]
    fn a_damaged_blob_is_noticed() {
        let layout = layout([&[("a", "1")], &[("b", "2")]]);
        for entry in fs::read_dir(layout.path().join("blobs/sha256")).expect("it is there") {
            let path = entry.expect("it is there").path();
            let whole = fs::read(&path).expect("it is there");
            fs::write(&path, &whole[1..]).expect("it can be written");
            let root = tempfile::tempdir().expect("a directory can be made");
            let error = unpack(layout.path(), root.path()).expect_err("it is damaged");
            assert!(matches!(error, OciError::Digest(_)), "{error}");
            fs::write(&path, whole).expect("it can be written");
        }
    }

    #[test]
    fn nothing_outside_of_the_root_is_taken_away() {
        let outside = tempfile::tempdir().expect("a directory can be made");
        fs::write(outside.path().join("file"), "").expect("it can be written");
        let root = tempfile::tempdir().expect("a directory can be made");
        std::os::unix::fs::symlink(outside.path(), root.path().join("link"))
            .expect("it can be made");
        for path in ["link/.wh.file", "../.wh.file", "link/.wh..wh..opq"] {
            let path = Path::new(path);
            let name = path.file_name().expect("it has one").to_string_lossy();
            let result = take_away(root.path(), path, &name[4..]);
            assert!(matches!(result, Err(OciError::Outside(_))), "{path:?}");
        }
        assert!(outside.path().join("file").exists());
    }
}
