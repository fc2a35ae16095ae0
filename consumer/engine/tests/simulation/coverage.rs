//! Coverage: how often the scripts reached the situations that they are meant to exercise.

macro_rules! situations {
    ($($name:ident: $what:literal,)*) => {
        /// Counts of rare situations.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $(#[doc = $what] pub $name: u64,)*
        }

        impl Coverage {
            /// Adds the counts of another run.
            pub fn add(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }

            /// Situations that occurred less than once per hundred runs.
            pub fn rare(&self, runs: u64) -> Vec<&'static str> {
                let all = [$((self.$name, $what),)*];
                all.into_iter()
                    .filter(|(count, _)| *count * 100 < runs)
                    .map(|(_, what)| what)
                    .collect()
            }
        }
    };
}

situations! {
    steps: "steps, over all seeds",
    starts: "records started, over all attempts",
    recalled: "records returned by workers unstarted, because their partition was revoked",
    fetched_past_control: "positions queried while the client had fetched past a control record that it had not passed",
    passed_control: "frontiers that a consumed position moved past control records at the end",
    missing_in_flight: "missing offsets while records were in flight",
    restarts: "restarts at the beginning of a log",
    skipped_failed: "shares that a failed handler had not started when it was switched off",
    skipped_overdue: "shares that had not been started by the drain timeout",
    abandoned: "shares of calls abandoned at the drain timeout",
    recreated: "recreated topics that had a commit",
    resets: "offsets reset by an operator while the metadata stayed that of another offset",
    inherited: "assignments that inherited finished records from an earlier owner",
    inherited_again: "assignments that inherited from an owner that had itself inherited",
    last_refused: "last commits of revoked partitions that a rebalancing group refused",
    accepted_later: "revoked partitions whose last commit was accepted after such refusals",
    lost_before_last_commit: "partitions lost while waiting for their last commit",
    not_found: "lookups of a start offset that failed at first",
    offers_revoked: "assigned partitions that were revoked before they started",
    seeks_failed: "repositionings that failed at first",
    read_again: "offsets that could not be read although the log had them",
    clients_renewed: "clients replaced while the process ran",
    stops: "graceful stops",
    other_orders: "changes of a handler's order",
    other_workers: "changes of the number of workers of a handler that keeps state by key",
    published: "records that running calls had finished when their drain timed out",
    splits: "changes of the keys that another generation of a handler gets",
    written_again: "acknowledged emits that were written again behind a refused one",
    lanes_again: "records that ran again because one before them in their lane did",
    tokens_first: "assignments whose token had to be committed before a record ran",
}
