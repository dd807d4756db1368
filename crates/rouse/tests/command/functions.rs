//! A function's life, command by command.

use serde_json::json;

use crate::node::{Node, example};

#[test]
fn deploy_invoke_describe_list_logs_delete() {
    let dir = tempfile::tempdir().expect("tempdir");
    let node = Node::start(&dir.path().join("state"));

    let deployed = node.json(&[
        "deploy",
        &example("hello-python"),
        "--env",
        "MOOD=good",
        "--memory",
        "256",
    ]);
    assert_eq!(deployed["snapshot"]["state"], "ready", "{deployed}");
    assert_eq!(deployed["configuration"]["Handler"], "app.handler");
    assert_eq!(
        deployed["configuration"]["Environment"]["Variables"]["MOOD"],
        "good"
    );

    for boot in ["cold", "restore", "fork"] {
        let answer = node.json(&[
            "invoke",
            "hello-python",
            "--payload",
            r#"{"name": "Ada"}"#,
            "--boot",
            boot,
        ]);
        assert_eq!(answer["payload"]["message"], "Hello, Ada!");
        assert_eq!(answer["boot"], boot);
        assert!(
            answer["stages_us"]
                .as_object()
                .is_some_and(|stages| !stages.is_empty()),
            "{answer}"
        );
    }
    let event = dir.path().join("event.json");
    std::fs::write(&event, r#"{"name": "file"}"#).expect("event");
    let output = node.run(&[
        "invoke",
        "hello-python",
        "--payload",
        &format!("@{}", event.display()),
    ]);
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("only the answer is on standard output");
    assert_eq!(answer["message"], "Hello, file!");
    let queued = node.json(&["invoke", "hello-python", "--async"]);
    assert_eq!(queued["status"], 202);

    let described = node.json(&["describe", "hello-python"]);
    assert!(
        described["boots"]["fork"].as_u64() >= Some(1),
        "{described}"
    );
    let text = String::from_utf8(node.run(&["describe", "hello-python"]).stdout).expect("text");
    assert!(
        text.contains("snapshot") && text.contains("MOOD") && !text.contains("good"),
        "values of variables stay private: {text}"
    );

    let listed = node.json(&["list"]);
    assert_eq!(listed[0]["FunctionName"], "hello-python");
    let table = String::from_utf8(node.run(&["list"]).stdout).expect("text");
    assert!(
        table.starts_with("NAME") && table.contains("app.handler"),
        "{table}"
    );

    let tail = node.json(&["invoke", "hello-python", "--tail"]);
    assert!(
        tail["log_tail"]
            .as_str()
            .is_some_and(|log| log.contains("REPORT RequestId:")),
        "{tail}"
    );
    let logs =
        String::from_utf8(node.run(&["logs", "hello-python", "-n", "5"]).stdout).expect("text");
    assert_eq!(logs.lines().count(), 5, "{logs}");

    assert_eq!(
        node.json(&["delete", "hello-python"]),
        json!({ "deleted": "hello-python" })
    );
    assert_eq!(node.json(&["list"]), json!([]));
}

#[test]
fn a_second_deploy_updates() {
    let dir = tempfile::tempdir().expect("tempdir");
    let node = Node::start(&dir.path().join("state"));
    let code = dir.path().join("greeter");
    std::fs::create_dir(&code).expect("mkdir");
    let write = |word: &str| {
        std::fs::write(
            code.join("app.py"),
            format!("def handler(event, context):\n    return '{word}'\n"),
        )
        .expect("write")
    };
    let path = code.display().to_string();
    for word in ["first", "second"] {
        write(word);
        assert_eq!(node.json(&["deploy", &path])["snapshot"]["state"], "ready");
        assert_eq!(node.json(&["invoke", "greeter"])["payload"], word);
    }
}

#[test]
fn errors_have_a_chain_and_an_exit_code() {
    let dir = tempfile::tempdir().expect("tempdir");
    let node = Node::start(&dir.path().join("state"));
    let missing = node.run(&["invoke", "nobody"]);
    let text = String::from_utf8(missing.stderr).expect("text");
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text.starts_with("error: Function not found") && text.contains("ResourceNotFoundException"),
        "{text}"
    );

    let code = dir.path().join("failing");
    std::fs::create_dir(&code).expect("mkdir");
    std::fs::write(
        code.join("app.py"),
        "def handler(event, context):\n    raise ValueError('no luck')\n",
    )
    .expect("write");
    node.json(&["deploy", &code.display().to_string()]);
    let failed = node.run(&["invoke", "failing"]);
    assert_eq!(failed.status.code(), Some(3));
    let answer: serde_json::Value = serde_json::from_slice(&failed.stdout).expect("json");
    assert_eq!(
        (&answer["errorType"], &answer["errorMessage"]),
        (&json!("ValueError"), &json!("no luck"))
    );

    let nowhere = crate::node::rouse()
        .args(["list", "--endpoint", "http://127.0.0.1:1"])
        .output()
        .expect("rouse");
    let text = String::from_utf8(nowhere.stderr).expect("text");
    assert!(
        text.contains("error:") && text.matches("caused by:").count() >= 2,
        "{text}"
    );
    assert_eq!(
        crate::node::rouse()
            .args(["invoke"])
            .output()
            .expect("rouse")
            .status
            .code(),
        Some(2)
    );
}
