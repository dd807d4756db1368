//! Keeps `docs/configuration.md` in step with the keys.

use clap::{Args, Command};

use super::{DEFAULTS, Settings};

const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");

/// The rows that the document must hold, in order.
fn rows() -> Vec<String> {
    let defaults: toml::Table = toml::from_str(DEFAULTS).expect("defaults");
    let command = Settings::augment_args(Command::new("serve"));
    command
        .get_arguments()
        .map(|arg| {
            let key = arg.get_id().as_str();
            let flag = arg.get_long().expect("every key is a flag");
            let env = arg
                .get_env()
                .and_then(|env| env.to_str())
                .expect("every key is an environment variable");
            let default = &defaults[key];
            let help = arg.get_help().expect("every key is explained").to_string();
            format!("| `{key}` | `--{flag}` | `{env}` | `{default}` | {help} |")
        })
        .collect()
}

#[test]
fn every_key_is_documented_with_its_default() {
    let rows = rows();
    let documented: Vec<&str> = DOCUMENT
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert_eq!(
        documented,
        rows,
        "docs/configuration.md should hold these rows:\n{}",
        rows.join("\n")
    );
}

#[test]
fn names_follow_one_rule() {
    let command = Settings::augment_args(Command::new("serve"));
    for arg in command.get_arguments() {
        let key = arg.get_id().as_str();
        assert_eq!(arg.get_long(), Some(key.replace('_', "-").as_str()));
        assert_eq!(
            arg.get_env().and_then(|env| env.to_str()),
            Some(format!("ROUSE_{}", key.to_uppercase()).as_str())
        );
    }
}

#[test]
fn every_key_has_a_default() {
    let keys: Vec<String> = Settings::augment_args(Command::new("serve"))
        .get_arguments()
        .map(|arg| arg.get_id().to_string())
        .collect();
    let defaults: toml::Table = toml::from_str(DEFAULTS).expect("defaults");
    let mut defaulted: Vec<&str> = defaults.keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
    defaulted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(defaulted, expected);
}
