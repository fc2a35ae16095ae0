//! A TCP proxy on the loopback address that can cut and stall connections, and swallow unsolicited server messages.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use anyhow::{Context, Result};

/// How traffic is currently treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Everything is forwarded.
    Flowing,
    /// Nothing is forwarded and connections stay open, as with an unplugged cable; delayed data arrives when traffic resumes.
    Stalled,
    /// Existing and new connections are closed.
    Cut,
    /// Unsolicited server messages are swallowed; responses arrive.
    Swallowing,
    /// The first response on each connection arrives; after it, requests are held back.
    HoldingRequests,
}

/// How unsolicited server messages are recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC: every message of a stream after its first one.
    Etcd,
    /// Replies with the transaction id −1.
    ZooKeeper,
}

/// A running proxy; dropping it closes all its connections.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    traffic: Traffic,
    ended: bool,
    swallowed: u64,
    accepted: u64,
    /// Responses that arrived while requests are held back.
    answered: u64,
    open: Vec<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits while requests are held back or stalled. Returns whether the connection continues.
    fn pass_request(&self) -> bool {
        let mut state = self.lock();
        while state.traffic == Traffic::HoldingRequests && state.answered > 0 && !state.ended {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        drop(state);
        self.pass().is_some()
    }

    /// Waits while traffic is stalled. Returns its state then, or `None` if the connection must end.
    fn pass(&self) -> Option<Traffic> {
        let mut state = self.lock();
        loop {
            match state.traffic {
                _ if state.ended => return None,
                Traffic::Cut => return None,
                Traffic::Stalled => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(|poisoned| poisoned.into_inner());
                }
                traffic => return Some(traffic),
            }
        }
    }
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, `host:port`.
    ///
    /// # Errors
    /// If no port is available.
    pub fn start(target: &str, protocol: Protocol) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                traffic: Traffic::Flowing,
                ended: false,
                swallowed: 0,
                accepted: 0,
                answered: 0,
                open: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let (target, threads) = (target.to_owned(), Arc::clone(&shared));
        std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || accept(&listener, &target, protocol, &threads))
            .context("cannot start the proxy's thread")?;
        Ok(Self { address, shared })
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes the treatment of all connections.
    pub fn set(&self, traffic: Traffic) {
        let mut state = self.shared.lock();
        state.traffic = traffic;
        state.answered = 0;
        if traffic == Traffic::Cut {
            close(&mut state);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The number of accepted connections, including refused ones.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// The number of responses since the traffic was set.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.lock().answered
    }

    /// The number of swallowed messages.
    #[must_use]
    pub fn swallowed(&self) -> u64 {
        self.shared.lock().swallowed
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        close(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the listener, so that it ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn close(state: &mut State) {
    for stream in state.open.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, target: &str, protocol: Protocol, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let traffic = {
            let mut state = shared.lock();
            if state.ended {
                return;
            }
            state.accepted += 1;
            state.traffic
        };
        let Ok(client) = client else {
            continue;
        };
        if traffic == Traffic::Cut {
            continue;
        }
        let (target, shared) = (target.to_owned(), Arc::clone(shared));
        std::thread::spawn(move || {
            // A new connection is stalled like the others.
            if shared.pass().is_some() {
                let _ = serve(client, &target, protocol, &shared);
            }
        });
    }
}

fn serve(
    client: TcpStream,
    target: &str,
    protocol: Protocol,
    shared: &Arc<Shared>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(target)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        shared.lock().open.push(stream.try_clone()?);
    }
    let (up_from, up_to) = (client.try_clone()?, server.try_clone()?);
    let up = {
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let _ = copy(&up_from, &up_to, &shared);
            let _ = up_from.shutdown(Shutdown::Both);
            let _ = up_to.shutdown(Shutdown::Both);
        })
    };
    let _ = match protocol {
        Protocol::Etcd => http2(&server, &client, shared),
        Protocol::ZooKeeper => zookeeper(&server, &client, shared),
    };
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}

/// Copies bytes without interpreting them.
fn copy(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 || !shared.pass_request() {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
    }
}

/// Copies HTTP/2 frames: a header of nine bytes with length (three), type (one) and stream (four).
fn http2(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    const DATA: u8 = 0;
    let mut messages: BTreeMap<u32, u64> = BTreeMap::new();
    let mut head = [0; 9];
    loop {
        from.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut body = vec![0; length as usize];
        from.read_exact(&mut body)?;
        let Some(traffic) = shared.pass() else {
            return Ok(());
        };
        if head[3] == DATA {
            let earlier = messages.entry(stream).or_insert(0);
            *earlier += 1;
            if traffic == Traffic::Swallowing && *earlier > 1 {
                shared.lock().swallowed += 1;
                continue;
            }
            // Before the response is forwarded, because the client's next request must already be held back.
            shared.lock().answered += 1;
        }
        to.write_all(&head)?;
        to.write_all(&body)?;
    }
}

/// Copies ZooKeeper packets: four bytes of length, and in a reply four of the request's xid, which is −1 for a notification.
fn zookeeper(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    // The first packet is the response to the connect request and has no xid.
    let mut first = true;
    let mut head = [0; 4];
    loop {
        from.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_be_bytes(head) as usize];
        from.read_exact(&mut body)?;
        let Some(traffic) = shared.pass() else {
            return Ok(());
        };
        let notice = !first && body.starts_with(&[0xff; 4]);
        first = false;
        if notice && traffic == Traffic::Swallowing {
            shared.lock().swallowed += 1;
            continue;
        }
        to.write_all(&head)?;
        to.write_all(&body)?;
    }
}
