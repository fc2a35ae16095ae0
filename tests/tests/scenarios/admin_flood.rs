//! Situation: hundreds of half-open connections to the admin address of a service under load, and then no free file descriptor
//! in its process.
//! Property: `/livez` and `/readyz` are answered throughout, a running handler is not affected, and a change of the plugins
//! folder that cannot be read removes no plugin.
//! Alone: it uses up the connections of the machine.
//! Needs: Kafka
//! Command: `cargo xtask test --scenario admin_flood`

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

const RECORDS: u64 = 300;
const HALF_OPEN: usize = 500;
const DEADLINE: Duration = Duration::from_secs(60);
/// Time limit of a probe on a busy machine; far below the lifetime of a half-open connection.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

fn probe(service: &Service) {
    for path in ["/livez", "/readyz"] {
        let asked = Instant::now();
        let (status, body) = service.get(path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(status, 200, "{path}: {body}");
        assert!(
            asked.elapsed() < PROBE_DEADLINE,
            "{path} took {:?}",
            asked.elapsed()
        );
    }
}

/// Connections that have sent a part of a request.
fn half_open(service: &Service, count: usize) -> Vec<TcpStream> {
    let address = service.admin().trim_start_matches("http://").to_owned();
    let open = |_| {
        let mut stream = TcpStream::connect(&address).expect("the listener accepts connections");
        // May already be closed, in favour of a later one.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n");
        stream
    };
    (0..count).map(open).collect()
}

/// From now on the process can open no additional file.
fn take_all_descriptors(pid: u32) {
    let highest = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process's files")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .expect("it has files");
    limit_descriptors(pid, Some(highest + 1));
}

/// Sets the file descriptor limit of the process; `None` is this process's limit.
fn limit_descriptors(pid: u32, most: Option<u64>) {
    let own = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: most.or(own.current),
        maximum: own.maximum,
    };
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    prlimit(pid, Resource::Nofile, limit).expect("a limit of files");
}

#[test]
fn probes_and_records_survive_a_flood_and_a_full_file_table() {
    let bootstrap = Kafka::shared().bootstrap();
    let client = Client::new(bootstrap);
    let (topic, copy) = (unique("flooded"), unique("copy"));
    client.create_topic(&topic, 2);
    client.create_topic(&copy, 2);
    let workdir = Workdir::new(bootstrap, &topic, "");
    workdir.plugins(&["relay"]);
    let spec = format!(
        "plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nconfig: {{ topic: {copy} }}\n"
    );
    workdir.spec("copy", &spec);
    let mut service = Service::ready(&workdir, &[]);
    let mut sent = 0;
    let mut records_flow = |service: &Service| {
        client.produce(
            &topic,
            (0..RECORDS).map(|n| Outgoing::new(&n.to_string(), "v")),
        );
        sent += RECORDS;
        service.wait_outcomes("copy", "ack", sent, DEADLINE);
    };
    records_flow(&service);

    let mut flood = half_open(&service, HALF_OPEN);
    for _ in 0..10 {
        probe(&service);
    }
    records_flow(&service);
    probe(&service);

    take_all_descriptors(service.process().pid());
    // Uses up the remaining descriptors.
    flood.extend(half_open(&service, HALF_OPEN));
    for _ in 0..10 {
        probe(&service);
    }
    // A new plugin triggers a scan of the folder, which needs a descriptor and finds none.
    workdir.plugins(&["flight-delays"]);
    workdir.spec("second", &spec);
    records_flow(&service);
    probe(&service);
    assert!(service.process().exited().is_none());

    limit_descriptors(service.process().pid(), None);
    drop(flood);
    wait_for(
        "the handler added during the flood",
        DEADLINE,
        || match service.api("handlers/second")?["state"].as_str() {
            Some("ACTIVE") => Ok(()),
            state => Err(format!("{state:?}")),
        },
    );
    records_flow(&service);
    assert!(service.stop(DEADLINE).success());
}
