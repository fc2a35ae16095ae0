//! Runs Java servers: with the machine's Java and jars from Maven, or in a container that only provides Java.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache;

/// A set of jars that Maven can download, and an image that contains the same jars.
pub struct JavaServer {
    /// The name of the cache folder; must change with every version.
    pub name: &'static str,
    /// Maven coordinates, `group:artifact:version`.
    pub artefacts: &'static [&'static str],
    /// A Docker image with the same jars.
    pub image: &'static str,
    /// Their location in the image, as a Java class path.
    pub image_classpath: &'static str,
}

/// How the main classes of a [`JavaServer`] run on this machine.
#[derive(Clone, Debug)]
pub enum Launcher {
    /// `java` from the PATH with the jars in this folder.
    Java {
        /// The folder of the jars.
        jars: PathBuf,
        /// Their class archives.
        classes: Classes,
    },
    /// `java` in a container of this image, on the host network.
    Docker {
        /// The image.
        image: &'static str,
        /// The location of the jars in the image.
        classpath: &'static str,
    },
}

/// Archives of loaded classes, one per main class. A JVM that maps one needs 60 % of the CPU time to start.
#[derive(Clone, Debug)]
pub enum Classes {
    /// No archives: every JVM loads its classes itself.
    Loaded,
    /// The archives in this folder are mapped if they fit the JVM.
    Mapped(PathBuf),
    /// Archives are written to this folder when the JVM ends.
    Recorded(PathBuf),
}

impl Classes {
    fn option(&self, main: &str) -> Option<String> {
        let archive = |folder: &Path| folder.join(format!("{main}.jsa"));
        match self {
            Self::Loaded => None,
            Self::Mapped(folder) => {
                let archive = archive(folder);
                let is_there = archive.is_file();
                is_there.then(|| format!("-XX:SharedArchiveFile={}", archive.display()))
            }
            Self::Recorded(folder) => Some(format!(
                "-XX:ArchiveClassesAtExit={}",
                archive(folder).display()
            )),
        }
    }
}

impl Launcher {
    /// Finds a way to run `server`; the first time on a machine this downloads the jars.
    ///
    /// # Errors
    /// If there is neither Java with Maven (or cached jars) nor a Docker engine; the message says what to install.
    pub fn find(server: &JavaServer) -> Result<Self> {
        let java = works(Command::new("java").arg("-version"));
        let fetched = cache::folder()?.join(server.name).is_dir();
        if java && (fetched || works(Command::new("mvn").arg("--version"))) {
            let jars = cache::once(server.name, |folder| fetch(server, folder))?;
            let classes = cache::folder()?.join(archives_of(server));
            let classes = match classes.is_dir() {
                true => Classes::Mapped(classes),
                false => Classes::Loaded,
            };
            return Ok(Self::Java { jars, classes });
        }
        if works(Command::new("docker").arg("info")) {
            return Ok(Self::Docker {
                image: server.image,
                classpath: server.image_classpath,
            });
        }
        bail!(
            "install Java and Maven, or start a Docker engine ({})",
            server.image
        )
    }

    /// Creates the class archives of `server`, once per machine: `record` runs its main classes until a graceful end. Does
    /// nothing for containers.
    ///
    /// # Errors
    /// The error of `record`, or if the cache cannot be written.
    pub fn share_classes(
        server: &JavaServer,
        record: impl FnOnce(Self) -> Result<()>,
    ) -> Result<()> {
        let Self::Java { jars, .. } = Self::find(server)? else {
            return Ok(());
        };
        let recorded = cache::once(&archives_of(server), |folder| {
            let classes = Classes::Recorded(folder.to_owned());
            record(Self::Java { jars, classes })
        });
        recorded.map(drop)
    }

    /// A command that runs `main` with the JVM options `options`; `folder` must contain every file that the program uses.
    #[must_use]
    pub fn command(&self, folder: &Path, options: &[&str], main: &str) -> Command {
        match self {
            Self::Java { jars, classes } => {
                let mut command = Command::new("java");
                command
                    .args(options)
                    .args(classes.option(main))
                    .arg("-cp")
                    .arg(jars.join("*"))
                    .arg(main);
                command
            }
            Self::Docker { image, classpath } => {
                let mut command = Command::new("docker");
                let user = format!("{}", rustix::process::getuid().as_raw());
                command.args([
                    "run",
                    "--rm",
                    "--init",
                    "--network",
                    "host",
                    "--user",
                    &user,
                    "-v",
                ]);
                command.arg(format!("{0}:{0}", folder.display()));
                command.args([
                    "--name",
                    &container_name(folder),
                    "--entrypoint",
                    "java",
                    image,
                ]);
                command.args(options).args(["-cp", classpath]).arg(main);
                command
            }
        }
    }

    /// Removes the container that a killed `docker run` leaves behind; does nothing without a container.
    pub fn clean_up(&self, folder: &Path) {
        if matches!(self, Self::Docker { .. }) {
            let _ = works(Command::new("docker").args(["rm", "--force", &container_name(folder)]));
        }
    }

    /// How the servers run, for the summary table of `cargo xtask test`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Java { .. } => "Java with jars from Maven".to_owned(),
            Self::Docker { image, .. } => format!("Docker image {image}"),
        }
    }
}

/// Runs a command to its end and returns its output.
///
/// # Errors
/// If it cannot be started or does not exit with 0; the message contains its output.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} failed with {}:\n{printed}{errors}",
            output.status
        );
    }
    Ok(printed)
}

/// Whether a program exists and exits with 0.
pub fn works(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn archives_of(server: &JavaServer) -> String {
    format!("{}-classes", server.name)
}

fn container_name(folder: &Path) -> String {
    let last = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    format!("sluicegate-test{}", last.unwrap_or_default())
}

fn fetch(server: &JavaServer, folder: &Path) -> Result<()> {
    let mut dependencies = String::new();
    for artefact in server.artefacts {
        let [group, name, version] = artefact.split(':').collect::<Vec<_>>()[..] else {
            bail!("{artefact} is not group:artifact:version");
        };
        dependencies.push_str(&format!(
            "<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>\n"
        ));
    }
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\n\
         <groupId>dev.sluicegate</groupId><artifactId>{}</artifactId><version>1</version>\n\
         <dependencies>\n{dependencies}</dependencies></project>\n",
        server.name
    );
    std::fs::write(folder.join("pom.xml"), pom)?;
    let mut maven = Command::new("mvn");
    maven
        .current_dir(folder)
        .args(["--quiet", "--batch-mode", "dependency:copy-dependencies"]);
    maven.arg(format!("-DoutputDirectory={}", folder.display()));
    run(&mut maven)
        .with_context(|| format!("cannot fetch {} with Maven", server.name))
        .map(drop)
}

/// Copies a folder recursively into another one, which is created if it does not exist.
///
/// # Errors
/// If a file cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
