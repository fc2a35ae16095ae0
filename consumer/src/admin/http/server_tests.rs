//! The server among connections that ask nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use axum::routing::get;

use super::*;

const SOON: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
    _runtime: tokio::runtime::Runtime,
}

/// A server of so many connections, with a route `/` and one that says when it begins and answers when it is told to.
fn start(limit: usize, begun: mpsc::Sender<()>, release: watch::Receiver<bool>) -> Running {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let slow = move || {
        let (begun, mut release) = (begun.clone(), release.clone());
        async move {
            let _ = begun.send(());
            let _ = release.wait_for(|release| *release).await;
            "at last"
        }
    };
    let router = Router::new()
        .route("/", get(|| async { "here" }))
        .route("/slow", get(slow));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (end, ended) = mpsc::channel();
    runtime.spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        serve_at_most(listener, router, stop, limit).await;
        let _ = end.send(());
    });
    Running {
        address,
        stop: Some(stop),
        ended,
        _runtime: runtime,
    }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream
    }

    fn ask(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        // It may be closed already; that shows in the answer.
        let _ = write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        stream
    }
}

/// Nothing when the connection was closed instead.
fn answer_on(mut stream: TcpStream) -> String {
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Ok(_) => text,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => String::new(),
        Err(error) => panic!("{error}"),
    }
}

/// Whether the server ends the connection within the time that reads have.
fn is_closed(stream: &mut TcpStream) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    !matches!(stream.read(&mut [0]), Err(error) if [TimedOut, WouldBlock].contains(&error.kind()))
}

#[test]
fn connections_that_ask_nothing_make_room_for_one_that_does() {
    let (_release, released) = watch::channel(true);
    let running = start(8, mpsc::channel().0, released);
    let mut half_open: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = running.connect();
            // It may be closed already, for a later one.
            let _ = stream.write_all(b"GET / HT");
            stream
        })
        .collect();
    let begun = Instant::now();
    assert!(answer_on(running.ask("/")).ends_with("here"));
    assert!(
        begun.elapsed() < HEADER_TIMEOUT,
        "it waited for others to time out"
    );
    // The oldest were closed for the others; the last ones by the timeout.
    assert!(half_open.iter_mut().all(is_closed));
    assert!(begun.elapsed() >= HEADER_TIMEOUT);
}

#[test]
fn requests_whose_body_does_not_come_make_room_too_and_end() {
    let (_release, released) = watch::channel(true);
    let running = start(8, mpsc::channel().0, released);
    let mut bodiless: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = running.connect();
            // It may be closed already, for a later one.
            let _ =
                stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
            stream
        })
        .collect();
    let begun = Instant::now();
    assert!(answer_on(running.ask("/")).ends_with("here"));
    assert!(
        begun.elapsed() < BODY_TIMEOUT,
        "it waited for others to time out"
    );
    let last = bodiless.pop().expect("one of 50");
    let answer = answer_on(last);
    assert!(
        answer.contains("408") && answer.contains("did not come within 5 s"),
        "{answer}"
    );
    let mut large = running.connect();
    let head = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        MAX_BODY + 1
    );
    large.write_all(head.as_bytes()).expect("a head");
    let _ = large.write_all(&vec![b'x'; MAX_BODY + 1]);
    let mut seen = [0; 12];
    large.read_exact(&mut seen).expect("an answer");
    assert_eq!(&seen, b"HTTP/1.1 413");
}

#[test]
fn a_request_under_way_is_not_closed_for_another_and_a_stop_waits_for_it() {
    let (release, released) = watch::channel(false);
    let (begin, begun) = mpsc::channel();
    let mut running = start(2, begin, released);
    let slow = [running.ask("/slow"), running.ask("/slow")];
    for _ in &slow {
        begun.recv_timeout(SOON).expect("a request under way");
    }
    // Whoever comes now finds every place taken.
    assert_eq!(answer_on(running.ask("/")), "");
    drop(running.stop.take());
    assert!(
        running
            .ended
            .recv_timeout(Duration::from_millis(100))
            .is_err()
    );
    release.send(true).expect("requests wait for it");
    for stream in slow {
        assert!(answer_on(stream).ends_with("at last"));
    }
    running.ended.recv_timeout(SOON).expect("its end");
}
