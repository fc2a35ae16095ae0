//! Connection management of the admin HTTP server: bounds on connections, descriptors, time and memory.
//!
//! ```text
//!  accept ─► connection limit reached? ── close the connection that has been idle longest
//!         └► out of descriptors?       ── release a reserved one, or close an idle connection
//!  each: header timeout ─► body timeout ─► request ─► routes ─► response ─► next request, within the same timeouts
//! ```
//!
//! A connection counts as busy once its request has been received completely. Half-open, slow and idle connections
//! therefore never block a real request: a probe is answered among hundreds of them, and even while the process has run
//! out of file descriptors.

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

/// How long a connection may take to send a request head, from accept or from its last response.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size in bytes of a request head, including read-ahead.
const MAX_HEAD: usize = 16 << 10;
/// How long a request body may take, from the end of its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size in bytes of a request body: a gate's new state, or nothing.
const MAX_BODY: usize = 64 << 10;
/// Maximum number of open connections; lower where the process may open few files.
const MAX_CONNECTIONS: usize = 128;
/// Minimum number of open connections.
const MIN_CONNECTIONS: usize = 8;
/// Connections may use one file descriptor in this many of the process's limit.
const FD_LIMIT_DIVISOR: u64 = 8;
/// Descriptors reserved for connections that arrive when the process has run out of them.
const RESERVED: usize = 4;
/// Delay after an accept that failed for lack of resources when no reserved descriptor is left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Serves `router` until `stop` resolves, then completes the requests in progress.
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
    // Fails only when every connection has ended.
    let _ = stopping.send(true);
    while connections.tasks.join_next().await.is_some() {}
}

/// Connection limit: a fraction of the process's descriptor limit, so that admin connections cannot starve Kafka ones.
fn limit() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / FD_LIMIT_DIVISOR)
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
    /// Serves a connection, closing an idle one at the limit. The new connection is closed unanswered if all others are
    /// busy.
    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        if self.open.len() >= self.limit {
            self.sweep();
        }
        if self.open.len() >= self.limit && !self.close_one() {
            return;
        }
        // A response is a single write, so Nagle's algorithm only adds latency.
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

    /// Removes ended connections and refills the descriptor reserve.
    fn sweep(&mut self) {
        self.open.retain(|open| !open.task.is_finished());
        self.reserve.refill();
    }

    /// Closes the connection that has been idle longest; `false` when all are busy.
    fn close_one(&mut self) -> bool {
        let idle = self
            .open
            .iter()
            .enumerate()
            .filter_map(|(index, open)| Some((open.activity.idle_since()?, index)));
        let Some((_, index)) = idle.min() else {
            return false;
        };
        self.open.swap_remove(index).task.abort();
        true
    }

    /// Handles a failed accept: frees a descriptor so that the next one succeeds.
    async fn make_room(&mut self, error: &io::Error) {
        let full = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if !full {
            // The client closed the connection before it was accepted.
            return;
        }
        if self.reserve.release_one() {
            return;
        }
        self.close_one();
        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
    }
}

/// Serves one connection until it ends, or until shutdown and the end of its current request.
async fn answer(stream: TcpStream, routes: Routes, mut stopped: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), routes);
    let mut connection = pin!(connection);
    tokio::select! {
        // Errors of a connection concern only its client.
        _ = &mut connection => return,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// Idle time of a connection, for choosing the one to close.
struct Activity {
    opened: Instant,
    /// Milliseconds from `opened` to the start of the idle period; [`BUSY`] during a request.
    idle_since_ms: AtomicU64,
}

const BUSY: u64 = u64::MAX;

impl Default for Activity {
    fn default() -> Self {
        Self {
            opened: Instant::now(),
            idle_since_ms: AtomicU64::new(0),
        }
    }
}

impl Activity {
    fn idle_since(&self) -> Option<Instant> {
        match self.idle_since_ms.load(Ordering::Relaxed) {
            BUSY => None,
            since_ms => Some(self.opened + Duration::from_millis(since_ms)),
        }
    }

    fn mark_idle(&self) {
        let since_ms = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(BUSY - 1);
        self.idle_since_ms.store(since_ms, Ordering::Relaxed);
    }
}

/// The routes, with the peer address and activity of one connection.
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
            let body = match read_body(body).await {
                Ok(body) => body,
                Err(refusal) => return Ok(refusal.into_response()),
            };
            let _busy = Busy::begin(&activity);
            routes.call(Request::from_parts(head, body)).await
        })
    }
}

/// Reads a request body completely; until then its connection counts as idle.
async fn read_body(body: Incoming) -> Result<Body, Refusal> {
    let refused = |status, code, message: String| Err(Refusal::new(status, code, message));
    let body = axum::body::to_bytes(Body::new(body), MAX_BODY);
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(bytes)) => Ok(Body::from(bytes)),
        Ok(Err(error)) => refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_refused",
            format!("the request body cannot be read or exceeds {MAX_BODY} bytes: {error}"),
        ),
        Err(_) => refused(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!(
                "the request body did not arrive within {} s",
                BODY_TIMEOUT.as_secs()
            ),
        ),
    }
}

/// Marks a connection as busy for the duration of a request.
struct Busy(Arc<Activity>);

impl Busy {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.idle_since_ms.store(BUSY, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.mark_idle();
    }
}

/// Reserved descriptors, released one at a time when the process has run out of them.
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

    fn release_one(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
