//! All scenarios, as modules of one program, so that shared code is compiled and linked once.
//!
//! `cargo xtask test --scenario NAME` runs one in its own process.

mod admin_flood;
mod bad_configs;
mod beginnings;
mod bridge;
mod bridge_command;
mod control_keys;
mod coordinators;
mod databases;
mod deleted_topics;
mod demo;
mod emits;
mod failed_handlers;
mod first_record;
mod fleet;
mod flights;
mod kills;
mod log_ends;
mod many_specs;
mod memory;
mod misbehaving;
mod oidc;
mod outages;
mod own_handler;
mod pace;
mod patterns;
mod positions;
mod problems;
mod refused_plugins;
mod relaying;
mod rolling;
mod secrets;
mod secured;
mod servers;
mod showing;
mod static_members;
mod stopping;
mod stores;
mod stores_conform;
mod stores_etcd_faults;
mod stores_secured;
mod stores_zookeeper_faults;
mod thousand_handlers;
mod toggles;
mod toggling;
