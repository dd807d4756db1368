//! The documents speak of files that exist.

use std::path::{Path, PathBuf};

/// The README and everything in `docs/`.
fn documents(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("README.md")];
    for entry in std::fs::read_dir(root.join("docs")).expect("the documents are in `docs`") {
        let name = entry.expect("`docs` can be listed").file_name();
        if Path::new(&name).extension().is_some_and(|e| e == "md") {
            found.push(Path::new("docs").join(name));
        }
    }
    assert!(found.len() > 8, "documents are missing: {found:?}");
    found
}

#[test]
fn every_file_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for document in documents(&root) {
        let text = std::fs::read_to_string(root.join(&document))
            .unwrap_or_else(|error| panic!("{}: {error}", document.display()));
        let (path, document) = (document.clone(), document.display());
        for name in text
            .split('`')
            .filter(|name| name.starts_with("crates/") && !name.contains(char::is_whitespace))
        {
            assert!(root.join(name).exists(), "{document} names {name}");
        }
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .filter(|link| !link.contains("://") && !link.starts_with('#'));
        for link in links {
            let file = link.split('#').next().unwrap_or(link);
            assert!(
                root.join(&path)
                    .parent()
                    .expect("a folder")
                    .join(file)
                    .exists(),
                "{document} links to {link}"
            );
        }
    }
}
