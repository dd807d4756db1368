//! The machine that tests of microVMs boot: a prepared kernel and an image of a root. Both are made here, where the processor is fast,
//! and used in the test bed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::hardware::HardwareError;
use crate::step::{Step, StepError};
use crate::testbed;

/// Makes it with the command `rouse`, below `target`; what is there from another time is made anew.
pub fn prepare(root: &Path, rouse: &Path, target: &Path) -> Result<PathBuf, HardwareError> {
    let kernel = testbed::default_kernel()?;
    let directory = target.join("test-machine");
    let stage = directory.join("stage");
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(write(&directory))?;
    }
    fs::create_dir_all(&stage).map_err(write(&stage))?;
    Step::new("prepare a kernel for microVMs", rouse)
        .args(["kernel", "import"])
        .args([&kernel.image, &directory.join("kernel")])
        .args([Path::new("--modules"), &kernel.modules])
        .run()?;
    Step::new("copy the root of microVMs", "sh")
        .args([&root.join("xtask/src/machine_image.sh"), &stage])
        .run()?;
    Step::new("make an image of it", rouse)
        .args(["image", "build"])
        .args([&directory.join("root")])
        .args([Path::new("--directory"), &stage])
        .run()?;
    fs::remove_dir_all(&stage).map_err(write(&stage))?;
    Ok(directory)
}

fn write(path: &Path) -> impl FnOnce(std::io::Error) -> StepError + '_ {
    move |source| StepError::Write {
        path: path.display().to_string(),
        source,
    }
}
