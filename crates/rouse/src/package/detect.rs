//! Guesses runtime and handler from the files of a function.

/// What the entry file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guess {
    /// Runtime's name for the API.
    pub runtime: &'static str,
    /// Handler's name for the API.
    pub handler: String,
}

/// Why nothing could be guessed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetectError {
    /// No entry file is known.
    #[error("none of {} is there: say --runtime and --handler", entries())]
    NoEntry,
    /// Several entry files, of different runtimes.
    #[error("both {0} and {1} are there: say --runtime and --handler")]
    Ambiguous(&'static str, &'static str),
    /// The entry file has no function with a usual name.
    #[error("{entry} defines none of {}: say --handler {}.NAME", names.join(", "), stem(entry))]
    NoHandler {
        /// The entry file.
        entry: &'static str,
        /// Names that were looked for.
        names: &'static [&'static str],
    },
}

/// The host's Python.
pub const PYTHON: &str = "python3";
/// The host's Node.
pub const NODE: &str = "nodejs";
/// An executable named `bootstrap`.
pub const PROVIDED: &str = "provided";

struct Entry {
    file: &'static str,
    runtime: &'static str,
    /// Names of handlers, the most usual first; empty where the file itself is the handler.
    handlers: &'static [&'static str],
}

/// In order of preference within one runtime.
const ENTRIES: [Entry; 7] = [
    Entry {
        file: "bootstrap",
        runtime: PROVIDED,
        handlers: &[],
    },
    Entry {
        file: "app.py",
        runtime: PYTHON,
        handlers: &["handler", "lambda_handler"],
    },
    Entry {
        file: "lambda_function.py",
        runtime: PYTHON,
        handlers: &["lambda_handler", "handler"],
    },
    Entry {
        file: "main.py",
        runtime: PYTHON,
        handlers: &["handler", "lambda_handler"],
    },
    Entry {
        file: "index.mjs",
        runtime: NODE,
        handlers: &["handler"],
    },
    Entry {
        file: "index.js",
        runtime: NODE,
        handlers: &["handler"],
    },
    Entry {
        file: "index.cjs",
        runtime: NODE,
        handlers: &["handler"],
    },
];

/// Guesses from the names of the files, and from the text of the entry file, which `read` gives.
pub fn detect<'a>(
    names: impl Iterator<Item = &'a str>,
    mut read: impl FnMut(&str) -> Option<String>,
) -> Result<Guess, DetectError> {
    let names: Vec<&str> = names.collect();
    let mut present = ENTRIES.iter().filter(|entry| names.contains(&entry.file));
    let entry = present.next().ok_or(DetectError::NoEntry)?;
    if let Some(other) = present.find(|other| other.runtime != entry.runtime) {
        return Err(DetectError::Ambiguous(entry.file, other.file));
    }
    if entry.handlers.is_empty() {
        return Ok(Guess {
            runtime: entry.runtime,
            handler: entry.file.to_owned(),
        });
    }
    let text = read(entry.file).unwrap_or_default();
    let defined = entry.handlers.iter().find(|name| defines(&text, name));
    let name = defined.ok_or(DetectError::NoHandler {
        entry: entry.file,
        names: entry.handlers,
    })?;
    Ok(Guess {
        runtime: entry.runtime,
        handler: format!("{}.{name}", stem(entry.file)),
    })
}

/// Whether a line of Python or JavaScript at the top level defines or exports `name`. Reads like a person skimming:
/// a wrong guess costs one flag.
fn defines(text: &str, name: &str) -> bool {
    text.lines()
        .filter(|line| !line.starts_with([' ', '\t', '#']))
        .any(|line| {
            line.match_indices(name).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + name.len()..].chars().next();
                let inside_a_word =
                    |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                !inside_a_word(before) && !inside_a_word(after)
            })
        })
}

fn stem(file: &str) -> &str {
    file.split('.').next().unwrap_or(file)
}

fn entries() -> String {
    ENTRIES.map(|entry| entry.file).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(file: &str, text: &str) -> Result<Guess, DetectError> {
        detect([file, "data.txt"].into_iter(), |_| Some(text.to_owned()))
    }

    #[test]
    fn usual_layouts_need_no_flags() {
        for (file, text, runtime, handler) in [
            (
                "app.py",
                "import os\n\ndef handler(event, context):\n",
                PYTHON,
                "app.handler",
            ),
            (
                "app.py",
                "def lambda_handler(event, context):\n",
                PYTHON,
                "app.lambda_handler",
            ),
            (
                "lambda_function.py",
                "def lambda_handler(e, c): pass",
                PYTHON,
                "lambda_function.lambda_handler",
            ),
            (
                "main.py",
                "from lib import handler\n",
                PYTHON,
                "main.handler",
            ),
            (
                "index.js",
                "exports.handler = async () => 1;",
                NODE,
                "index.handler",
            ),
            (
                "index.mjs",
                "export const handler = async () => 1;",
                NODE,
                "index.handler",
            ),
            ("bootstrap", "", PROVIDED, "bootstrap"),
        ] {
            assert_eq!(
                one(file, text),
                Ok(Guess {
                    runtime,
                    handler: handler.to_owned()
                }),
                "{file}: {text}"
            );
        }
    }

    #[test]
    fn doubt_is_said() {
        assert_eq!(one("readme.md", ""), Err(DetectError::NoEntry));
        assert!(matches!(
            one("app.py", "    def handler(): pass\ndef handlers(): pass\n"),
            Err(DetectError::NoHandler { .. })
        ));
        let both = detect(["index.js", "app.py"].into_iter(), |_| None);
        assert_eq!(both, Err(DetectError::Ambiguous("app.py", "index.js")));
        assert_eq!(
            one("app.py", "").expect_err("no handler").to_string(),
            "app.py defines none of handler, lambda_handler: say --handler app.NAME"
        );
    }
}
