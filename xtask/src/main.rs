//! `cargo xtask`: what a developer and CI run.
//!
//! `cargo xtask test` makes the machine ready, then checks everything, and stops at the first step that fails.

mod hardware;
mod machine;
mod machine_image;
mod step;
mod testbed;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hardware::HardwareError;
use step::{Step, StepError};

const USAGE: &str = "usage: cargo xtask COMMAND

  test [PYTEST-ARGUMENTS]   install what the tests need, then formatting, lints, unit, property and integration tests,
                            and those that need rare hardware in the test bed
  hardware [SUITE...]       only those that need rare hardware: all, or some of far, fidelity, microvm, function, state,
                            and integration tests as pytest names them
  setup                     only install what the tests need
  testbed [OPTIONS] -- COMMAND...
                            run a command on an emulated machine with hardware that this one lacks (--help tells more)
";

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("test") => test(&arguments.collect::<Vec<_>>()),
        Some("hardware") => hardware(&arguments.collect::<Vec<_>>()),
        Some("setup") => machine::prepare(&root()).map_err(HardwareError::from),
        Some("testbed") => return testbed::main(&root(), env::args_os().skip(2)),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report("", &error);
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask
        .parent()
        .expect("xtask lies in the repository's root")
        .to_owned()
}

fn test(pytest_arguments: &[String]) -> Result<(), HardwareError> {
    let root = root();
    machine::prepare(&root)?;
    cargo(&root, "formatting", &["fmt", "--all", "--check"]).run()?;
    cargo(
        &root,
        "lints",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )
    .run()?;
    let mut tests = cargo(
        &root,
        "unit and property tests",
        &["test", "--workspace", "--locked"],
    );
    if !step::is_root() {
        // The tests are built by the user and run as root, as sandboxes need it.
        tests = tests.env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
            "sudo --preserve-env",
        );
    }
    tests.run()?;
    let node = build_node(&root)?;
    let mut integration = Step::new("integration tests", root.join(".venv/bin/python"))
        .args(["-m", "pytest", "-n", "2", "--dist", "loadfile", "tests"])
        .args(pytest_arguments);
    for (name, value) in &node {
        integration = integration.env(*name, value);
    }
    integration.current_dir(&root).privileged().run()?;
    hardware::test(&root, &node, &[])
}

/// Builds what integration tests run, and returns the variables by which they find it.
fn build_node(root: &Path) -> Result<[(&'static str, PathBuf); 2], StepError> {
    cargo(
        root,
        "build the command",
        &["build", "--package", "rouse", "--locked"],
    )
    .run()?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let example = target.join("examples-rust");
    let manifest = "examples/hello-rust/Cargo.toml";
    cargo(
        root,
        "build the Rust example",
        &["build", "--locked", "--manifest-path", manifest],
    )
    .env("CARGO_TARGET_DIR", &example)
    .run()?;
    Ok([
        ("ROUSE_BIN", target.join("debug/rouse")),
        ("ROUSE_RUST_EXAMPLE", example.join("debug/bootstrap")),
    ])
}

fn cargo(root: &Path, name: &'static str, arguments: &[&str]) -> Step {
    Step::new(name, env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(arguments)
}

fn hardware(suites: &[String]) -> Result<(), HardwareError> {
    let root = root();
    machine::prepare(&root)?;
    hardware::test(&root, &build_node(&root)?, suites)
}

/// Prints an error with its causes.
fn report(context: &str, error: &dyn std::error::Error) {
    eprintln!("\nxtask: {context}{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  caused by: {cause}");
        source = cause.source();
    }
}
