//! A scripted kind of plugin, a producer and a pump's inbox, for tests of pools and generations: nothing here sleeps
//! and hopes, everything waits for a condition with a deadline.

mod doubles;
mod ending;
mod overrun;
mod ownership;
mod pool;
mod recall;
mod reconfigure;
mod registry;
mod restarting;
mod sharing;
mod unread;

pub(super) use doubles::{Deed, Home, Producer, Script, ScriptedPlugin, batch, until};
