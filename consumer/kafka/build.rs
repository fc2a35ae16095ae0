//! Builds the shim that reads a record's header block in place (`src/ffi/headers_shim.c`).
//!
//! It is compiled against the internal headers of the very librdkafka that is linked; where they are not at hand (a
//! dynamically linked librdkafka) the cfg `raw_headers` stays off and the public call is used.

use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(raw_headers)");
    println!("cargo::rerun-if-changed=src/ffi/headers_shim.c");
    // Given by rdkafka-sys: the tree in which it configured and built librdkafka.
    let Some(root) = std::env::var_os("DEP_RDKAFKA_ROOT").map(PathBuf::from) else {
        println!("cargo::warning=no librdkafka sources: record headers go through the public call");
        return;
    };
    let built = cc::Build::new()
        .file("src/ffi/headers_shim.c")
        .include(root.join("src"))
        .include(&root)
        .define("_GNU_SOURCE", None)
        .std("gnu11")
        // The headers are librdkafka's: their warnings are not ours to fix.
        .warnings(false)
        .try_compile("sluicegate_headers_shim");
    match built {
        Ok(()) => println!("cargo::rustc-cfg=raw_headers"),
        Err(error) => println!(
            "cargo::warning=record headers go through the public call, the shim does not build: {error}"
        ),
    }
}
