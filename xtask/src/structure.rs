//! `cargo xtask structure`: the size, documentation and long functions of every crate, in one table.
//!
//! Counts production code only: `src/**/*.rs` without files of tests, each up to its test module. A revision is counted by the
//! same rules as the working tree, so two tables can be compared. Median and 95th percentile are lines of a file; `doc %` is the
//! share of doc comments in the lines; `String errors` are the types `Result<_, String>`.

mod count;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::artefacts::workspace;
use e2e::launcher;

/// What to count.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The commit to count instead of the working tree
    revision: Option<String>,
}

/// A file's path relative to the workspace, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

/// A crate: its name, and its folder with a trailing `/` (empty for the root).
#[derive(Debug, PartialEq, Eq)]
struct Package<'a> {
    name: &'a str,
    folder: &'a str,
}

/// The counts of a crate, or of all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    name: String,
    /// Production lines of each file.
    lines: Vec<usize>,
    long_functions: usize,
    doc_lines: usize,
    string_errors: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sources = match &arguments.revision {
        Some(revision) => committed(revision)?,
        None => {
            let files = git(&[
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])?;
            read(&workspace(), &files)?
        }
    };
    let packages = packages(&sources);
    ensure!(!packages.is_empty(), "no Cargo.toml has a [package]");
    let rows: Result<Vec<Row>> = packages
        .iter()
        .map(|package| row(package, &sources))
        .collect();
    print!("{}", table(&rows?));
    Ok(ExitCode::SUCCESS)
}

fn git(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.current_dir(workspace()).args(arguments);
    launcher::run(&mut command)
}

/// The sources of a commit, unpacked into a temporary folder.
fn committed(revision: &str) -> Result<Vec<Source>> {
    let files = git(&["ls-tree", "-r", "-z", "--name-only", revision])?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let mut git = Command::new("git")
        .current_dir(workspace())
        .args(["archive", "--format=tar", revision])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start git")?;
    let archive = git.stdout.take().context("git archive has no output")?;
    let unpacked = Command::new("tar")
        .args(["-x", "-f", "-", "-C"])
        .arg(folder.path())
        .stdin(archive)
        .status();
    let archived = git.wait().context("git archive was lost")?;
    let unpacked = unpacked.context("cannot start tar")?;
    ensure!(
        archived.success() && unpacked.success(),
        "cannot unpack {revision}: git archive {archived}, tar {unpacked}"
    );
    read(folder.path(), &files)
}

/// Reads the Rust files and manifests among `files` (separated by NUL); files that are deleted but not committed are skipped.
fn read(root: &Path, files: &str) -> Result<Vec<Source>> {
    let mut paths: Vec<&str> = files
        .split('\0')
        .filter(|path| path.ends_with(".rs") || is_manifest(path))
        .filter(|path| root.join(path).is_file())
        .collect();
    paths.sort_unstable();
    // A file with a merge conflict is listed several times.
    paths.dedup();
    let source = |path: &&str| {
        let text = std::fs::read_to_string(root.join(path));
        Ok(Source {
            path: (*path).to_owned(),
            text: text.with_context(|| format!("cannot read {path}"))?,
        })
    };
    paths.iter().map(source).collect()
}

fn is_manifest(path: &str) -> bool {
    path == "Cargo.toml" || path.ends_with("/Cargo.toml")
}

/// The crates, by folder.
fn packages(sources: &[Source]) -> Vec<Package<'_>> {
    let manifests = sources.iter().filter(|source| is_manifest(&source.path));
    let packages = manifests.filter_map(|manifest| {
        Some(Package {
            name: count::package_name(&manifest.text)?,
            folder: manifest.path.strip_suffix("Cargo.toml")?,
        })
    });
    let mut packages: Vec<Package<'_>> = packages.collect();
    packages.sort_unstable_by_key(|package| package.folder);
    packages
}

/// Counts the production code of a crate.
fn row(package: &Package<'_>, sources: &[Source]) -> Result<Row> {
    let mut row = Row {
        name: package.name.to_owned(),
        ..Row::default()
    };
    let folder = format!("{}src/", package.folder);
    for source in sources {
        let Some(path) = source.path.strip_prefix(&folder) else {
            continue;
        };
        if !path.ends_with(".rs") || count::is_test_file(path) {
            continue;
        }
        let production = count::production(&source.text);
        row.lines.push(production.lines().count());
        row.doc_lines += count::doc_lines(production);
        row.string_errors += count::string_errors(production);
        row.long_functions += count::long_functions(&source.text)
            .with_context(|| format!("cannot parse {}", source.path))?;
    }
    Ok(row)
}

fn total(rows: &[Row]) -> Row {
    Row {
        name: "total".to_owned(),
        lines: rows
            .iter()
            .flat_map(|row| row.lines.iter().copied())
            .collect(),
        long_functions: rows.iter().map(|row| row.long_functions).sum(),
        doc_lines: rows.iter().map(|row| row.doc_lines).sum(),
        string_errors: rows.iter().map(|row| row.string_errors).sum(),
    }
}

/// One line per crate, and the total.
fn table(rows: &[Row]) -> String {
    let total = total(rows);
    let names = rows.iter().map(|row| row.name.len());
    let width = names.max().unwrap_or_default().max(total.name.len());
    let long = format!("fn > {}", count::LONGEST_FUNCTION);
    let mut table = format!(
        "{:width$} {:>7} {:>6} {:>7} {:>5} {long:>8} {:>6} {:>14}\n",
        "crate", "lines", "files", "median", "p95", "doc %", "String errors"
    );
    for row in rows.iter().chain([&total]) {
        let lines: usize = row.lines.iter().sum();
        let percentile = |percent| {
            let lines = count::percentile(&row.lines, percent);
            lines.map_or_else(|| "-".to_owned(), |lines| lines.to_string())
        };
        let share = match lines {
            0 => "-".to_owned(),
            lines => format!("{:.1}", row.doc_lines as f64 * 100.0 / lines as f64),
        };
        table.push_str(&format!(
            "{:width$} {lines:>7} {:>6} {:>7} {:>5} {:>8} {share:>6} {:>14}\n",
            row.name,
            row.lines.len(),
            percentile(50),
            percentile(95),
            row.long_functions,
            row.string_errors
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        let source = |(path, text): &(&str, &str)| Source {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
        };
        files.iter().map(source).collect()
    }

    #[test]
    fn files_belong_to_the_crate_whose_src_they_are_under() {
        let sources = sources(&[
            ("Cargo.toml", "[workspace]\n"),
            ("a/Cargo.toml", "[package]\nname = \"outer\"\n"),
            ("a/b/Cargo.toml", "[package]\nname = \"inner\"\n"),
            ("a/b/src/lib.rs", "//! Inner.\nfn f() {}\n"),
            ("a/build.rs", "fn main() {}\n"),
            (
                "a/src/lib.rs",
                "//! Outer.\n\nfn f() -> Result<(), String> {\n    Ok(())\n}\n",
            ),
            ("a/src/lib_tests.rs", "fn f() {}\n"),
            ("a/tests/all.rs", "fn f() {}\n"),
        ]);
        let packages = packages(&sources);
        let rows: Vec<Row> = packages
            .iter()
            .map(|package| row(package, &sources).expect("it parses"))
            .collect();
        let expected = |name: &str, lines, string_errors| Row {
            name: name.to_owned(),
            lines: vec![lines],
            doc_lines: 1,
            string_errors,
            ..Row::default()
        };
        assert_eq!(rows, [expected("outer", 5, 1), expected("inner", 2, 0)]);
    }

    #[test]
    fn a_file_that_does_not_parse_is_named() {
        let sources = sources(&[
            ("a/Cargo.toml", "[package]\nname = \"a\"\n"),
            ("a/src/lib.rs", "fn f( {\n"),
        ]);
        let refused = row(&packages(&sources)[0], &sources).expect_err("no Rust");
        assert_eq!(refused.to_string(), "cannot parse a/src/lib.rs");
    }

    #[test]
    fn the_total_has_percentiles_of_all_files() {
        let rows = [
            Row {
                name: "short".to_owned(),
                lines: vec![10, 30],
                doc_lines: 10,
                ..Row::default()
            },
            Row {
                name: "a-long-name".to_owned(),
                lines: vec![60],
                long_functions: 2,
                string_errors: 3,
                ..Row::default()
            },
            Row {
                name: "empty".to_owned(),
                ..Row::default()
            },
        ];
        assert_eq!(
            table(&rows).lines().collect::<Vec<_>>(),
            [
                "crate         lines  files  median   p95  fn > 70  doc %  String errors",
                "short            40      2      10    30        0   25.0              0",
                "a-long-name      60      1      60    60        2    0.0              3",
                "empty             0      0       -     -        0      -              0",
                "total           100      3      30    60        2   10.0              3",
            ]
        );
    }
}
