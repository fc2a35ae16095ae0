//! The sink with writers that are fast, blocked, full, closed and slow.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// Scripted results of a writer, one per call; after the script it accepts everything.
enum Answer {
    Take(usize),
    Refuse(io::ErrorKind),
    /// Blocks until the test releases it.
    Block(Receiver<()>),
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("a text")
    }
}

struct End {
    script: VecDeque<Answer>,
    seen: Seen,
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match self.script.pop_front() {
            Some(Answer::Take(most)) => bytes.len().min(most),
            Some(Answer::Refuse(kind)) => return Err(kind.into()),
            Some(Answer::Block(released)) => {
                let _ = released.recv();
                bytes.len()
            }
            None => bytes.len(),
        };
        let mut seen = self.seen.0.lock().expect("not poisoned");
        seen.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sink(capacity: usize, script: impl IntoIterator<Item = Answer>) -> (Sink, Seen, Receiver<u64>) {
    let seen = Seen::default();
    let end = End {
        script: script.into_iter().collect(),
        seen: seen.clone(),
    };
    let (sender, reports) = sync_channel(16);
    let report = move |lines| sender.send(lines).expect("the test listens");
    (
        Sink::start(end, capacity, report).expect("a thread"),
        seen,
        reports,
    )
}

/// Logs `line` `times` times and fails if that blocks on the reader.
fn push_in_time(sink: &Sink, line: &[u8], times: usize) {
    let (logs, logged) = sync_channel(1);
    let (theirs, line) = (sink.clone(), line.to_vec());
    std::thread::spawn(move || {
        for _ in 0..times {
            theirs.push(&line);
        }
        let _ = logs.send(());
    });
    let done = logged.recv_timeout(DEADLINE);
    done.expect("logging does not block on the reader");
}

fn blocked() -> (Answer, SyncSender<()>) {
    let (release, released) = sync_channel(1);
    (Answer::Block(released), release)
}

#[test]
fn lines_come_out_in_order_and_a_flush_waits_for_them() {
    let (sink, seen, _reports) = sink(CAPACITY, [Answer::Take(1), Answer::Take(3)]);
    for line in ["one\n", "two\n", "three\n"] {
        sink.push(line.as_bytes());
    }
    sink.flush(DEADLINE);
    assert_eq!(seen.text(), "one\ntwo\nthree\n");
    assert_eq!(sink.lost(), 0);
}

#[test]
fn a_blocked_reader_blocks_no_logger_and_dropped_lines_are_counted_and_reported() {
    let (block, release) = blocked();
    let (sink, seen, reports) = sink(100, [block]);
    let line = [b"x".repeat(49), b"\n".to_vec()].concat();
    sink.push(&line);
    // The thread holds this line now; the buffer has room for two more.
    while !sink.0.state().writing {
        std::thread::yield_now();
    }
    push_in_time(&sink, &line, 10_000);
    assert_eq!(sink.lost(), 9_998);
    sink.flush(Duration::from_millis(20));
    release.send(()).expect("the thread waits");
    assert_eq!(reports.recv_timeout(DEADLINE), Ok(9_998));
    sink.flush(DEADLINE);
    assert_eq!(seen.text().lines().count(), 3);
}

#[test]
fn a_failed_write_loses_lines_and_the_next_line_starts_on_a_new_line() {
    use io::ErrorKind::{BrokenPipe, Interrupted, StorageFull, WouldBlock};
    let script = [
        Answer::Refuse(Interrupted),
        Answer::Refuse(WouldBlock),
        Answer::Take(2),
        Answer::Refuse(StorageFull),
    ];
    let (sink, seen, reports) = sink(CAPACITY, script);
    sink.push(b"first\n");
    sink.flush(DEADLINE);
    assert_eq!((seen.text().as_str(), sink.lost()), ("fi", 1));
    sink.push(b"second\n");
    sink.flush(DEADLINE);
    assert_eq!(seen.text(), "fi\nsecond\n");
    assert_eq!(reports.recv_timeout(DEADLINE), Ok(1));

    let (sink, seen, _reports) = self::sink(CAPACITY, (0..50).map(|_| Answer::Refuse(BrokenPipe)));
    for _ in 0..40 {
        sink.push(b"line\n");
        sink.flush(DEADLINE);
    }
    assert_eq!((seen.text().as_str(), sink.lost()), ("", 40));
}

#[test]
fn a_line_beyond_the_capacity_is_dropped() {
    let (sink, seen, _reports) = sink(10, []);
    push_in_time(&sink, b"much too long\n", 1);
    sink.push(b"short\n");
    sink.flush(DEADLINE);
    assert_eq!((seen.text().as_str(), sink.lost()), ("short\n", 1));
}
