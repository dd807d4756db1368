//! The runtimes that a function can ask for.

/// A runtime, as Lambda's `Runtime` member names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// `python3` or `python3.8` to `python3.14`: the host's interpreter.
    Python3,
    /// `nodejs` or `nodejs18.x` to `nodejs22.x`: the host's Node.
    NodeJs,
    /// `provided`, `provided.al2`, `provided.al2023`: an executable `bootstrap` in the package.
    Provided,
}

impl Runtime {
    /// The runtime of an identifier, or `None` when there is none.
    ///
    /// The version in an identifier is accepted and not acted upon: the host's interpreter runs the function.
    pub fn parse(lambda_identifier: &str) -> Option<Runtime> {
        match lambda_identifier {
            "python3" | "python3.8" | "python3.9" | "python3.10" | "python3.11" | "python3.12"
            | "python3.13" | "python3.14" => Some(Runtime::Python3),
            "nodejs" | "nodejs18.x" | "nodejs20.x" | "nodejs22.x" => Some(Runtime::NodeJs),
            "provided" | "provided.al2" | "provided.al2023" => Some(Runtime::Provided),
            _ => None,
        }
    }

    /// Whether the runtime's client speaks SnapStart's `restore/next`, so that `AWS_LAMBDA_INITIALIZATION_TYPE` is to be
    /// `snap-start` unless [`RuntimeCommand::env`](crate::RuntimeCommand::env) says otherwise.
    ///
    /// True for all: a `provided` bootstrap that knows nothing of SnapStart ignores the variable and asks for its first
    /// invocation, which is then the snapshot point.
    pub fn snapstart(self) -> bool {
        match self {
            Runtime::Python3 | Runtime::NodeJs | Runtime::Provided => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Runtime;

    #[test]
    fn identifiers() {
        for version in 8..=14 {
            assert_eq!(
                Runtime::parse(&format!("python3.{version}")),
                Some(Runtime::Python3)
            );
        }
        assert_eq!(Runtime::parse("python3"), Some(Runtime::Python3));
        assert_eq!(Runtime::parse("nodejs20.x"), Some(Runtime::NodeJs));
        assert_eq!(Runtime::parse("provided.al2023"), Some(Runtime::Provided));
        for unknown in [
            "",
            "python2.7",
            "python3.15",
            "python3.",
            "Python3",
            "nodejs16.x",
            "java21",
            "provided.al",
        ] {
            assert_eq!(Runtime::parse(unknown), None, "{unknown}");
        }
    }
}
