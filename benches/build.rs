//! Compiles the bare loop against the librdkafka that the service links.

use std::path::PathBuf;

const SOURCES: [&str; 4] = ["bare_loop.c", "load.c", "relay.c", "topics.c"];

fn main() {
    let root = std::env::var_os("DEP_RDKAFKA_ROOT")
        .map(PathBuf::from)
        .expect("rdkafka-sys builds librdkafka and reports its location");
    let mut build = cc::Build::new();
    for source in SOURCES {
        build.file(format!("src/{source}"));
        println!("cargo::rerun-if-changed=src/{source}");
    }
    println!("cargo::rerun-if-changed=src/bare_loop.h");
    build
        .include(root.join("src"))
        .std("gnu11")
        .opt_level(2)
        .warnings(false)
        .compile("bare_loop");
}
