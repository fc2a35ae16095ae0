//! Control keys: what a store of the control plane holds, and the report that a member writes there.
//!
//! ```text
//!  path of a store ◄── path map ──► control key ──► value: spec, gate, config, rollout, metrics level
//! ```
//!
//! A key and its value mean the same in etcd and in ZooKeeper; a path map says where each stands.

mod key;
mod member;
mod path_map;
pub mod rollout;
mod side;
mod value;

pub use key::{ControlKey, KeyNameError};
pub use member::{
    MAX_REPORT, MemberHandler, MemberRejection, MemberReport, MemberReportError, Omitted, host,
    instance,
};
pub use path_map::{KeyKind, PathError, PathMap, PathMapError, TemplateError};
pub(crate) use path_map::{check_template, etcd_template, zookeeper_template};
pub use rollout::{Rollout, RolloutError};
pub use side::{Pair, Side};
pub use value::{
    MAX_VALUE, check_value, read_level, read_rollout, read_spec_of, read_switch, read_text,
};
