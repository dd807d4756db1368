//! Start and end of a node.

use rustix::process::Signal;

use crate::node::{Node, control_groups, example, rouse, serve};

#[test]
fn sigterm_ends_it_well_and_a_restart_finds_everything_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = dir.path().join("state");
    for signal in [Signal::TERM, Signal::INT] {
        let node = Node::start(&state);
        assert_eq!(
            node.json(&["deploy", &example("hello-python")])["snapshot"]["state"],
            "ready"
        );
        node.signal(signal);
        assert_eq!(node.wait(), Some(0));
        assert!(!state.join("endpoint").exists());
        assert_eq!(control_groups(&state), Vec::<std::path::PathBuf>::new());
    }
    let node = Node::start(&state);
    let answer = node.json(&[
        "invoke",
        "hello-python",
        "--payload",
        r#"{"name": "again"}"#,
    ]);
    assert_eq!(answer["payload"]["message"], "Hello, again!");
}

#[test]
fn a_running_invocation_is_waited_for() {
    let dir = tempfile::tempdir().expect("tempdir");
    let node = Node::start(&dir.path().join("state"));
    let code = dir.path().join("slow");
    std::fs::create_dir(&code).expect("mkdir");
    let source = "import time\ndef handler(event, context):\n    print('begun', flush=True)\n    time.sleep(1)\n    return 'done'\n";
    std::fs::write(code.join("app.py"), source).expect("write");
    node.json(&["deploy", &code.display().to_string()]);
    let caller = rouse()
        .args(["invoke", "slow", "--endpoint", node.endpoint()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("invoke");
    while !String::from_utf8_lossy(&node.run(&["logs", "slow"]).stdout).contains("begun") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
    let output = caller.wait_with_output().expect("invoke");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "\"done\"");
}

#[test]
fn a_second_node_on_the_same_directory_refuses() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = dir.path().join("state");
    let first = Node::start(&state);
    let second = rouse()
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(&state)
        .output()
        .expect("rouse");
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("caused by: another node runs on"), "{text}");
    first.json(&["list"]);
}

#[test]
fn a_killed_node_leaves_a_directory_that_starts_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = dir.path().join("state");
    let node = Node::start(&state);
    node.json(&["deploy", &example("hello-python")]);
    node.signal(Signal::KILL);
    assert_eq!(node.wait(), None);
    // The file of the killed node is still there, and would be taken for the new one's.
    std::fs::remove_file(state.join("endpoint")).expect("endpoint");
    let node = Node::start(&state);
    assert_eq!(
        node.json(&["invoke", "hello-python"])["payload"]["message"],
        "Hello, world!"
    );
    assert!(!node.log().contains("ERROR"), "{}", node.log());
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
    assert_eq!(control_groups(&state), Vec::<std::path::PathBuf>::new());
}

#[test]
fn wrong_settings_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = dir.path().join("state");
    let file = dir.path().join("rouse.toml");
    std::fs::write(&file, "max_idel = 3\n").expect("write");
    let output = rouse()
        .args(["serve", "--config"])
        .arg(&file)
        .arg("--state-dir")
        .arg(&state)
        .output()
        .expect("rouse");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.starts_with("error: the configuration file") && text.contains("max_idel"),
        "{text}"
    );
    let output = serve(&state)
        .args(["--account", "12"])
        .output()
        .expect("rouse");
    assert_eq!(output.status.code(), Some(1));
    assert!(!state.exists());
}
