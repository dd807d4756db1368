//! How a command fails: an error with its chain of causes, and an exit code.

use std::error::Error;
use std::fmt::Write;
use std::process::ExitCode;

/// The command could not do its work.
pub const FAILURE: u8 = 1;
/// The function itself answered with an error.
pub const FUNCTION_ERROR: u8 = 3;
/// Ended by Ctrl-C, as a shell reports SIGINT.
pub const INTERRUPTED: u8 = 130;

/// What a command ends with.
pub type Outcome = Result<ExitCode, Failed>;

/// A failed command: what to print, and the exit code.
#[derive(Debug)]
pub struct Failed {
    /// Printed with all its sources.
    pub error: Box<dyn Error + Send + Sync>,
    /// Exit code of the command.
    pub code: u8,
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            code: FAILURE,
        }
    }
}

impl Failed {
    /// Whether it is only that the reader of our output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        let mut next: Option<&(dyn Error + 'static)> = Some(self.error.as_ref());
        while let Some(error) = next {
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
            {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Prints `error: ...` and one `caused by: ...` for each source on standard error.
    pub fn print(&self) {
        let label = console::style("error:").red().bold().for_stderr();
        let cause = console::style("caused by:").yellow().for_stderr();
        let mut lines = chain(self.error.as_ref()).into_iter();
        if let Some(first) = lines.next() {
            eprintln!("{label} {first}");
        }
        for line in lines {
            eprintln!("  {cause} {line}");
        }
    }
}

/// Texts of an error and its sources, outermost first. A source that says nothing new is left out: errors that
/// are transparent to their source would repeat it.
pub fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(text, "{error}");
        if lines.last() != Some(&text) {
            lines.push(text);
        }
        next = error.source();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Middle);
    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Middle(std::io::Error);

    #[test]
    fn each_cause_is_named_once() {
        let error = Outer(Middle(std::io::Error::other("inner")));
        assert_eq!(chain(&error), ["outer", "inner"]);
        assert!(!Failed::from(error).is_broken_pipe());
        let pipe = Outer(Middle(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(!chain(&pipe).is_empty());
    }
}
