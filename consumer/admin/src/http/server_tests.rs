//! The server under half-open, slow and idle connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;

use axum::routing::get;

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
    _runtime: tokio::runtime::Runtime,
}

/// A server with this connection limit, a route `/`, and a route `/slow` that signals its start and answers on release.
fn start(limit: usize, started: mpsc::Sender<()>, release: watch::Receiver<bool>) -> Running {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let slow = move || {
        let (started, mut release) = (started.clone(), release.clone());
        async move {
            let _ = started.send(());
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
        stream
            .set_read_timeout(Some(TEST_TIMEOUT))
            .expect("a timeout");
        stream
    }

    fn ask(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        // The server may have closed it already; the response shows that.
        let _ = write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        stream
    }
}

/// The response; empty when the connection was closed instead.
fn answer_on(mut stream: TcpStream) -> String {
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Ok(_) => text,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => String::new(),
        Err(error) => panic!("{error}"),
    }
}

/// Whether the server closes the connection within the read timeout.
fn is_closed(stream: &mut TcpStream) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    !matches!(stream.read(&mut [0]), Err(error) if [TimedOut, WouldBlock].contains(&error.kind()))
}

#[test]
fn idle_connections_make_room_for_a_request() {
    let (_release, released) = watch::channel(true);
    let running = start(8, mpsc::channel().0, released);
    let mut half_open: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = running.connect();
            // It may have been closed already in favour of a later one.
            let _ = stream.write_all(b"GET / HT");
            stream
        })
        .collect();
    let started = Instant::now();
    assert!(answer_on(running.ask("/")).ends_with("here"));
    assert!(
        started.elapsed() < HEADER_TIMEOUT,
        "the request waited for others to time out"
    );
    // The oldest were closed in favour of newer ones, the rest by the timeout.
    assert!(half_open.iter_mut().all(is_closed));
    assert!(started.elapsed() >= HEADER_TIMEOUT);
}

#[test]
fn requests_without_their_body_make_room_too_and_time_out() {
    let (_release, released) = watch::channel(true);
    let running = start(8, mpsc::channel().0, released);
    let mut bodiless: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = running.connect();
            // It may have been closed already in favour of a later one.
            let _ =
                stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
            stream
        })
        .collect();
    let started = Instant::now();
    assert!(answer_on(running.ask("/")).ends_with("here"));
    assert!(
        started.elapsed() < BODY_TIMEOUT,
        "the request waited for others to time out"
    );
    let last = bodiless.pop().expect("one of 50");
    let answer = answer_on(last);
    assert!(
        answer.contains("408") && answer.contains("did not arrive within 5 s"),
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
fn a_request_in_progress_is_not_closed_for_another_and_shutdown_waits_for_it() {
    let (release, released) = watch::channel(false);
    let (begin, started) = mpsc::channel();
    let mut running = start(2, begin, released);
    let slow = [running.ask("/slow"), running.ask("/slow")];
    for _ in &slow {
        started
            .recv_timeout(TEST_TIMEOUT)
            .expect("a request in progress");
    }
    // Every connection is busy: a new one is refused.
    assert_eq!(answer_on(running.ask("/")), "");
    drop(running.stop.take());
    assert!(
        running
            .ended
            .recv_timeout(Duration::from_millis(100))
            .is_err()
    );
    release.send(true).expect("requests are waiting");
    for stream in slow {
        assert!(answer_on(stream).ends_with("at last"));
    }
    running.ended.recv_timeout(TEST_TIMEOUT).expect("its end");
}
