//! The sink against ends that are read, blocked, full, closed and slow.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// What an end answers, call by call; after the script it takes everything.
enum Answer {
    Take(usize),
    Refuse(io::ErrorKind),
    /// Until the test lets it go on.
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
    let (told, tells) = sync_channel(16);
    let tell = move |lines| told.send(lines).expect("the test listens");
    (
        Sink::start(end, capacity, tell).expect("a thread"),
        seen,
        tells,
    )
}

/// Logs `line` so many times; who logs does not wait for the reader.
fn push_in_time(sink: &Sink, line: &[u8], times: usize) {
    let (logs, logged) = sync_channel(1);
    let (theirs, line) = (sink.clone(), line.to_vec());
    std::thread::spawn(move || {
        for _ in 0..times {
            theirs.push(&line);
        }
        let _ = logs.send(());
    });
    let done = logged.recv_timeout(SOON);
    done.expect("who logs does not wait for the reader");
}

fn blocked() -> (Answer, SyncSender<()>) {
    let (release, released) = sync_channel(1);
    (Answer::Block(released), release)
}

#[test]
fn lines_come_out_in_order_and_a_flush_waits_for_them() {
    let (sink, seen, _tells) = sink(CAPACITY, [Answer::Take(1), Answer::Take(3)]);
    for line in ["one\n", "two\n", "three\n"] {
        sink.push(line.as_bytes());
    }
    sink.flush(SOON);
    assert_eq!(seen.text(), "one\ntwo\nthree\n");
    assert_eq!(sink.lost(), 0);
}

#[test]
fn an_end_that_is_not_read_holds_up_nobody_and_what_has_no_room_is_counted_and_told() {
    let (block, release) = blocked();
    let (sink, seen, tells) = sink(100, [block]);
    let line = [b"x".repeat(49), b"\n".to_vec()].concat();
    sink.push(&line);
    // The thread has it in its hands now, and the buffer takes two more.
    while !sink.0.state().writing {
        std::thread::yield_now();
    }
    push_in_time(&sink, &line, 10_000);
    assert_eq!(sink.lost(), 9_998);
    sink.flush(Duration::from_millis(20));
    release.send(()).expect("the thread waits");
    assert_eq!(tells.recv_timeout(SOON), Ok(9_998));
    sink.flush(SOON);
    assert_eq!(seen.text().lines().count(), 3);
}

#[test]
fn a_refusal_loses_lines_and_what_comes_after_it_begins_a_line() {
    use io::ErrorKind::{BrokenPipe, Interrupted, StorageFull, WouldBlock};
    let script = [
        Answer::Refuse(Interrupted),
        Answer::Refuse(WouldBlock),
        Answer::Take(2),
        Answer::Refuse(StorageFull),
    ];
    let (sink, seen, tells) = sink(CAPACITY, script);
    sink.push(b"first\n");
    sink.flush(SOON);
    assert_eq!((seen.text().as_str(), sink.lost()), ("fi", 1));
    sink.push(b"second\n");
    sink.flush(SOON);
    assert_eq!(seen.text(), "fi\nsecond\n");
    assert_eq!(tells.recv_timeout(SOON), Ok(1));

    let (sink, seen, _tells) = self::sink(CAPACITY, (0..50).map(|_| Answer::Refuse(BrokenPipe)));
    for _ in 0..40 {
        sink.push(b"line\n");
        sink.flush(SOON);
    }
    assert_eq!((seen.text().as_str(), sink.lost()), ("", 40));
}

#[test]
fn a_line_beyond_the_capacity_is_dropped() {
    let (sink, seen, _tells) = sink(10, []);
    push_in_time(&sink, b"much too long\n", 1);
    sink.push(b"short\n");
    sink.flush(SOON);
    assert_eq!((seen.text().as_str(), sink.lost()), ("short\n", 1));
}
