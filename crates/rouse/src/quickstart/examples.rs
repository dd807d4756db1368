//! The two functions that are bundled with the command.

use serde_json::{Value, json};

/// A function, its events, and what a right answer is.
pub struct Example {
    /// Name of the function.
    pub name: &'static str,
    /// Its `app.py`, whose handler is `handler`.
    pub source: &'static str,
    /// The `n`th event.
    pub event: fn(u64) -> Value,
    /// Whether an answer to the `n`th event is right; if not, how it differs.
    pub check: fn(u64, &Value) -> Result<(), String>,
}

/// Plain Python, and Python with many imports.
pub const EXAMPLES: [Example; 2] = [
    Example {
        name: "hello-python",
        source: include_str!("../../../../examples/hello-python/app.py"),
        event: |n| json!({ "name": format!("guest {n}") }),
        check: |n, answer| expect(answer, "message", &json!(format!("Hello, guest {n}!"))),
    },
    Example {
        name: "heavy-python",
        source: include_str!("../../../../examples/heavy-python/app.py"),
        event: |n| json!({ "values": values(n) }),
        check: |n, answer| {
            let [first, second, third] = values(n);
            expect(
                answer,
                "squares",
                &json!([first * first, second * second, third * third]),
            )?;
            expect(answer, "mean", &json!(second))?;
            match answer.get("sha256").and_then(Value::as_str) {
                Some(digest) if digest.len() == 64 => Ok(()),
                other => Err(format!("sha256 should be a digest, not {other:?}")),
            }
        },
    },
];

/// Three numbers in a row, of the heavy example's table.
fn values(n: u64) -> [u64; 3] {
    [n % 1000, n % 1000 + 1, n % 1000 + 2]
}

fn expect(answer: &Value, member: &str, expected: &Value) -> Result<(), String> {
    match answer.get(member) {
        Some(value) if value == expected => Ok(()),
        other => Err(format!("{member} should be {expected}, not {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_examples_answer_right() {
        for example in &EXAMPLES {
            let dir = tempfile::tempdir().expect("tempdir");
            std::fs::write(dir.path().join("app.py"), example.source).expect("write");
            let script = "import app, json, sys, types\ncontext = types.SimpleNamespace(aws_request_id='id')\nprint(json.dumps(app.handler(json.loads(sys.argv[1]), context)))";
            let output = Command::new("/usr/bin/python3")
                .args(["-B", "-c", script, &(example.event)(7).to_string()])
                .current_dir(dir.path())
                .output()
                .expect("python");
            let answer = serde_json::from_slice(&output.stdout).expect("json");
            assert_eq!((example.check)(7, &answer), Ok(()), "{}", example.name);
            assert!((example.check)(8, &answer).is_err());
        }
    }
}
