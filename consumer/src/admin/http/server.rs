//! Connections of the admin HTTP: what they may cost the rest of the process, and each other.
//!
//! ```text
//!  accept ─► more than the limit open? ── the one that has waited longest without a request is closed for the new one
//!         └► no descriptor left?       ── a kept one is given up for it, or such a connection is closed
//!  each: header timeout ─► body timeout ─► request ─► routes ─► answer ─► next request, within the same timeouts
//! ```
//!
//! A request is under way once it is there whole. Connections that ask nothing (half open, slow, idle) therefore never keep one that does from being answered: a probe
//! is answered among hundreds of them, and while the process has no file descriptor left.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::answer::Refusal;

/// How long a connection may take for the head of a request, from its opening or its last answer on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's head, and of what is read ahead.
const MAX_HEAD: usize = 16 << 10;
/// How long the body of a request may take from its head on.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's body: a gate's new state, or nothing.
const MAX_BODY: usize = 64 << 10;
/// Most connections at a time; fewer where the process may open few files.
const MAX_CONNECTIONS: usize = 128;
/// Least connections at a time.
const MIN_CONNECTIONS: usize = 8;
/// The part of the process's files that connections may be.
const FILES_PART: u64 = 8;
/// Descriptors that are kept for connections that come when there is none left.
const RESERVED: usize = 4;
/// Pause after an accept that failed for want of something that cannot be given up for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Answers by `router` until `stop` is done, then finishes the requests under way.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    serve_at_most(listener, router, stop, limit()).await;
}

async fn serve_at_most(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
    limit: usize,
) {
    let (stopping, stopped) = watch::channel(false);
    let mut connections = Connections {
        routes: TowerToHyperService::new(router),
        tasks: JoinSet::new(),
        open: Vec::new(),
        reserve: Reserve::new(),
        limit,
        stopped,
    };
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.tasks.join_next() => connections.sweep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => connections.admit(stream, peer),
                Err(error) => connections.make_room(&error).await,
            },
        }
    }
    drop(listener);
    // Every connection has its own receiver, and may have ended.
    let _ = stopping.send(true);
    while connections.tasks.join_next().await.is_some() {}
}

/// Connections at a time: a part of what the process may open, so that they cannot take what records need.
fn limit() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / FILES_PART)
        .unwrap_or(MAX_CONNECTIONS)
        .clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// The open connections.
struct Connections {
    routes: TowerToHyperService<Router>,
    tasks: JoinSet<()>,
    open: Vec<Open>,
    reserve: Reserve,
    limit: usize,
    stopped: watch::Receiver<bool>,
}

struct Open {
    task: AbortHandle,
    activity: Arc<Activity>,
}

impl Connections {
    /// Serves a connection, in the place of another one if need be. Where every other one has a request under way, it is
    /// closed unanswered.
    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        if self.open.len() >= self.limit {
            self.sweep();
        }
        if self.open.len() >= self.limit && !self.close_one() {
            return;
        }
        // An answer is one write; waiting for more to send gains nothing.
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity::default());
        let routes = Routes {
            routes: self.routes.clone(),
            activity: Arc::clone(&activity),
            peer,
        };
        let task = self
            .tasks
            .spawn(answer(stream, routes, self.stopped.clone()));
        self.open.push(Open { task, activity });
    }

    /// Forgets connections that have ended, and takes back descriptors for the next emergency.
    fn sweep(&mut self) {
        self.open.retain(|open| !open.task.is_finished());
        self.reserve.refill();
    }

    /// Closes the connection that has waited longest without a request; `false` when all have one.
    fn close_one(&mut self) -> bool {
        let waiting = self
            .open
            .iter()
            .enumerate()
            .filter_map(|(index, open)| Some((open.activity.waits_since()?, index)));
        let Some((_, index)) = waiting.min() else {
            return false;
        };
        self.open.swap_remove(index).task.abort();
        true
    }

    /// After an accept that failed: sees to it that the next one does not.
    async fn make_room(&mut self, error: &io::Error) {
        let full = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if !full {
            // The client has gone before it was taken.
            return;
        }
        if self.reserve.give_up() {
            return;
        }
        self.close_one();
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Serves one connection to its end, or until the stop and the end of its request.
async fn answer(stream: TcpStream, routes: Routes, mut stopped: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), routes);
    let mut connection = pin!(connection);
    tokio::select! {
        // A connection that breaks off is its client's affair.
        _ = &mut connection => return,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// What a connection is doing, for the choice of one to close.
struct Activity {
    begun: Instant,
    /// Milliseconds from `begun` to the time since which it waits for a request; [`BUSY`] while there is one.
    waits_since_ms: AtomicU64,
}

const BUSY: u64 = u64::MAX;

impl Default for Activity {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            waits_since_ms: AtomicU64::new(0),
        }
    }
}

impl Activity {
    fn waits_since(&self) -> Option<Instant> {
        match self.waits_since_ms.load(Ordering::Relaxed) {
            BUSY => None,
            since_ms => Some(self.begun + Duration::from_millis(since_ms)),
        }
    }

    fn waits_again(&self) {
        let since_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(BUSY - 1);
        self.waits_since_ms.store(since_ms, Ordering::Relaxed);
    }
}

/// The routes as one connection asks them.
struct Routes {
    routes: TowerToHyperService<Router>,
    activity: Arc<Activity>,
    peer: SocketAddr,
}

impl Service<Request<Incoming>> for Routes {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        head.extensions.insert(ConnectInfo(self.peer));
        let (routes, activity) = (self.routes.clone(), Arc::clone(&self.activity));
        Box::pin(async move {
            let body = match whole(body).await {
                Ok(body) => body,
                Err(refusal) => return Ok(refusal.into_response()),
            };
            let _busy = Busy::begin(&activity);
            routes.call(Request::from_parts(head, body)).await
        })
    }
}

/// The body of a request, once it is there; until then its connection counts as one that waits.
async fn whole(body: Incoming) -> Result<Body, Refusal> {
    let refused = |status, code, message: String| Err(Refusal::new(status, code, message));
    let body = axum::body::to_bytes(Body::new(body), MAX_BODY);
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(bytes)) => Ok(Body::from(bytes)),
        Ok(Err(error)) => refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_refused",
            format!(
                "the request's body cannot be read, or has more than {MAX_BODY} bytes: {error}"
            ),
        ),
        Err(_) => refused(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!(
                "the request's body did not come within {} s",
                BODY_TIMEOUT.as_secs()
            ),
        ),
    }
}

/// A request that is under way.
struct Busy(Arc<Activity>);

impl Busy {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.waits_since_ms.store(BUSY, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.waits_again();
    }
}

/// Descriptors that are given up when there are no others for a connection.
struct Reserve(Vec<File>);

impl Reserve {
    fn new() -> Self {
        let mut reserve = Self(Vec::with_capacity(RESERVED));
        reserve.refill();
        reserve
    }

    fn refill(&mut self) {
        while self.0.len() < RESERVED {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }

    fn give_up(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
