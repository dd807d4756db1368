//! The functions that are measured: their code, their events, and what a right answer is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::package::detect::{NODE, PYTHON};

/// One function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Its name, in the node and in the report.
    pub name: &'static str,
    /// Its runtime.
    pub runtime: &'static str,
    /// Its handler.
    pub handler: &'static str,
    /// Memory limit, MiB.
    pub memory_mib: u32,
    file: &'static str,
    source: &'static str,
    packages: &'static [&'static str],
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Double,
    Imaging,
    Resident,
    Touch,
    Halves,
}

/// The one with this name, or which there are.
pub fn function_named<'a>(
    name: &str,
    mut all: impl Iterator<Item = &'a Function> + Clone,
) -> Result<Function, String> {
    let names: Vec<_> = all.clone().map(|function| function.name).collect();
    all.find(|function| function.name == name)
        .copied()
        .ok_or_else(|| format!("must be one of {}", names.join(", ")))
}

/// The three functions of the comparison.
pub const FUNCTIONS: [Function; 3] = [
    Function {
        name: "python",
        runtime: PYTHON,
        handler: "app.handler",
        memory_mib: 256,
        file: "app.py",
        source: "def handler(event, context):\n    return {\"n\": event[\"n\"], \"double\": 2 * event[\"n\"]}\n",
        packages: &[],
        kind: Kind::Double,
    },
    Function {
        name: "python-numpy-pillow",
        runtime: PYTHON,
        handler: "app.handler",
        memory_mib: 512,
        file: "app.py",
        source: include_str!("imaging.py"),
        packages: &["numpy", "Pillow"],
        kind: Kind::Imaging,
    },
    Function {
        name: "node",
        runtime: NODE,
        handler: "index.handler",
        memory_mib: 512,
        file: "index.js",
        source: "exports.handler = async (event) => ({ n: event.n, double: 2 * event.n });\n",
        packages: &[],
        kind: Kind::Double,
    },
];

/// A function of 64 MiB, for the pause of a checkpoint.
pub const RESIDENT: Function = Function {
    name: "python-64-mib",
    runtime: PYTHON,
    handler: "app.handler",
    memory_mib: 256,
    file: "app.py",
    source: include_str!("resident.py"),
    packages: &[],
    kind: Kind::Resident,
};

/// Functions of which it matters how their memory comes back: all of it is touched, or a part that changes.
pub const TOUCHING: [Function; 2] = [
    Function {
        name: "python-touch-64-mib",
        runtime: PYTHON,
        handler: "app.handler",
        memory_mib: 256,
        file: "app.py",
        source: include_str!("touch.py"),
        packages: &[],
        kind: Kind::Touch,
    },
    Function {
        name: "python-halves-64-mib",
        runtime: PYTHON,
        handler: "app.handler",
        memory_mib: 256,
        file: "app.py",
        source: include_str!("halves.py"),
        packages: &[],
        kind: Kind::Halves,
    },
];

/// A function that does harm, as its event says. Its answers are of no interest.
pub const TROUBLE: Function = Function {
    name: "trouble",
    runtime: PYTHON,
    handler: "app.handler",
    memory_mib: 512,
    file: "app.py",
    source: include_str!("trouble.py"),
    packages: &[],
    kind: Kind::Double,
};

/// Why a function's directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file or directory could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed:\n{output}")]
    Failed {
        /// The program and its arguments.
        program: String,
        /// What it said.
        output: String,
    },
}

impl Function {
    /// The event of the `n`th request.
    pub fn event(&self, n: u64) -> Vec<u8> {
        format!("{{\"n\": {n}}}").into_bytes()
    }

    /// Whether `answer` is the right one for the `n`th event.
    pub fn is_right(&self, n: u64, answer: &[u8]) -> bool {
        let expected = match self.kind {
            Kind::Double => json!({ "n": n, "double": 2 * n }),
            // A 64 x 64 ramp of three channels, 12288 values modulo 256: 48 whole turns, so its sum does not depend on n.
            Kind::Imaging => {
                json!({ "n": n, "first": n % 256, "sum": 48 * (255 * 256 / 2), "size": [16, 16] })
            }
            Kind::Resident => json!({ "n": n, "bytes": 50 << 20 }),
            // The first bytes of the pages take all values equally often: 64 times each in 64 MiB.
            Kind::Touch => json!({ "n": n, "sum": 64 * (255 * 256 / 2) }),
            Kind::Halves => json!({ "n": n, "sum": 32 * (255 * 256 / 2) }),
        };
        serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer == expected)
    }

    /// Writes the function into `directory`, with its packages beside it. Packages are installed once into `cache`.
    pub fn prepare(
        &self,
        python: &Path,
        cache: &Path,
        directory: &Path,
    ) -> Result<(), PrepareError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| PrepareError::Write { path, source }
        };
        if self.packages.is_empty() {
            fs::create_dir_all(directory).map_err(write(directory))?;
        } else {
            let installed = install(python, cache, self.packages)?;
            copy(&installed, directory).map_err(write(directory))?;
        }
        let file = directory.join(self.file);
        fs::write(&file, self.source).map_err(write(&file))
    }
}

/// Installs `packages` as a user would: `python3 -m venv`, then `pip install --target`. Returns the directory, which
/// is there complete or not at all.
fn install(python: &Path, cache: &Path, packages: &[&str]) -> Result<PathBuf, PrepareError> {
    let version = output(
        Command::new(python).args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]),
    )?;
    let target = cache.join(format!(
        "python{}-{}",
        version.trim(),
        packages.join("-").to_lowercase()
    ));
    if target.exists() {
        return Ok(target);
    }
    let write = |source| PrepareError::Write {
        path: cache.to_owned(),
        source,
    };
    fs::create_dir_all(cache).map_err(write)?;
    let scratch = tempfile::tempdir_in(cache).map_err(write)?;
    let (environment, site) = (scratch.path().join("venv"), scratch.path().join("site"));
    output(Command::new(python).args(["-m", "venv"]).arg(&environment))?;
    let pip = environment.join("bin/pip");
    output(
        Command::new(pip)
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-compile",
                "--target",
            ])
            .arg(&site)
            .args(packages),
    )?;
    match fs::rename(&site, &target) {
        // Another benchmark was faster; its directory is as good.
        Err(_) if target.exists() => Ok(target),
        other => other.map(|()| target).map_err(write),
    }
}

fn output(command: &mut Command) -> Result<String, PrepareError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| PrepareError::Start {
            program: program.clone(),
            source,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy())
        .collect();
    let said = [output.stdout, output.stderr].concat();
    Err(PrepareError::Failed {
        program: format!("{program} {}", arguments.join(" ")),
        output: String::from_utf8_lossy(&said).trim().to_owned(),
    })
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answer_is_right() {
        let [python, imaging, node] = FUNCTIONS;
        assert!(
            python.is_right(21, b"{\"n\": 21, \"double\": 42}")
                && node.is_right(0, b"{\"double\":0,\"n\":0}")
        );
        assert!(
            !python.is_right(21, b"{\"n\": 21, \"double\": 43}") && !python.is_right(21, b"21")
        );
        assert!(imaging.is_right(
            300,
            b"{\"n\": 300, \"first\": 44, \"sum\": 1566720, \"size\": [16, 16]}"
        ));
    }

    #[test]
    fn the_bundled_handlers_answer_right() {
        let dir = tempfile::tempdir().expect("tempdir");
        for function in [FUNCTIONS[0], RESIDENT, TOUCHING[0], TOUCHING[1]] {
            let directory = dir.path().join(function.name);
            function
                .prepare(Path::new("/usr/bin/python3"), dir.path(), &directory)
                .expect("prepare");
            let script = "import app, json; print(json.dumps(app.handler({'n': 5}, None)))";
            let answer = output(
                Command::new("/usr/bin/python3")
                    .args(["-c", script])
                    .current_dir(&directory),
            )
            .expect("python");
            assert!(
                function.is_right(5, answer.as_bytes()),
                "{}: {answer}",
                function.name
            );
        }
    }
}
