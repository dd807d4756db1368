//! The floor of Node, which cannot fork by itself: an addon, compiled here, calls `fork`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{FloorCommand, FloorError};

const ADDON: &str = include_str!("node_fork.c");
const SCRIPT: &str = include_str!("node.js");

/// Compiles the addon into `scratch`, and says how to start the floor of the handler `module.function` in `directory`.
pub fn command(
    interpreter: &Path,
    directory: &Path,
    handler: &str,
    scratch: &Path,
) -> Result<FloorCommand, FloorError> {
    let addon = scratch.join("rouse_fork.node");
    compile(&addon)?;
    let addon = addon
        .to_str()
        .ok_or_else(|| FloorError::Unavailable(format!("{} is not UTF-8", addon.display())))?;
    let (module, function) = handler.split_once('.').unwrap_or((handler, "handler"));
    let arguments = [
        "--single-threaded",
        "--v8-pool-size=0",
        "-e",
        SCRIPT,
        "--",
        addon,
        module,
        function,
    ];
    Ok(FloorCommand {
        program: interpreter.to_owned(),
        arguments: arguments.map(str::to_owned).to_vec(),
        directory: directory.to_owned(),
    })
}

fn compile(target: &Path) -> Result<(), FloorError> {
    let unavailable = |why: String| {
        FloorError::Unavailable(format!(
            "Node cannot fork by itself, and the addon that does it was not compiled: {why}"
        ))
    };
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-x", "c", "-", "-o"])
        .arg(target)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| unavailable(format!("cc: {error}")))?;
    if let Some(mut source) = compiler.stdin.take() {
        // A compiler that ended early tells why below.
        let _ = source.write_all(ADDON.as_bytes());
    }
    let output = compiler.wait_with_output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(unavailable(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Floor;
    use super::*;

    #[test]
    fn each_answer_comes_from_a_child() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("index.js"), "let calls = 0;\nexports.handler = async (event) => ({ n: event.n, calls: ++calls });\n").expect("write");
        let command = command(
            Path::new("/usr/bin/node"),
            dir.path(),
            "index.handler",
            dir.path(),
        )
        .expect("compile");
        let mut floor = Floor::start(&command).expect("floor");
        // More than 64, so that the parent prepares again.
        for n in 0..70_u32 {
            let event = format!("{{\"n\": {n}}}");
            let (_, answer) = floor.call(event.as_bytes()).expect("call");
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("json");
            // The parent was called once, to warm it; what a child does is its own.
            assert_eq!(answer, serde_json::json!({ "n": n, "calls": 2 }));
        }
        let (memory, _) = floor.measure(b"{\"n\": 9}").expect("measure");
        assert!(
            memory.uss_kib > 0 && memory.pss_kib >= memory.uss_kib,
            "{memory:?}"
        );
    }
}
