//! What is measured: the workloads of consuming, and those of relaying to another topic.

/// How often each key occurs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spread {
    /// Every key equally often.
    Even,
    /// The n-th key has 1/n of the first one's records.
    Zipf,
    /// One key has all records.
    Hot,
}

impl Spread {
    /// The name that the bare loop's `load` takes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Even => "even",
            Self::Zipf => "zipf",
            Self::Hot => "hot",
        }
    }
}

/// The topic that a workload reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input {
    pub(crate) topic: &'static str,
    pub(crate) records: u64,
    pub(crate) value_bytes: usize,
    pub(crate) spread: Spread,
    /// Values of the header `region`; 0 for no header.
    pub(crate) regions: u64,
}

/// What is produced for the records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relay {
    /// Copies of each record.
    pub(crate) copies: u64,
    /// Percentage of each partition's records without a copy: those whose offset modulo 100 is below it.
    pub(crate) drop_percent: u64,
}

impl Relay {
    /// Copies of the records of partitions with these end offsets.
    pub(crate) fn expected(self, ends: &[u64]) -> u64 {
        let dropped = |end: u64| end / 100 * self.drop_percent + (end % 100).min(self.drop_percent);
        ends.iter().map(|&end| end - dropped(end)).sum::<u64>() * self.copies
    }
}

/// A handler of the service.
pub(crate) struct HandlerSpec {
    pub(crate) name: String,
    /// Its plugin: the name of the library.
    pub(crate) plugin: &'static str,
    /// The rest of its route.
    when: String,
    /// Its config without the target topic, if it relays.
    config: Option<String>,
}

impl HandlerSpec {
    fn noop(name: impl Into<String>, when: String) -> Self {
        Self {
            name: name.into(),
            plugin: "noop",
            when,
            config: None,
        }
    }

    fn relaying(relay: Relay) -> Self {
        let Relay {
            copies,
            drop_percent,
        } = relay;
        let (plugin, config) = match (copies, drop_percent) {
            (1, 0) => ("relay", String::new()),
            _ => (
                "fan",
                format!(", copies: {copies}, drop_percent: {drop_percent}"),
            ),
        };
        Self {
            name: plugin.into(),
            plugin,
            when: String::new(),
            config: Some(config),
        }
    }

    /// The package that builds its plugin.
    fn package(&self) -> &'static str {
        match self.plugin {
            "relay" => "sluicegate-handler-relay",
            own => own,
        }
    }

    /// The spec below its name.
    pub(crate) fn text(&self, topic: &str, output: Option<&str>) -> String {
        let Self { plugin, when, .. } = self;
        let mut text = format!(
            "plugin: {plugin}\nversion: \"*\"\nroute: {{ topics: [{topic}]{when} }}\norder: key\nworkers: 1\n"
        );
        if let (Some(config), Some(output)) = (&self.config, output) {
            text.push_str(&format!("config: {{ topic: {output}{config} }}\n"));
        }
        text
    }
}

/// What the contenders do with the records of a topic.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) input: Input,
    /// The service's handlers.
    pub(crate) handlers: Vec<HandlerSpec>,
    /// How many of them handle each record.
    pub(crate) acks: u64,
    /// What is produced; `None` where the records are only consumed.
    pub(crate) relay: Option<Relay>,
}

/// Workloads that are measured together and have a page of their own.
pub(crate) struct Suite {
    /// The command that measures them.
    pub(crate) command: &'static str,
    /// The heading of their page, and its path in the workspace.
    pub(crate) title: &'static str,
    pub(crate) page: &'static str,
    /// Name of the bare loop in the table.
    pub(crate) bare: &'static str,
    /// Minimum ratio of records per second to the bare loop, in the first workload.
    pub(crate) floor: Option<f64>,
    pub(crate) workloads: Vec<Workload>,
    /// What the page says about the contenders and workloads.
    pub(crate) description: &'static str,
}

const SMALL_VALUE: usize = 100;

impl Suite {
    /// Consuming without output.
    pub(crate) fn consuming(records: u64) -> Self {
        let input = Input {
            topic: "bench",
            records,
            value_bytes: SMALL_VALUE,
            spread: Spread::Even,
            regions: 0,
        };
        let with_headers = Input {
            topic: "bench-headers",
            regions: 8,
            ..input
        };
        let regions = |range: std::ops::Range<u64>| {
            let values: Vec<String> = range.map(|region| format!("r{region}")).collect();
            format!(", when: {{ header: region, in: [{}] }}", values.join(", "))
        };
        let workload = |name, input, handlers, acks| Workload {
            name,
            input,
            handlers,
            acks,
            relay: None,
        };
        let everything = |name: String| HandlerSpec::noop(name, String::new());
        let halves = vec![
            HandlerSpec::noop("east", regions(0..4)),
            HandlerSpec::noop("west", regions(4..8)),
        ];
        let five = (1..=5).map(|place| everything(format!("noop-{place}")));
        Self {
            command: "cargo xtask bench",
            title: "Benchmarks",
            page: "docs/benchmarks.md",
            bare: "bare librdkafka batch loop (C)",
            floor: Some(0.6),
            workloads: vec![
                workload("no-op", input, vec![everything("noop".into())], 1),
                workload("header-routed", with_headers, halves, 1),
                workload("fan-out to 5", input, five.collect(), 5),
            ],
            description: CONSUMING,
        }
    }

    /// Relaying to another topic.
    pub(crate) fn relay(records: u64) -> Self {
        let even = Input {
            topic: "relay-even",
            records,
            value_bytes: SMALL_VALUE,
            spread: Spread::Even,
            regions: 0,
        };
        let large = Input {
            topic: "relay-large",
            value_bytes: 1024,
            ..even
        };
        let skewed = |spread, topic| Input {
            topic,
            spread,
            ..even
        };
        let zipf = skewed(Spread::Zipf, "relay-zipf");
        let hot = skewed(Spread::Hot, "relay-hot");
        let workload = |name, input, copies, drop_percent| {
            let relay = Relay {
                copies,
                drop_percent,
            };
            Workload {
                name,
                input,
                handlers: vec![HandlerSpec::relaying(relay)],
                acks: 1,
                relay: Some(relay),
            }
        };
        Self {
            command: "cargo xtask bench --relay",
            title: "Benchmarks of relaying",
            page: "docs/benchmarks-relay.md",
            bare: "bare librdkafka relay (C)",
            floor: Some(0.35),
            workloads: vec![
                workload("uniform keys", even, 1, 0),
                workload("Zipf keys", zipf, 1, 0),
                workload("one hot key", hot, 1, 0),
                workload("fan-out of 3", even, 3, 0),
                workload("1 KiB values", large, 1, 0),
                workload("drop 90 %", even, 1, 90),
            ],
            description: RELAYING,
        }
    }

    /// The topics to fill: each once, though several workloads read it.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        let mut inputs: Vec<Input> = Vec::new();
        let all = self.workloads.iter();
        for input in all.map(|one| one.input) {
            if !inputs.iter().any(|one| one.topic == input.topic) {
                inputs.push(input);
            }
        }
        inputs
    }

    /// The packages of the handlers' plugins.
    pub(crate) fn packages(&self) -> Vec<&'static str> {
        let handlers = self.workloads.iter().flat_map(|one| &one.handlers);
        let mut packages: Vec<_> = handlers.map(HandlerSpec::package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    }
}

const CONSUMING: &str = "Every key is equally frequent. All contenders link the same librdkafka, use jemalloc for it too, and fetch with the same \
     keys. The bare loop takes batches of 1,024 from one application queue and drops them. The service routes, keeps key \
     order, calls native no-op handlers in pools of one worker each, and commits. *no-op*: one handler, routed by topic, \
     records without headers. *header-routed*: records with a header of 8 values, two handlers of 4 values each. \
     *fan-out to 5*: five handlers, each of which handles every record.";

const RELAYING: &str = "Each contender consumes a topic and produces to another with an idempotent producer and \
     `acks=all`; a run ends when the last record is acknowledged, and is valid only if the output topic then has exactly \
     the expected number of records. Rates count input records. All linger for 5 ms, compress nothing, and have the same \
     limits on fetches, batches and buffers, as far as the clients have them. The bare loop takes batches of 1,024 \
     from one application queue, copies key and value, and commits nothing; neither do the relays in Go and Java, which \
     do the same with the batches of their clients. Their figures include the start of the runtime's compiler, not that of the \
     process. The service routes, keeps key order, calls a native handler in a pool of one worker, keeps headers \
     and timestamps too, and commits. *Zipf \
     keys*: the n-th key has 1/n of the first one's records. *one hot key*: every record has the same key. *fan-out of 3*: \
     three copies of each record. *drop 90 %*: copies of 10 of each 100 records.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_copies_are_those_of_the_kept_offsets() {
        let relay = Relay {
            copies: 3,
            drop_percent: 90,
        };
        for ends in [[0, 89], [90, 91], [250, 1_099]] {
            let offsets = ends.iter().flat_map(|&end| 0..end);
            let kept = offsets.filter(|offset| offset % 100 >= 90).count() as u64;
            assert_eq!(relay.expected(&ends), kept * 3, "{ends:?}");
        }
    }
}
