//! Metrics of a call: counters are added up and gauges are kept until the call ends, so that a record costs no lock and no call of the
//! service.

use std::cell::RefCell;

use sluicegate_abi::plugin::Host;

/// Kinds of the ABI.
pub(crate) const COUNTER: u32 = 0;
pub(crate) const GAUGE: u32 = 1;
pub(crate) const HISTOGRAM: u32 = 2;

/// Maximum number of names; a call that uses more hands over what it has.
const MAX_NAMES: usize = 32;

struct Sum {
    name: String,
    kind: u32,
    value: f64,
    changed: bool,
}

/// Counters and gauges of a call. Kept between calls for its memory.
#[derive(Default)]
pub(crate) struct Sums(RefCell<Vec<Sum>>);

impl Sums {
    /// Adds to a counter, or sets a gauge.
    pub(crate) fn record(&self, host: &Host, kind: u32, name: &str, value: f64) {
        if kind == HISTOGRAM {
            host.metric(kind, name, value);
            return;
        }
        let mut sums = self.0.borrow_mut();
        if let Some(sum) = sums
            .iter_mut()
            .find(|sum| sum.name == name && sum.kind == kind)
        {
            sum.value = match kind {
                COUNTER => sum.value + value,
                _ => value,
            };
            sum.changed = true;
            return;
        }
        if sums.len() == MAX_NAMES {
            hand_over(&mut sums, host);
            sums.clear();
        }
        sums.push(Sum {
            name: name.to_owned(),
            kind,
            value,
            changed: true,
        });
    }

    /// The call has ended.
    pub(crate) fn hand_over(&self, host: &Host) {
        hand_over(&mut self.0.borrow_mut(), host);
    }
}

fn hand_over(sums: &mut [Sum], host: &Host) {
    for sum in sums.iter_mut().filter(|sum| sum.changed) {
        host.metric(sum.kind, &sum.name, sum.value);
        (sum.value, sum.changed) = (0.0, false);
    }
}
