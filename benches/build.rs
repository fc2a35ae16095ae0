//! Compiles the bare loop against the librdkafka that the service links.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=src/bare_loop.c");
    let root = std::env::var_os("DEP_RDKAFKA_ROOT")
        .map(PathBuf::from)
        .expect("rdkafka-sys builds librdkafka and reports its location");
    cc::Build::new()
        .file("src/bare_loop.c")
        .include(root.join("src"))
        .std("gnu11")
        .opt_level(2)
        .warnings(false)
        .compile("bare_loop");
}
