//! Makes a Debian machine ready for the tests: packages, and a Python environment below `.venv`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::step::{Step, StepError};

/// What the tests need of the system: how to see that it is there, and the packages that bring it.
const NEEDS: &[(&str, &[&str], &[&str])] = &[
    (
        "/usr/bin/python3",
        &["-c", "import venv, ensurepip, sqlite3, ssl, ctypes"],
        &["python3", "python3-venv"],
    ),
    // A node of another origin than Debian's is as good.
    ("/usr/bin/node", &["--version"], &["nodejs"]),
    ("cc", &["--version"], &["gcc", "libc6-dev"]),
    ("unshare", &["--version"], &["util-linux"]),
    ("mkfs.ext4", &["-V"], &["e2fsprogs"]),
    ("curl", &["--version"], &["curl"]),
    ("mkfs.erofs", &["--help"], &["erofs-utils"]),
];

/// Installs what is missing. Does nothing on a machine that is ready.
///
/// # Errors
/// Those of the package managers.
pub fn prepare(root: &Path) -> Result<(), StepError> {
    let missing: Vec<&str> = NEEDS
        .iter()
        .filter(|(program, arguments, _)| !works(program, arguments))
        .flat_map(|(_, _, packages)| packages.iter().copied())
        .collect();
    install(&missing)?;
    python_environment(root)
}

/// Installs Debian packages; nothing when there are none.
///
/// # Errors
/// Those of apt.
pub fn install(packages: &[&str]) -> Result<(), StepError> {
    if packages.is_empty() {
        return Ok(());
    }
    update_lists()?;
    Step::new("install Debian packages", "apt-get")
        .args(["install", "-q", "-y", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .privileged()
        .run()
}

/// Lets apt see what there is now.
///
/// # Errors
/// Those of apt.
pub fn update_lists() -> Result<(), StepError> {
    Step::new("update the list of Debian packages", "apt-get")
        .args(["update", "-q"])
        .privileged()
        .run()
}

fn works(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn python_environment(root: &Path) -> Result<(), StepError> {
    let environment = root.join(".venv");
    let requirements = root.join("tests/requirements.txt");
    // A copy of the list that was installed: equal to the list, there is nothing to do.
    let installed = environment.join("requirements.installed");
    let wanted = fs::read(&requirements).ok();
    if wanted.is_some() && fs::read(&installed).ok() == wanted {
        return Ok(());
    }
    Step::new("make the Python environment", "/usr/bin/python3")
        .args(["-m", "venv", "--clear"])
        .args([&environment])
        .run()?;
    Step::new("install Python packages", environment.join("bin/python"))
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .args([&requirements])
        .run()?;
    fs::copy(&requirements, &installed).map_err(|source| StepError::Write {
        path: installed.display().to_string(),
        source,
    })?;
    Ok(())
}
