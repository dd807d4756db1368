//! What is started in a sandbox for a function.

use std::path::{Path, PathBuf};

use crate::Runtime;

/// The host's interpreters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreters {
    /// A Python of version 3.8 or later.
    pub python3: PathBuf,
    /// A Node of version 18 or later.
    pub nodejs: PathBuf,
}

impl Default for Interpreters {
    fn default() -> Self {
        Interpreters {
            python3: "/usr/bin/python3".into(),
            nodejs: "/usr/bin/node".into(),
        }
    }
}

/// A command line and the environment variables that the client needs beside Lambda's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeCommand {
    /// The program, as an absolute path inside the sandbox, and its arguments.
    pub argv: Vec<String>,
    /// Variables that take precedence over what the node sets, and yield to what the function's configuration sets.
    pub env: Vec<(String, String)>,
}

/// The command for a function whose code lies at `task_dir` on the host and at `/var/task` in the sandbox.
///
/// An official client in the package is preferred to ours:
/// - `awslambdaric` when it has SnapStart's hooks (version 3 and later; an older one would leave nowhere to reseed);
/// - `aws-lambda-ric` when its native module has been built. It never asks for `restore/next`.
pub fn command(
    runtime: Runtime,
    interpreters: &Interpreters,
    task_dir: &Path,
    handler: &str,
) -> RuntimeCommand {
    let mut env = Vec::new();
    let argv = match runtime {
        Runtime::Python3 => {
            let client = if has_awslambdaric(task_dir) {
                "_rouse_ric.py"
            } else {
                "bootstrap.py"
            };
            // -B: the code is read-only, so that writing bytecode would only fail. -s: no packages of a user's home.
            let client = format!("/var/runtime/python3/{client}");
            vec![
                text(&interpreters.python3),
                "-B".into(),
                "-s".into(),
                client,
                handler.into(),
            ]
        }
        Runtime::NodeJs => {
            let client = if has_aws_lambda_ric(task_dir) {
                env.push(("AWS_LAMBDA_INITIALIZATION_TYPE".into(), "on-demand".into()));
                "ric.cjs"
            } else {
                "bootstrap.cjs"
            };
            env.push((
                "NODE_PATH".into(),
                "/var/runtime/nodejs/node_modules".into(),
            ));
            // io_uring is blocked in sandboxes and could not be snapshotted.
            env.push(("UV_USE_IO_URING".into(), "0".into()));
            let mut argv = vec![text(&interpreters.nodejs)];
            argv.extend(NODE_FLAGS.iter().map(|flag| (*flag).to_owned()));
            argv.push(format!("/var/runtime/nodejs/{client}"));
            argv.push(handler.into());
            argv
        }
        Runtime::Provided => vec!["/var/task/bootstrap".into()],
    };
    RuntimeCommand { argv, env }
}

/// One worker of V8 instead of four: each thread is one more to restore, and functions rarely have more than one processor.
const NODE_FLAGS: &[&str] = &["--v8-pool-size=1"];

fn has_awslambdaric(task_dir: &Path) -> bool {
    ["", "site-packages", "python"].iter().any(|folder| {
        task_dir
            .join(folder)
            .join("awslambdaric/lambda_runtime_hooks_runner.py")
            .is_file()
    })
}

fn has_aws_lambda_ric(task_dir: &Path) -> bool {
    let package = task_dir.join("node_modules/aws-lambda-ric");
    package.join("package.json").is_file()
        && ["dist", "lib", "build/Release"]
            .iter()
            .any(|folder| package.join(folder).join("rapid-client.node").is_file())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;

    use super::*;

    fn package(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn client(runtime: Runtime, files: &[&str]) -> RuntimeCommand {
        command(
            runtime,
            &Interpreters::default(),
            package(files).path(),
            "app.handler",
        )
    }

    #[test]
    fn own_clients_by_default() {
        let python = client(Runtime::Python3, &["app.py"]);
        assert_eq!(
            python.argv,
            [
                "/usr/bin/python3",
                "-B",
                "-s",
                "/var/runtime/python3/bootstrap.py",
                "app.handler"
            ]
        );
        let node = client(Runtime::NodeJs, &["app.js"]);
        assert_eq!(node.argv.last().unwrap(), "app.handler");
        assert!(
            node.argv
                .contains(&"/var/runtime/nodejs/bootstrap.cjs".to_owned())
        );
        assert!(
            !node
                .env
                .iter()
                .any(|(name, _)| name == "AWS_LAMBDA_INITIALIZATION_TYPE")
        );
        assert_eq!(
            client(Runtime::Provided, &["bootstrap"]).argv,
            ["/var/task/bootstrap"]
        );
    }

    #[test]
    fn official_clients_when_they_can_be_used() {
        let hooks = "awslambdaric/lambda_runtime_hooks_runner.py";
        for folder in ["", "site-packages/", "python/"] {
            let argv = client(Runtime::Python3, &[&format!("{folder}{hooks}")]).argv;
            assert!(argv.contains(&"/var/runtime/python3/_rouse_ric.py".to_owned()));
        }
        // Version 2 has no hooks.
        let argv = client(Runtime::Python3, &["awslambdaric/bootstrap.py"]).argv;
        assert!(argv.contains(&"/var/runtime/python3/bootstrap.py".to_owned()));

        let ric = "node_modules/aws-lambda-ric";
        let node = client(
            Runtime::NodeJs,
            &[
                &format!("{ric}/package.json"),
                &format!("{ric}/dist/rapid-client.node"),
            ],
        );
        assert!(
            node.argv
                .contains(&"/var/runtime/nodejs/ric.cjs".to_owned())
        );
        assert!(
            node.env
                .contains(&("AWS_LAMBDA_INITIALIZATION_TYPE".into(), "on-demand".into()))
        );
        // Installed without its install scripts.
        let argv = client(Runtime::NodeJs, &[&format!("{ric}/package.json")]).argv;
        assert!(argv.contains(&"/var/runtime/nodejs/bootstrap.cjs".to_owned()));
    }
}
