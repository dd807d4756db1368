//! Which functions can be made of a template: those whose interpreter would have started in the same way.
//!
//! What a package changes about the start (a module or a library that is preferred to the system's) is found by the Python
//! client itself, which then starts over from nothing. Node has no call by which a process could do that.

use std::fs;
use std::path::Path;

use rouse_runtimes::Runtime;

use super::plan::TemplatePlan;
use crate::engine::function::Revision;

/// Variables that are read before the client can replace them: by the dynamic linker, the C library, OpenSSL, the
/// interpreters and the client. Those that end with `*` are prefixes.
const READ_AT_START: &[&str] = &[
    "LD_*",
    "GLIBC_TUNABLES",
    "MALLOC_*",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TZDIR",
    "OPENSSL_*",
    "SSL_CERT_*",
    "PYTHON*",
    "NODE_*",
    "UV_*",
    "NO_COLOR",
    "FORCE_COLOR",
    "LAMBDA_TASK_ROOT",
    "LAMBDA_RUNTIME_DIR",
    "AWS_LAMBDA_RUNTIME_API",
    "ROUSE_TEMPLATE",
];

/// Says why a function cannot be made of the template, if it cannot.
pub fn check(plan: &TemplatePlan, revision: &Revision) -> Result<(), String> {
    let spec = &revision.launches.snapshot;
    // The last argument is the handler, which the template is told instead.
    if spec.argv.len() != plan.launch.argv.len() + 1 || !spec.argv.starts_with(&plan.launch.argv) {
        return Err("its package brings its own runtime client".into());
    }
    let runtime = Runtime::parse(&revision.record.settings.runtime);
    if runtime == Some(Runtime::NodeJs) && has_libraries(&spec.task_dir) {
        return Err(
            "the dynamic linker may find the interpreter's libraries in its package".into(),
        );
    }
    match differing(&plan.launch.env, &spec.env) {
        Some(name) => Err(format!("the interpreter reads {name} when it starts")),
        None => Ok(()),
    }
}

/// Are there shared libraries in a package, in the folders in which the dynamic linker looks first?
fn has_libraries(task_dir: &Path) -> bool {
    ["", "lib"].iter().any(|folder| {
        let entries = fs::read_dir(task_dir.join(folder)).into_iter().flatten();
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| {
            let name = name.to_string_lossy();
            name.ends_with(".so") || name.contains(".so.")
        })
    })
}

/// A variable that is read at the start and has another value.
fn differing<'a>(
    template: &'a [(String, String)],
    function: &'a [(String, String)],
) -> Option<&'a str> {
    let value = |variables: &'a [(String, String)], name: &str| {
        let found = variables.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    template
        .iter()
        .chain(function)
        .map(|(name, _)| name.as_str())
        // It is what makes a template.
        .filter(|name| {
            is_read_at_start(name) && (*name != "ROUSE_TEMPLATE" || value(function, name).is_some())
        })
        .find(|name| value(template, name) != value(function, name))
}

fn is_read_at_start(name: &str) -> bool {
    READ_AT_START
        .iter()
        .any(|entry| match entry.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *entry,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_count_where_the_linker_looks() {
        let package = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = package.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        file("app.js");
        file("node_modules/sharp/libvips.so.42");
        assert!(!has_libraries(package.path()));
        file("lib/libstdc++.so.6");
        assert!(has_libraries(package.path()));
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn variables_that_the_interpreter_has_read_must_be_the_same() {
        let template = variables(&[
            ("LANG", "C.UTF-8"),
            ("PATH", "/bin"),
            ("ROUSE_TEMPLATE", "1"),
        ]);
        let same = variables(&[("LANG", "C.UTF-8"), ("PATH", "/opt/bin"), ("KEY", "value")]);
        assert_eq!(differing(&template, &same), None);
        for (name, value) in [
            ("LANG", "de_DE.UTF-8"),
            ("PYTHONHASHSEED", "0"),
            ("LD_PRELOAD", "/var/task/x.so"),
            ("NODE_OPTIONS", "--inspect"),
            ("MALLOC_ARENA_MAX", "1"),
            ("ROUSE_TEMPLATE", "2"),
        ] {
            let mut function = variables(&[("LANG", "C.UTF-8")]);
            function.retain(|(known, _)| known != name);
            function.push((name.into(), value.into()));
            assert_eq!(differing(&template, &function), Some(name));
        }
        assert_eq!(differing(&template, &variables(&[])), Some("LANG"));
    }
}
