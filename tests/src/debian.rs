//! Debian's packages, unpacked into the cache instead of installed, so that no root rights are needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::launcher::run;

/// Downloads packages and unpacks them; returns the folder, below `folder`, that corresponds to `/`.
///
/// # Errors
/// If a package cannot be downloaded or unpacked.
pub fn unpack(packages: &[impl AsRef<str>], folder: &Path) -> Result<PathBuf> {
    let names = packages.iter().map(AsRef::as_ref);
    run(Command::new("apt-get")
        .arg("download")
        .args(names)
        .current_dir(folder))?;
    let root = folder.join("package");
    let mut unpacked = 0;
    for entry in std::fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|it| it == "deb") {
            run(Command::new("dpkg")
                .arg("--extract")
                .arg(&package)
                .arg(&root))?;
            std::fs::remove_file(&package)?;
            unpacked += 1;
        }
    }
    ensure!(unpacked > 0, "apt-get downloaded no package");
    Ok(root)
}

/// The packages that an installation of `package` would add to this machine or update.
///
/// # Errors
/// If the package is unknown, or cannot be installed.
pub fn to_install(package: &str) -> Result<Vec<String>> {
    let planned = run(Command::new("apt-get").args([
        "install",
        "--simulate",
        "--no-install-recommends",
        package,
    ]))?;
    Ok(installations(&planned))
}

/// The packages that a simulated installation would unpack.
fn installations(planned: &str) -> Vec<String> {
    let lines = planned
        .lines()
        .filter_map(|line| line.strip_prefix("Inst "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// The packages that `package` directly depends on.
///
/// # Errors
/// If the package is unknown.
pub fn dependencies(package: &str) -> Result<Vec<String>> {
    let printed = run(Command::new("apt-cache").args(["depends", package]))
        .with_context(|| format!("the package {package} is unknown"))?;
    let lines = printed.lines().map(str::trim);
    let names = lines.filter_map(|line| line.strip_prefix("Depends: "));
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_installation_names_its_packages() {
        let planned = "Reading state information...\nThe following NEW packages will be installed:\n  a b\n\
                       Inst a [1.0] (1.1 Debian:12 [amd64]) []\nInst b (2 Debian:12 [all])\nConf a (1.1 Debian:12 [amd64])\n";
        assert_eq!(installations(planned), ["a", "b"]);
    }
}
