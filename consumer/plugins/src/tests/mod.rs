//! Test doubles for pools and generations: a scripted plugin, a producer and a pump's inbox. No test relies on sleeps; each
//! waits for a condition with a deadline.

mod changes;
mod code;
mod find;
mod held;
mod held_back;
mod lookup;
mod preparing;
pub(crate) mod registry;
mod restarting;
mod unread;
mod watch;
