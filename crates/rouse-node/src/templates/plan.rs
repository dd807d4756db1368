//! What a template is made with. Everything that its memory depends on is in its name.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;

use rouse_process::instance::LaunchSpec;
use rouse_runtimes::{Runtime, command};
use rouse_sandbox::{Limits, Network};
use sha2::{Digest, Sha256};

use crate::config::NodeConfig;
use crate::engine::environment::common_variables;

/// Tells the client that it is to become a template.
const MARK: &str = "ROUSE_TEMPLATE";

/// Memory of the sandbox in which a template is made, bytes.
const MEMORY: u64 = 512 << 20;

/// How a template is made.
#[derive(Debug, Clone)]
pub struct TemplatePlan {
    /// `python3-` and a digest.
    pub name: String,
    /// The program without a function.
    pub launch: LaunchSpec,
}

impl TemplatePlan {
    /// The plan for functions of a runtime; `None` when the runtime has no template.
    pub fn of(config: &NodeConfig, runtime: Runtime) -> Option<Self> {
        let (word, interpreter) = match runtime {
            Runtime::Python3 => ("python3", &config.interpreters.python3),
            // V8 sizes its heap by the memory that it finds when it starts, which is each function's own.
            Runtime::NodeJs | Runtime::Provided => return None,
        };
        let task_dir = config.state_dir.join(EMPTY_PACKAGE);
        let interpreters = rouse_runtimes::Interpreters {
            python3: config.interpreters.python3.clone(),
            nodejs: config.interpreters.nodejs.clone(),
        };
        let mut command = command(runtime, &interpreters, &task_dir, "");
        // The last argument is the handler, and there is none.
        command.argv.pop();
        let mut env = common_variables(config);
        env.extend(command.env);
        env.push((MARK.into(), "1".into()));
        let launch = LaunchSpec {
            argv: command.argv,
            env,
            task_dir,
            cwd: "/var/task".into(),
            limits: Limits {
                memory: MEMORY,
                pids: config.pids,
                cpu_millis: 1000,
                tmp: 64 << 20,
                network: Network::None,
            },
        };
        let mut digest = Sha256::new();
        for text in launch
            .argv
            .iter()
            .chain(launch.env.iter().flat_map(|(name, value)| [name, value]))
        {
            digest.update(text.as_bytes());
            digest.update([0]);
        }
        digest.update(launch.limits.memory.to_le_bytes());
        for file in rouse_runtimes::client_files(runtime) {
            digest.update((file.len() as u64).to_le_bytes());
            digest.update(file);
        }
        // With another root than the host's it may be elsewhere; then only the files that the snapshot maps can tell.
        if let Ok(file) = fs::metadata(interpreter) {
            for number in [
                file.dev(),
                file.ino(),
                file.size(),
                file.mtime() as u64,
                file.mtime_nsec() as u64,
            ] {
                digest.update(number.to_le_bytes());
            }
        }
        let mut name = format!("{word}-");
        for byte in digest.finalize().iter().take(8) {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        Some(Self { name, launch })
    }
}

/// Directory of the state directory that stands for a package where there is none.
pub const EMPTY_PACKAGE: &str = "no-package";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_what_the_template_depends_on() {
        let config = NodeConfig::default();
        let name = |config: &NodeConfig| TemplatePlan::of(config, Runtime::Python3).unwrap().name;
        let usual = name(&config);
        assert_eq!(usual, name(&config));
        let mut other = config.clone();
        other.interpreters.python3 = "/opt/python3".into();
        assert_ne!(usual, name(&other));
        other = config.clone();
        other.region = "eu-central-1".into();
        assert_ne!(usual, name(&other));
        assert!(TemplatePlan::of(&config, Runtime::Provided).is_none());
    }

    #[test]
    fn nothing_of_a_function_is_in_the_launch() {
        let launch = TemplatePlan::of(&NodeConfig::default(), Runtime::Python3)
            .unwrap()
            .launch;
        assert_eq!(
            launch.argv.last().unwrap(),
            "/var/runtime/python3/bootstrap.py"
        );
        let of_function = [
            "AWS_LAMBDA_FUNCTION_",
            "_HANDLER",
            "AWS_LAMBDA_LOG_",
            "AWS_EXECUTION_ENV",
        ];
        for (name, _) in &launch.env {
            assert!(
                !of_function.iter().any(|prefix| name.starts_with(prefix)),
                "{name}"
            );
        }
    }
}
