//! Style as a test: what a reader of any file here may expect of all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The most columns of a line. (`rustfmt` breaks code, but neither texts nor comments.)
const COLUMNS_MAX: usize = 100;
/// The most lines of a file: beyond it, it is two files.
const LINES_MAX: usize = 700;

/// Which of the workspace's crates a crate may name in its manifest. Imports run downward only:
/// dataflow → queries → sinks → operators; dataflow → sources → operators.
const MAY_IMPORT: [(&str, &[&str]); 7] = [
    ("operators", &[]),
    ("sources/log", &["trueup-operators"]),
    ("sources/kafka", &["trueup-operators", "trueup-log"]),
    ("sources/collector", &["trueup-operators"]),
    ("sources/generator", &["trueup-operators"]),
    ("sinks", &["trueup-operators"]),
    ("queries", &["trueup-operators", "trueup-sinks"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust sources of the repository, by their path in it.
fn sources() -> BTreeMap<PathBuf, String> {
    let mut sources = BTreeMap::new();
    for top in ["dataflow", "operators", "sources", "sinks", "queries", "tests", "benches"] {
        collect(&root().join(top), &mut sources);
    }
    assert!(sources.len() > 100, "found only {} sources", sources.len());
    sources
}

fn collect(dir: &Path, sources: &mut BTreeMap<PathBuf, String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, sources);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
        }
    }
}

#[track_caller]
fn assert_none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

#[test]
fn every_file_begins_with_what_it_is() {
    let without = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    let faults: Vec<String> = without.map(|(path, _)| path.display().to_string()).collect();
    assert_none(&faults, "these files do not begin with a `//!` header");
}

#[test]
fn nothing_is_left_for_later() {
    // In parts, so that this file does not name them.
    let words = [["to", "do!("].concat(), ["db", "g!("].concat(), ["FIX", "ME"].concat()];
    let words = words.into_iter().chain([["TO", "DO"].concat(), ["unimpl", "emented!("].concat()]);
    let words: Vec<String> = words.collect();
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                faults.push(format!("{}:{number}: `{word}`", path.display()));
            }
        }
    }
    assert_none(&faults, "these lines leave something for later");
}

#[test]
fn lines_and_files_are_short() {
    let (mut lines, mut files) = (Vec::new(), Vec::new());
    for (path, text) in sources() {
        let count = text.lines().count();
        if count > LINES_MAX {
            files.push(format!("{}: {count} lines", path.display()));
        }
        let mut in_drawing = false;
        for (number, line) in (1..).zip(text.lines()) {
            let columns = line.chars().count();
            // Neither a drawing nor a table's row can be broken.
            in_drawing ^= line.starts_with("//! ```");
            let in_table = line.starts_with("//! |");
            if columns > COLUMNS_MAX && !in_drawing && !in_table {
                lines.push(format!("{}:{number}: {columns} columns", path.display()));
            }
        }
    }
    assert_none(&lines, &format!("these lines have more than {COLUMNS_MAX} columns"));
    assert_none(&files, &format!("these files have more than {LINES_MAX} lines"));
}

#[test]
fn imports_run_downward() {
    for (folder, allowed) in MAY_IMPORT {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        // A crate's tests may use more: the generator, for one.
        let Some(dependencies) = manifest["dependencies"].as_table() else { continue };
        let named = dependencies.keys().map(String::as_str).filter(|n| n.starts_with("trueup"));
        let upward: Vec<&str> = named.filter(|name| !allowed.contains(name)).collect();
        assert!(upward.is_empty(), "{folder} imports {upward:?}; it may import {allowed:?}");
    }
}
