//! Relays written with other clients, from the sources under `benches/peers`. They are built on demand; what a machine has no
//! compiler for is left out by name.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use e2e::artefacts;
use e2e::kafka;
use e2e::launcher::{run, works};

/// A built relay. It takes the bare loop's arguments without the mode and the keys, and reports as it does.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Peer {
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }
}

const FRANZ_GO: &str = "franz-go relay (Go)";
const JAVA: &str = "Apache Kafka client relay (Java)";

/// The relays that could be built into `folder`, and why each of the others could not.
pub(crate) fn build(folder: &Path) -> (Vec<Peer>, Vec<String>) {
    let (mut built, mut skipped) = (Vec::new(), Vec::new());
    for (name, peer) in [(FRANZ_GO, franz_go(folder)), (JAVA, java(folder))] {
        match peer {
            Ok(peer) => built.push(peer),
            Err(why) => {
                eprintln!("skipped: {name}: {why:#}");
                // A build's output has many lines; the page gets the reason alone.
                skipped.push(format!("{name}: {why}"));
            }
        }
    }
    (built, skipped)
}

fn sources(name: &str) -> PathBuf {
    artefacts::workspace().join("benches/peers").join(name)
}

fn franz_go(folder: &Path) -> Result<Peer> {
    needs(&mut Command::new("go"), "version", "go is not installed")?;
    let program = folder.join("franz-go-relay");
    let mut command = Command::new("go");
    command
        .current_dir(sources("franz-go"))
        .args(["build", "-o"])
        .arg(&program)
        .arg(".");
    run(&mut command).context("go build failed")?;
    Ok(Peer {
        name: FRANZ_GO,
        program,
        arguments: Vec::new(),
    })
}

fn java(folder: &Path) -> Result<Peer> {
    needs(
        &mut Command::new("javac"),
        "-version",
        "javac is not installed",
    )?;
    let jars = kafka::jars().context("no Kafka client for Java")?;
    let classes = folder.join("java-relay");
    let jars = jars.join("*").display().to_string();
    let mut command = Command::new("javac");
    command
        .args(["-cp", &jars, "-d"])
        .arg(&classes)
        .arg(sources("java").join("Relay.java"));
    run(&mut command).context("javac failed")?;
    let arguments = [
        "-cp",
        &format!("{}:{jars}", classes.display()),
        "-Xmx1g",
        "Relay",
    ];
    Ok(Peer {
        name: JAVA,
        program: "java".into(),
        arguments: arguments.map(str::to_owned).to_vec(),
    })
}

fn needs(program: &mut Command, argument: &str, otherwise: &'static str) -> Result<()> {
    anyhow::ensure!(works(program.arg(argument)), otherwise);
    Ok(())
}
