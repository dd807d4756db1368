//! Modules of the kernel, from the initramfs.

use std::fs::{self, File};
use std::io::ErrorKind;

use rustix::system::finit_module;

/// Where `rouse kernel import` puts them, with a list of their names in the order in which they can be loaded.
const DIRECTORY: &str = "/modules";

/// Loads all that are there, and removes them, since the initramfs is memory.
pub fn load() -> Result<(), String> {
    let list = match fs::read_to_string(format!("{DIRECTORY}/order")) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot read the list of modules: {error}")),
    };
    for name in list.lines() {
        let path = format!("{DIRECTORY}/{name}");
        let file = File::open(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
        finit_module(&file, c"", 0)
            .map_err(|errno| format!("cannot load the module {name}: {errno}"))?;
    }
    fs::remove_dir_all(DIRECTORY).map_err(|error| format!("cannot remove {DIRECTORY}: {error}"))
}
