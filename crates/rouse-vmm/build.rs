//! Builds `rouse-guest`, which `src/kernel/import.rs` embeds: the first program of a microVM has no libraries there, so it
//! is linked statically.
//!
//! A program of one crate inside of another is an artifact dependency, which stable Cargo cannot express; so this calls
//! Cargo again, with a target directory of its own, because the outer Cargo holds the lock of the other.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    for path in [
        "build.rs",
        "../rouse-guest/src",
        "../rouse-guest/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    let variable = |name: &str| {
        env::var_os(name).unwrap_or_else(|| panic!("Cargo sets {name} for build scripts"))
    };
    let output = PathBuf::from(variable("OUT_DIR"));
    let target = variable("TARGET").to_string_lossy().into_owned();
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "rouse-guest", "--target", &target])
        .args(["--manifest-path", "../rouse-guest/Cargo.toml"])
        .arg("--target-dir")
        .arg(output.join("guest"))
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    // What the outer Cargo checks (clippy, coverage) is not meant for this build.
    for name in ["RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CLIPPY_ARGS"] {
        cargo.env_remove(name);
    }
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("{cargo:?}: {error}"));
    assert!(status.success(), "{cargo:?}: {status}");
    let built = output
        .join("guest")
        .join(target)
        .join("release/rouse-guest");
    fs::copy(&built, output.join("rouse-guest"))
        .unwrap_or_else(|error| panic!("{}: {error}", built.display()));
}
