//! Builds `reseed.node`, the native module of the Node client, which `src/files.rs` embeds.
//!
//! A crate of its own would be a build artifact of another crate, which stable Cargo cannot express; one source file without
//! dependencies only needs one call of the compiler.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=native/reseed.rs");
    let variable = |name: &str| {
        env::var_os(name).unwrap_or_else(|| panic!("Cargo sets {name} for build scripts"))
    };
    let output = PathBuf::from(variable("OUT_DIR")).join("reseed.node");
    let mut compiler = Command::new(variable("RUSTC"));
    compiler
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "cdylib",
            "--crate-name",
            "reseed",
        ])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "strip=symbols",
            "-C",
            "link-arg=-nostartfiles",
        ])
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(&output)
        .arg("native/reseed.rs");
    let status = compiler
        .status()
        .unwrap_or_else(|error| panic!("{compiler:?}: {error}"));
    assert!(status.success(), "{compiler:?}: {status}");
}
