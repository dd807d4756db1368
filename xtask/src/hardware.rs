//! The tests that need hardware which this machine may lack: they are built here and run in the test bed, in one boot.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::step::StepError;
use crate::testbed::{self, Options, TestbedError};

const NAME: &str = "tests of rare hardware, in the test bed";

/// Why they did not pass.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// The tests could not be built.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A test that should be built is not there.
    #[error("cargo did not build the test {0}")]
    NoTest(&'static str),
    /// The machine failed.
    #[error("test bed: {0}")]
    Testbed(#[from] TestbedError),
    /// A test failed.
    #[error("{NAME}: a test ended with {0}")]
    Failed(u8),
}

/// Runs them. The workspace's tests must have been built; `node` is the variables that the integration tests go by.
pub fn test(root: &Path, node: &[(&str, PathBuf)]) -> Result<(), HardwareError> {
    let built = built_tests(root)?;
    let binary = |name| find(&built, name).ok_or(HardwareError::NoTest(name));
    let mut integration = patiently();
    integration.extend(node.iter().map(|(name, value)| {
        let mut variable = OsString::from(name);
        variable.push("=");
        variable.push(value);
        variable
    }));
    integration.push(root.join(".venv/bin/python").into());
    // The checkout is below an overlay there, and pytest would write to it.
    let arguments = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_tiers.py",
        "-k",
        "far",
    ];
    integration.extend(arguments.map(OsString::from));
    let mut kernel = OsString::from("ROUSE_TEST_KERNEL=");
    kernel.push(testbed::default_kernel_image()?);
    let mut microvm: Vec<OsString> = vec!["env".into(), kernel];
    // One after the other: each machine has as many processors as the test bed.
    microvm.extend(command(
        binary("microvm")?,
        &["--ignored", "--test-threads=1"],
    ));
    let commands = [
        // Memory that lies on another NUMA node.
        command(binary("pager")?, &["pages_come_to_lie", "pages_move"]),
        // Protection keys, names of memory, and a kernel without the newest calls.
        [
            patiently(),
            command(
                binary("fidelity")?,
                &["protection", "attributes", "memory", "threads"],
            ),
        ]
        .concat(),
        // Virtual machines on KVM.
        microvm,
        integration,
    ];
    let options = Options {
        numa: true,
        pku: true,
        timeout: Duration::from_secs(1800),
        ..Options::default()
    };
    println!("\n=== {NAME} ===");
    let begin = Instant::now();
    match testbed::run(root, &options, &commands)? {
        0 => {
            println!("({:.0} s)", begin.elapsed().as_secs_f64());
            Ok(())
        }
        status => Err(HardwareError::Failed(status)),
    }
}

/// The beginning of a command that waits for long: an emulated processor takes ten times as long.
fn patiently() -> Vec<OsString> {
    vec!["env".into(), "ROUSE_TEST_PATIENCE=600".into()]
}

fn command(program: &Path, arguments: &[&str]) -> Vec<OsString> {
    let mut command = vec![program.as_os_str().to_owned()];
    command.extend(arguments.iter().map(OsString::from));
    command
}

/// (name, executable) of each test target, as cargo tells.
fn built_tests(root: &Path) -> Result<Vec<(String, PathBuf)>, StepError> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args([
            "test",
            "--workspace",
            "--locked",
            "--no-run",
            "--message-format=json",
        ])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| StepError::Start {
            name: NAME,
            program: cargo.to_string_lossy().into_owned(),
            source,
        })?;
    if !output.status.success() {
        let status = output.status;
        return Err(StepError::Failed { name: NAME, status });
    }
    let messages = output.stdout.split(|byte| *byte == b'\n');
    Ok(messages
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect())
}

fn find<'a>(built: &'a [(String, PathBuf)], wanted: &str) -> Option<&'a Path> {
    let (_, path) = built.iter().find(|(name, _)| name == wanted)?;
    Some(path)
}
