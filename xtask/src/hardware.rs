//! The tests that need hardware which this machine may lack: they are built here and run in the test bed. A boot serves a whole
//! suite; long ones have one of their own, since the longer an emulated kernel runs, the more is lost when it dies.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine_image;
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

/// How often they are run when the emulated kernel dies, or a test fails in it.
const RUNS: u32 = 4;
/// Integration tests, as pytest names them: those of one boot, and of the next. What needs no such hardware runs elsewhere.
const INTEGRATION: [&[&str]; 2] = [
    &[
        "tests/test_far.py::test_far_tier",
        "tests/test_far.py::test_directory",
        "tests/test_far.py::test_dax_mount_keeps_no_copy",
        "tests/test_far.py::test_file_vanishes_under_a_running_instance",
    ],
    &[
        "tests/test_microvm_functions.py::test_where_there_are_none_it_is_refused",
        "tests/test_microvm_functions.py::test_a_function_answers_from_its_machine",
    ],
];
/// The same of what takes many minutes each. They run when this variable is there.
const LONG: &str = "ROUSE_TEST_LONG";
const LONG_INTEGRATION: [&[&str]; 4] = [
    &["tests/test_microvm_functions.py::test_copies_of_a_machine"],
    &["tests/test_microvm_functions.py::test_machines_are_made_of_one_template"],
    &["tests/test_microvm_functions.py::test_machines_on_far_memory"],
    &["tests/test_microvm_functions.py::test_node_in_a_machine"],
];

/// Runs them, or only `suites`, if there are some. The workspace's tests must have been built; `node` is the variables that the
/// integration tests go by.
pub fn test(root: &Path, node: &[(&str, PathBuf)], suites: &[String]) -> Result<(), HardwareError> {
    let built = built_tests(root)?;
    let binary = |name| find(&built, name).ok_or(HardwareError::NoTest(name));
    let assign = |name: &str, value: &Path| {
        let mut variable = OsString::from(name);
        variable.push("=");
        variable.push(value);
        variable
    };
    let (_, rouse) = node
        .iter()
        .find(|(name, _)| *name == "ROUSE_BIN")
        .ok_or(HardwareError::NoTest("rouse"))?;
    let target = rouse.ancestors().nth(2).unwrap_or(root);
    let prepared = machine_image::prepare(root, rouse, target)?;
    let mut integration = patiently();
    integration.extend(node.iter().map(|(name, value)| assign(name, value)));
    integration.push(assign("ROUSE_TEST_MACHINE", &prepared));
    let is_long = env::var_os(LONG).is_some();
    if is_long {
        integration.push(format!("{LONG}=1").into());
    }
    integration.push(root.join(".venv/bin/python").into());
    // The checkout is below an overlay there, and pytest would write to it.
    integration.extend(["-m", "pytest", "-q", "-p", "no:cacheprovider"].map(OsString::from));
    let (paths, suites): (Vec<&String>, Vec<&String>) =
        suites.iter().partition(|suite| suite.starts_with("tests/"));
    let pytest = |paths: &[&str]| {
        let mut command = integration.clone();
        command.extend(paths.iter().map(OsString::from));
        command
    };
    let is_all = paths.is_empty() && suites.is_empty();
    let is_wanted = |name: &str| is_all || suites.iter().any(|suite| *suite == name);
    // One after the other: each machine has as many processors as the test bed.
    let microvm = |name| -> Result<Vec<OsString>, HardwareError> {
        let environment = [
            "env".into(),
            assign("ROUSE_TEST_KERNEL", &testbed::default_kernel()?.image),
            assign("ROUSE_TEST_MACHINE", &prepared),
        ];
        let test = command(binary(name)?, &["--ignored", "--test-threads=1"]);
        Ok(environment.into_iter().chain(test).collect())
    };
    let commands = [
        // Memory that lies on another NUMA node.
        (
            "far",
            command(binary("pager")?, &["pages_come_to_lie", "pages_move"]),
        ),
        // Protection keys, names of memory, and a kernel without the newest calls.
        (
            "fidelity",
            [
                patiently(),
                command(
                    binary("fidelity")?,
                    &["protection", "attributes", "memory", "threads"],
                ),
            ]
            .concat(),
        ),
        // Virtual machines on KVM.
        ("microvm", microvm("microvm")?),
        ("function", microvm("function")?),
        ("state", microvm("state")?),
    ];
    let mut boots: Vec<_> = (commands.into_iter())
        .filter(|(name, _)| is_wanted(name))
        .map(|(_, command)| vec![command])
        .collect();
    match paths[..] {
        [] if is_wanted("integration") => {
            boots.extend(INTEGRATION.map(|paths| vec![pytest(paths)]));
            if is_long {
                boots.extend(LONG_INTEGRATION.map(|paths| vec![pytest(paths)]));
            }
        }
        [] => {}
        _ => {
            let paths: Vec<&str> = paths.iter().map(|path| path.as_str()).collect();
            boots.push(vec![pytest(&paths)]);
        }
    }
    let options = Options {
        numa: true,
        dax: true,
        pku: true,
        timeout: Duration::from_secs(1800),
        ..Options::default()
    };
    println!("\n=== {NAME} ===");
    let begin = Instant::now();
    for commands in &boots {
        run(root, &options, commands)?;
        println!("({:.0} s)", begin.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Runs commands in one boot, and in another one, if the emulated kernel dies or a command fails. An emulator of several processors
/// makes mistakes that no hardware does: kernels in it end by themselves, the ones in its virtual machines, too. So a failure is believed
/// when it comes in every boot. Each is shown.
fn run(root: &Path, options: &Options, commands: &[Vec<OsString>]) -> Result<(), HardwareError> {
    let mut runs = 1;
    loop {
        let failed = match testbed::run(root, options, commands) {
            Ok(0) => return Ok(()),
            Ok(status) => HardwareError::Failed(status),
            Err(error @ TestbedError::Died { .. }) => error.into(),
            Err(error) => return Err(error.into()),
        };
        if runs == RUNS {
            return Err(failed);
        }
        println!("{failed}\ntest bed: all of this boot is run again");
        runs += 1;
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
