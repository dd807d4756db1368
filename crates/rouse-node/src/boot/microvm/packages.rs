//! Images of packages: what a machine sees as `/var/task`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rouse_vmm::image::{self, ImageError};

/// The images, one for each package whose function has been started.
#[derive(Debug)]
pub struct Packages {
    directory: PathBuf,
    /// Held by whoever makes one.
    making: Mutex<()>,
}

const EXTENSION: &str = "erofs";

impl Packages {
    /// An empty directory of images.
    pub fn open(directory: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(directory)?,
        }
        Ok(Self {
            directory: directory.to_owned(),
            making: Mutex::new(()),
        })
    }

    /// The image of the package that is unpacked in `package`, whose name is its digest. Makes it if it is not there.
    pub fn image(&self, package: &Path) -> Result<PathBuf, ImageError> {
        let folder = self.folder(package);
        let image = folder.join(package.file_name().unwrap_or_default());
        let image = image.with_added_extension(EXTENSION);
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if !image.exists() {
            self.forget_removed(package);
            image::build(package, &image)?;
        }
        Ok(image)
    }

    /// Where images are of packages that lie side by side.
    fn folder(&self, package: &Path) -> PathBuf {
        let beside = package.parent().and_then(Path::file_name);
        (self.directory.join("packages")).join(beside.unwrap_or_default())
    }

    /// Removes images of packages that are not beside `package` any more. Machines that have them open keep them.
    fn forget_removed(&self, package: &Path) {
        let (Some(packages), Ok(images)) = (package.parent(), fs::read_dir(self.folder(package)))
        else {
            return;
        };
        for image in images.flatten() {
            let image = image.path();
            let is_gone = |name| !packages.join(name).exists();
            if image.file_stem().is_some_and(is_gone) {
                // Tried again with the next one.
                drop(fs::remove_file(&image));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_with_their_packages() {
        let directory = tempfile::tempdir().unwrap();
        let code = |name: &str| directory.path().join("code").join(name);
        for name in ["a", "b"] {
            fs::create_dir_all(code(name)).unwrap();
            fs::write(code(name).join("app.py"), name).unwrap();
        }
        let images = directory.path().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("old"), "").unwrap();
        let packages = Packages::open(&images).unwrap();
        assert!(!images.join("old").exists());
        let first = packages.image(&code("a")).unwrap();
        let made = fs::metadata(&first).unwrap().modified().unwrap();
        assert_eq!(packages.image(&code("a")).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), made);
        // The one of a template, which lies elsewhere.
        let empty = directory.path().join("no-package");
        fs::create_dir(&empty).unwrap();
        let empty = packages.image(&empty).unwrap();
        assert!(first.exists() && empty.exists());
        fs::remove_dir_all(code("a")).unwrap();
        let second = packages.image(&code("b")).unwrap();
        assert!(second.exists() && !first.exists() && empty.exists());
    }
}
