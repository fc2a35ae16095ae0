//! The live handlers: catalogue of plugins, generations, worker pools, and the plan that pumps run by.

pub mod plan;

pub use plan::{HandlerPlan, Plan};
