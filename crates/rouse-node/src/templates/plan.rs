//! What a template is made with. Everything that its memory depends on is in its name.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;

use rouse_process::instance::LaunchSpec;
use rouse_runtimes::{Runtime, RuntimeCommand, command};
use rouse_sandbox::{Limits, Network};
use sha2::{Digest, Sha256};

use crate::config::NodeConfig;
use crate::engine::environment::common_variables;
use crate::serving::policy::SandboxChoice;

/// Tells the client that it is to become a template.
const MARK: &str = "ROUSE_TEMPLATE";

/// Memory of the sandbox in which a template is made that fits functions of any memory, bytes.
const MEMORY: u64 = 512 << 20;
/// Its processor time, thousandths of one CPU.
const CPU_MILLIS: u32 = 1000;

/// How a template is made.
#[derive(Debug, Clone)]
pub struct TemplatePlan {
    /// `python3-` or `nodejs-`, `microvm-` if it is a machine, and a digest.
    pub name: String,
    /// In which kind of sandbox it is made, for functions in such ones.
    pub sandbox: SandboxChoice,
    /// The program without a function.
    pub launch: LaunchSpec,
    /// The program with a function of nobody, of which a specimen is made; for runtimes of which functions have pages in common.
    pub specimen: Option<LaunchSpec>,
}

impl TemplatePlan {
    /// The plan for functions of a runtime that have these limits; `None` when the runtime has no template. A machine has a `ground`:
    /// what else its memory depends on.
    pub fn of(
        config: &NodeConfig,
        runtime: Runtime,
        limits: &Limits,
        ground: Option<&[u8]>,
    ) -> Option<Self> {
        let (word, interpreter) = match runtime {
            Runtime::Python3 => ("python3", &config.interpreters.python3),
            Runtime::NodeJs => ("nodejs", &config.interpreters.nodejs),
            Runtime::Provided => return None,
        };
        let (memory, cpu_millis) = match (runtime, ground) {
            // A machine has a size, which its kernel knows.
            (_, Some(_)) => (limits.memory, limits.cpu_millis),
            // V8 sizes its heap when it starts, by the memory that it finds: one template for each size.
            (Runtime::NodeJs, None) => (limits.memory, CPU_MILLIS),
            _ => (MEMORY, CPU_MILLIS),
        };
        let task_dir = config.state_dir.join(EMPTY_PACKAGE);
        let interpreters = rouse_runtimes::Interpreters {
            python3: config.interpreters.python3.clone(),
            nodejs: config.interpreters.nodejs.clone(),
        };
        let mut command = command(runtime, &interpreters, &task_dir, "");
        let specimen = match ground {
            None => specimen(config, runtime, &interpreters, &task_dir),
            Some(_) => None,
        };
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
                memory,
                pids: config.pids,
                cpu_millis,
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
        if let Some(ground) = ground {
            // The interpreter is a file of the root.
            digest.update(ground);
        } else if let Ok(file) = fs::metadata(interpreter) {
            // With another root than the host's it may be elsewhere; then only the files that the snapshot maps can tell.
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
        let (mut name, sandbox) = match ground {
            None => (format!("{word}-"), SandboxChoice::Process),
            Some(_) => (format!("{word}-microvm-"), SandboxChoice::Microvm),
        };
        for byte in digest.finalize().iter().take(8) {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        let specimen = specimen.map(|command| LaunchSpec {
            argv: command.argv,
            env: command.env,
            task_dir: config.state_dir.join(SPECIMEN_PACKAGE),
            ..launch.clone()
        });
        Some(Self {
            name,
            sandbox,
            launch,
            specimen,
        })
    }
}

/// Directory of the state directory that holds the package of a specimen.
const SPECIMEN_PACKAGE: &str = "specimen-package";

/// What a specimen's function is told of itself; values are about as long as others'.
const SPECIMEN: [(&str, &str); 9] = [
    ("_HANDLER", "app.handler"),
    ("AWS_LAMBDA_FUNCTION_NAME", "specimen"),
    ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
    ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
    ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/specimen"),
    (
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "rouse/[$LATEST]00000000-0000-0000-0000-000000000000",
    ),
    ("AWS_LAMBDA_LOG_FORMAT", "Text"),
    ("AWS_EXECUTION_ENV", "AWS_Lambda_python3"),
    ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start"),
];

/// Command line and variables of a function of nobody, as those of others are.
fn specimen(
    config: &NodeConfig,
    runtime: Runtime,
    interpreters: &rouse_runtimes::Interpreters,
    task_dir: &std::path::Path,
) -> Option<RuntimeCommand> {
    // V8 moves objects whenever it collects garbage: no two functions have a page in common.
    if runtime != Runtime::Python3 {
        return None;
    }
    let command = command(runtime, interpreters, task_dir, SPECIMEN[0].1);
    let mut env = common_variables(config);
    let own = SPECIMEN.iter();
    env.extend(own.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    env.extend(command.env.iter().cloned());
    Some(RuntimeCommand { env, ..command })
}

/// Directory of the state directory that stands for a package where there is none.
pub const EMPTY_PACKAGE: &str = "no-package";

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory: u64) -> Limits {
        Limits {
            memory,
            pids: 100,
            cpu_millis: 1000,
            tmp: 0,
            network: Network::None,
        }
    }

    fn plan(config: &NodeConfig, runtime: Runtime, memory: u64) -> Option<TemplatePlan> {
        TemplatePlan::of(config, runtime, &limits(memory), None)
    }

    #[test]
    fn a_machine_is_another_template() {
        let config = NodeConfig::default();
        let of = |ground| TemplatePlan::of(&config, Runtime::Python3, &limits(MEMORY), ground);
        let process = of(None).unwrap();
        let (one, other) = (of(Some(b"one")).unwrap(), of(Some(b"other")).unwrap());
        assert!(one.name.starts_with("python3-microvm-"), "{}", one.name);
        assert_ne!(one.name, other.name);
        assert_eq!(one.name, of(Some(b"one")).unwrap().name);
        assert!(process.specimen.is_some() && one.specimen.is_none());
        assert_eq!(one.sandbox, SandboxChoice::Microvm);
    }

    #[test]
    fn the_name_follows_what_the_template_depends_on() {
        let config = NodeConfig::default();
        let name = |config: &NodeConfig| plan(config, Runtime::Python3, MEMORY).unwrap().name;
        let usual = name(&config);
        assert_eq!(usual, name(&config));
        let mut other = config.clone();
        other.interpreters.python3 = "/opt/python3".into();
        assert_ne!(usual, name(&other));
        other = config.clone();
        other.region = "eu-central-1".into();
        assert_ne!(usual, name(&other));
        assert!(plan(&config, Runtime::Provided, MEMORY).is_none());
    }

    #[test]
    fn only_v8_is_told_how_much_memory_there_is() {
        let config = NodeConfig::default();
        let name = |runtime, memory| plan(&config, runtime, memory).unwrap().name;
        assert_eq!(
            name(Runtime::Python3, 128 << 20),
            name(Runtime::Python3, 1 << 30)
        );
        assert_ne!(
            name(Runtime::NodeJs, 128 << 20),
            name(Runtime::NodeJs, 1 << 30)
        );
    }

    #[test]
    fn nothing_of_a_function_is_in_the_launch() {
        let of_function = [
            "AWS_LAMBDA_FUNCTION_",
            "_HANDLER",
            "AWS_LAMBDA_LOG_",
            "AWS_EXECUTION_ENV",
        ];
        for (runtime, client) in [
            (Runtime::Python3, "/var/runtime/python3/bootstrap.py"),
            (Runtime::NodeJs, "/var/runtime/nodejs/bootstrap.cjs"),
        ] {
            let plan = plan(&NodeConfig::default(), runtime, MEMORY);
            let launch = plan.unwrap().launch;
            assert_eq!(launch.argv.last().unwrap(), client);
            for (name, _) in &launch.env {
                assert!(
                    !of_function.iter().any(|prefix| name.starts_with(prefix)),
                    "{name}"
                );
            }
        }
    }
}
