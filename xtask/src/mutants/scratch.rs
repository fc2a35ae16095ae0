//! A copy of the tree in which mutants are applied, with its own target folder that is kept between runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

/// The copy.
pub(super) struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    /// Brings the copy under `target/mutants` up to date with the tree at `root`.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let folder = root
            .join(target.unwrap_or_else(|| "target".into()))
            .join("mutants");
        let scratch = Self { folder };
        scratch.copy(root)?;
        Ok(scratch)
    }

    /// The copied tree.
    pub(super) fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// Cargo's target folder for the copy.
    pub(super) fn target(&self) -> PathBuf {
        self.folder.join("target")
    }

    /// Makes the copy equal to the tree at `root`; equal files are not touched, so that little is rebuilt.
    fn copy(&self, root: &Path) -> Result<()> {
        let wanted = files_of(root)?;
        for file in &wanted {
            let (from, to) = (root.join(file), self.tree().join(file));
            let bytes =
                fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            let parent = to.parent().context("a file stands in a folder")?;
            fs::create_dir_all(parent)?;
            // Written rather than copied: cargo compares modification times.
            fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        remove_others(&self.tree(), &self.tree(), &wanted)
    }

    /// Applies a patch, whole or not at all; `Err` inside gives git's reason.
    pub(super) fn apply(&self, patch: &Path) -> Result<Result<(), String>> {
        self.git_apply(patch, &[])
    }

    /// Reverts an applied patch.
    pub(super) fn revert(&self, patch: &Path) -> Result<()> {
        let reverted = self.git_apply(patch, &["--reverse"])?;
        reverted.map_err(|reason| anyhow!("cannot revert {}: {reason}", patch.display()))
    }

    fn git_apply(&self, patch: &Path, options: &[&str]) -> Result<Result<(), String>> {
        let output = Command::new("git")
            .arg("apply")
            .args(options)
            .arg(patch)
            .current_dir(self.tree())
            // The copy is inside a repository, and paths are not relative to that repository's root.
            .env("GIT_CEILING_DIRECTORIES", &self.folder)
            .output()
            .context("cannot start git")?;
        Ok(match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        })
    }
}

/// The files of the working tree that git tracks or would add.
fn files_of(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .context("cannot start git")?;
    ensure!(
        output.status.success(),
        "git ls-files failed: run this in a clone of the repository"
    );
    Ok(String::from_utf8(output.stdout)
        .context("file names are UTF-8")?
        .split_terminator('\0')
        .map(PathBuf::from)
        .filter(|file| root.join(file).is_file())
        .collect())
}

fn remove_others(tree: &Path, folder: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, wanted)?;
        } else if !wanted.contains(path.strip_prefix(tree)?) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
