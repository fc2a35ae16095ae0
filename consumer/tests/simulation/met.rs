//! How often the scripts came to the situations that they are for.

macro_rules! met {
    ($($name:ident: $what:literal,)*) => {
        /// Counts of rare situations.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Met {
            $(#[doc = $what] pub $name: u64,)*
        }

        impl Met {
            /// Adds another run's.
            pub fn add(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }

            /// What hardly ever happened: less than once in a hundred runs.
            pub fn hardly(&self, runs: u64) -> Vec<&'static str> {
                let all = [$((self.$name, $what),)*];
                all.into_iter()
                    .filter(|(count, _)| *count * 100 < runs)
                    .map(|(_, what)| what)
                    .collect()
            }
        }
    };
}

met! {
    starts: "records begun, over all attempts",
    recalled: "records that workers had and did not begin, because their partition was given back",
    fetched_past_control: "positions asked for while the client had fetched past a control record that it had not given",
    passed_control: "frontiers that a consumed position moved past control records at the end",
    missing_in_flight: "offsets missing beside records in flight",
    restarts: "restarts where a log begins",
    skipped_failed: "shares that a failed handler had not begun when it was switched off",
    skipped_overdue: "shares that nobody had begun when the time to finish was over",
    abandoned: "shares of calls that were abandoned then",
    recreated: "topics created again that had a commit",
    resets: "offsets that an operator set back, beside the metadata of another one",
    inherited: "assignments that began with finished records of an earlier owner",
    inherited_again: "assignments that began with finished records of an owner that had begun with some too",
    last_refused: "last commits of partitions to be given back that were refused by a rebalancing group",
    accepted_later: "partitions given back whose last commit was accepted after such refusals",
    lost_meanwhile: "partitions lost while they waited for their last commit",
    tokens_first: "assignments whose token had to be committed before a record ran",
}
