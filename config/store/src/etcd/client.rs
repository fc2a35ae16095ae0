//! Connections to the members of an etcd cluster: one client per member, failing over when a member does not answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use sluicegate_config::bounded_file;
use sluicegate_config::document::MAX_BYTES;
use sluicegate_config::service::{EtcdSettings, TlsFiles};
use tokio::time::timeout;

use super::super::failure::{Failure, TlsFileError};

/// gRPC codes of permanent refusals.
const REFUSALS: [i32; 4] = [3, 7, 9, 16];
/// Timeout of a keep-alive ping.
const PING_ANSWER: Duration = Duration::from_secs(2);
/// gRPC code that etcd uses for compacted revisions, among others.
const OUT_OF_RANGE: i32 = 11;

/// Classifies an error of the client.
pub(super) fn failure(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => {
            let message = status.message();
            let code = status.code() as i32;
            if code == OUT_OF_RANGE && message.contains("compacted") {
                Failure::Compacted
            } else if REFUSALS.contains(&code) {
                Failure::Refused(message.to_owned())
            } else {
                Failure::Away(with_source(message, status))
            }
        }
        Error::InvalidArgs(reason) => Failure::Refused(reason.clone()),
        other => Failure::Away(other.to_string()),
    }
}

/// tonic reports only "transport error"; the cause is in the source chain.
fn with_source(message: &str, error: &dyn std::error::Error) -> String {
    let mut text = message.to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The members, and the one in use.
pub(super) struct Endpoints {
    urls: Vec<String>,
    options: ConnectOptions,
    clients: Vec<Mutex<Option<Client>>>,
    current: AtomicUsize,
    request_timeout: Duration,
    /// Timeout of a call to one member.
    attempt_timeout: Duration,
}

impl Endpoints {
    /// Does not connect yet; fails only on the TLS files.
    pub(super) fn new(settings: &EtcdSettings) -> Result<Self, TlsFileError> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(settings.keep_alive, settings.keep_alive.min(PING_ANSWER))
            // The server closes a connection that pings without any stream.
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(settings.request_timeout)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(login) = &settings.login {
            options = options.with_user(&login.user, login.password.expose());
        }
        if let Some(files) = &settings.tls {
            options = options.with_tls(tls(files)?);
        }
        let urls = settings.endpoints.clone();
        let tries = u32::try_from(urls.len().clamp(1, 3)).unwrap_or(1);
        Ok(Self {
            clients: urls.iter().map(|_| Mutex::new(None)).collect(),
            current: AtomicUsize::new(fastrand::usize(0..urls.len().max(1))),
            attempt_timeout: settings.request_timeout / tries,
            request_timeout: settings.request_timeout,
            urls,
            options,
        })
    }

    /// The index and a client of the member in use.
    async fn client(&self) -> Result<(usize, Client), Failure> {
        let at = self.current.load(Ordering::Relaxed) % self.urls.len().max(1);
        let Some((slot, url)) = self.clients.get(at).zip(self.urls.get(at)) else {
            return Err(Failure::Refused("no endpoint is configured".to_owned()));
        };
        if let Some(client) = lock(slot).clone() {
            return Ok((at, client));
        }
        // Connecting logs in; without a login nothing is sent before the first call.
        let connected = Client::connect([url], Some(self.options.clone()));
        let client = match timeout(self.attempt_timeout, connected).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                self.fail_over(at);
                return Err(failure(&error));
            }
            Err(_) => {
                self.fail_over(at);
                return Err(self.no_answer(at));
            }
        };
        *lock(slot) = Some(client.clone());
        Ok((at, client))
    }

    /// Drops the connection to this member and switches to the next one.
    fn fail_over(&self, at: usize) {
        if let Some(slot) = self.clients.get(at) {
            *lock(slot) = None;
        }
        let next = (at + 1) % self.urls.len().max(1);
        // Another caller may have switched already.
        let _ = self
            .current
            .compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn no_answer(&self, at: usize) -> Failure {
        let url = self.urls.get(at).map_or("", String::as_str);
        Failure::Away(format!(
            "{url} did not answer within {:?}",
            self.attempt_timeout
        ))
    }

    /// Calls the member in use once, for requests that must not be sent twice.
    pub(super) async fn once<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (at, client) = self.client().await?;
        let failed = match timeout(self.attempt_timeout, call(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failure(&error),
            Err(_) => self.no_answer(at),
        };
        if matches!(failed, Failure::Away(_)) {
            self.fail_over(at);
        }
        Err(failed)
    }

    /// Calls one member after another until one answers, for reads.
    pub(super) async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let attempts = async {
            let mut last = Failure::away("no endpoint is configured");
            for _ in &self.urls {
                match self.once(&call).await {
                    Err(failure @ Failure::Away(_)) => last = failure,
                    settled => return settled,
                }
            }
            Err(last)
        };
        match timeout(self.request_timeout, attempts).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Away(format!(
                "no answer within {:?}",
                self.request_timeout
            ))),
        }
    }

    /// Fails over from the member in use after it stopped answering.
    pub(super) fn fail_over_current(&self) {
        self.fail_over(self.current.load(Ordering::Relaxed) % self.urls.len().max(1));
    }
}

fn lock<T>(slot: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn tls(files: &TlsFiles) -> Result<TlsOptions, TlsFileError> {
    let read = |path: &std::path::Path| {
        bounded_file::read(path, MAX_BYTES).map_err(TlsFileError::read(path))
    };
    let mut options =
        TlsOptions::new().ca_certificate(Certificate::from_pem(read(&files.ca_file)?));
    if let Some(identity) = &files.identity {
        let cert = read(&identity.cert_file)?;
        options = options.identity(Identity::from_pem(cert, read(&identity.key_file)?));
    }
    if let Some(name) = &files.server_name {
        options = options.domain_name(name);
    }
    Ok(options)
}
