//! `rouse quickstart` and `rouse bench boot`, small.

use std::process::Stdio;

use crate::node::rouse;

#[test]
fn every_answer_is_right_and_nothing_is_left() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let output = rouse()
        .args(["quickstart", "-n", "10"])
        .env("TMPDIR", tmp.path())
        .output()
        .expect("rouse");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for word in [
        "hello-python",
        "heavy-python",
        "cold",
        "restore",
        "fork",
        "42 answers",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(std::fs::read_dir(tmp.path()).expect("list").count(), 0);
}

#[test]
fn ctrl_c_leaves_nothing() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let child = rouse()
        .args(["quickstart", "-n", "100000"])
        .env("TMPDIR", tmp.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("rouse");
    // It has begun when the node's directory has its endpoint.
    let started = || {
        std::fs::read_dir(tmp.path())
            .expect("list")
            .any(|entry| entry.expect("entry").path().join("endpoint").exists())
    };
    while !started() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .expect("signal");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(std::fs::read_dir(tmp.path()).expect("list").count(), 0);
}

#[test]
fn a_benchmark_reports_every_path() {
    let tmp = tempfile::tempdir().expect("tempdir");
    let out = tmp.path().join("report.json");
    let arguments = [
        "bench",
        "boot",
        "--json",
        "-n",
        "4",
        "--function",
        "python,node",
        "--concurrency",
        "1,2",
        "--no-pause",
        "--out",
    ];
    let output = rouse().args(arguments).arg(&out).output().expect("rouse");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(
        report,
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(out).expect("file"))
            .expect("json")
    );
    assert!(report["machine"]["cores"].as_u64() >= Some(1));
    for function in report["functions"].as_array().expect("functions") {
        for path in ["floor", "warm", "fork", "restore", "cold"] {
            let rows = function["paths"][path]
                .as_array()
                .unwrap_or_else(|| panic!("{path}: {function}"));
            assert_eq!(rows.len(), 2);
            for row in rows {
                for figure in [
                    "n",
                    "p50_us",
                    "p99_us",
                    "minor_faults",
                    "pss_kib",
                    "uss_kib",
                    "copied_kib",
                ] {
                    assert!(row[figure].as_f64() > Some(0.0), "{path} {figure}: {row}");
                }
                assert_eq!(
                    row["stages_us"].as_object().expect("stages").is_empty(),
                    path == "floor"
                );
            }
        }
    }
    let targets = report["targets"].as_array().expect("targets");
    assert!(
        targets
            .iter()
            .all(|target| target["value"].is_number() && target["met"].is_boolean()),
        "{targets:?}"
    );
}
