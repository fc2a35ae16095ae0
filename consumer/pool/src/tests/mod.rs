//! Pools against scripted plugins. No test relies on sleeps; each waits for a condition with a deadline.

mod ending;
mod health;
mod ownership;
pub(crate) mod pool;
mod recall;
mod reconfigure;
mod sharing;
mod watchdog;
