//! `cargo xtask services up`: Kafka, ZooKeeper, etcd and PostgreSQL for development, until Ctrl-C.

use std::process::ExitCode;

use anyhow::Result;
use e2e::etcd::{self, Etcd};
use e2e::kafka::{self, Kafka, KafkaOptions};
use e2e::postgres::{self, Postgres};
use e2e::zookeeper::{self, ZooKeeper};

/// What to do with the servers.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Start Kafka, ZooKeeper, etcd and PostgreSQL on free ports, print their endpoints, and keep them until Ctrl-C
    Up {
        /// Kafka nodes: 1 or 3
        #[arg(long, default_value_t = 1)]
        nodes: u16,
    },
    /// Download or build the servers without starting them
    Fetch,
}

pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Up { nodes } => up(*nodes),
        Command::Fetch => {
            let all = [
                kafka::provision_own,
                zookeeper::provision,
                etcd::provision,
                postgres::provision,
            ];
            for provision in all {
                println!("{}", provision()?);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn up(nodes: u16) -> Result<ExitCode> {
    let kafka = Kafka::start(&KafkaOptions {
        nodes,
        ..KafkaOptions::default()
    })?;
    println!("export {}={}", kafka::ENDPOINT, kafka.bootstrap());
    // Each of them may be unavailable: Kafka alone is still useful.
    let zookeeper = ZooKeeper::start()
        .inspect_err(|error| eprintln!("no ZooKeeper: {error:#}"))
        .ok();
    if let Some(zookeeper) = &zookeeper {
        println!("export {}={}", zookeeper::ENDPOINT, zookeeper.connect());
    }
    let etcd = Etcd::start()
        .inspect_err(|error| eprintln!("no etcd: {error:#}"))
        .ok();
    if let Some(etcd) = &etcd {
        println!("export {}={}", etcd::ENDPOINT, etcd.endpoint());
    }
    let postgres = Postgres::start()
        .inspect_err(|error| eprintln!("no PostgreSQL: {error:#}"))
        .ok();
    if let Some(postgres) = &postgres {
        println!("export {}={}", postgres::URL, postgres.url());
    }
    eprintln!("Running. Press Ctrl-C to stop and remove them.");
    loop {
        std::thread::park();
    }
}
