//! Test doubles for pools and generations: a scripted plugin, a producer and a pump's inbox. No test relies on sleeps; each
//! waits for a condition with a deadline.

mod doubles;
mod ending;
mod ownership;
mod pool;
mod preparing;
mod recall;
mod reconfigure;
mod registry;
mod restarting;
mod sharing;
mod unread;
mod watchdog;

pub(super) use doubles::{Home, Producer, Script, ScriptedPlugin, Step, batch, until};
