//! The engine counts milliseconds since its start; reports show wall-clock time.

/// Converts the flow's clock to wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Unix time in milliseconds at the flow's time 0.
    pub epoch_ms: i64,
}

impl WallClock {
    /// A time of the flow's clock as Unix milliseconds.
    pub fn at(self, flow_ms: u64) -> i64 {
        self.epoch_ms + flow_ms as i64
    }
}
