//! Sessions with a ZooKeeper ensemble: a connected one, or the reason why there is none.

use std::sync::Mutex;
use std::time::Duration;

use sluicegate_config::bounded_file;
use sluicegate_config::document::MAX_BYTES;
use sluicegate_config::service::{Acl, TlsFiles, ZooKeeperSettings};
use tokio::time::timeout;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error, SessionState, TlsOptions};

use super::super::failure::{Failure, TlsFileError};

/// Classifies an error of the client.
pub(super) fn failure(error: &Error) -> Failure {
    let reason = match error {
        Error::NoAuth => {
            return Failure::Refused(
                "not authorized: check the ACL of the node (for a delete, of its parent) and `digest`".to_owned(),
            );
        }
        Error::AuthFailed | Error::InvalidAcl | Error::BadArguments(_) | Error::QuotaExceeded => {
            return Failure::Refused(error.to_string());
        }
        Error::NoHosts => "no server could be reached".to_owned(),
        other => other.to_string(),
    };
    Failure::Away(reason)
}

/// Opens sessions and holds the one in use.
pub(super) struct Sessions {
    servers: String,
    tls: Option<TlsOptions>,
    digest: Option<Vec<u8>>,
    acl: Acl,
    session_timeout: Duration,
    request_timeout: Duration,
    current: Mutex<Option<Client>>,
    /// Held while connecting, so that concurrent callers share one new session.
    connecting: tokio::sync::Mutex<()>,
}

impl Sessions {
    /// Does not connect yet; fails only on the TLS files.
    pub(super) fn new(settings: &ZooKeeperSettings) -> Result<Self, TlsFileError> {
        let tls = settings.tls.as_ref().map(tls).transpose()?;
        let digest = settings.digest.as_ref().map(|login| {
            let pair = format!("{}:{}", login.user, login.password.expose());
            pair.into_bytes()
        });
        Ok(Self {
            servers: settings.servers.clone(),
            tls,
            digest,
            acl: settings.acl,
            session_timeout: settings.session_timeout,
            request_timeout: settings.request_timeout,
            current: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(()),
        })
    }

    /// The session in use if it is connected, else a new one. A lost session is not waited for: its reconnect attempts
    /// become rare in a long outage.
    pub(super) async fn connected(&self) -> Result<Client, Failure> {
        if let Some(client) = self.in_use(SessionState::SyncConnected) {
            return Ok(client);
        }
        let _serialized = self.connecting.lock().await;
        if let Some(client) = self.in_use(SessionState::SyncConnected) {
            return Ok(client);
        }
        let client = self.connect().await?;
        *self.slot() = Some(client.clone());
        Ok(client)
    }

    fn in_use(&self, state: SessionState) -> Option<Client> {
        self.slot().clone().filter(|client| client.state() == state)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.current
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The session in use, in any state.
    pub(super) fn current(&self) -> Option<Client> {
        self.slot().clone()
    }

    /// Discards the session after its server stopped answering.
    pub(super) fn discard(&self) {
        *self.slot() = None;
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let servers = self.servers.split(',').count().clamp(1, 3);
        let tries = u32::try_from(servers).unwrap_or(1);
        let idle = (self.request_timeout / tries).min(self.session_timeout * 2 / 5);
        let mut connector = Client::connector()
            .with_session_timeout(self.session_timeout)
            .with_connection_timeout(idle)
            .with_fail_eagerly();
        if let Some(digest) = &self.digest {
            connector = connector.with_auth("digest", digest);
        }
        let connected = match &self.tls {
            Some(tls) => timeout(
                self.request_timeout,
                connector
                    .with_tls(tls.clone())
                    .secure_connect(&self.servers),
            ),
            None => return self.await_session(connector.connect(&self.servers)).await,
        };
        let connected = connected.await;
        self.classify(connected)
    }

    async fn await_session(
        &self,
        session: impl Future<Output = Result<Client, Error>>,
    ) -> Result<Client, Failure> {
        let connected = timeout(self.request_timeout, session).await;
        self.classify(connected)
    }

    fn classify(
        &self,
        connected: Result<Result<Client, Error>, tokio::time::error::Elapsed>,
    ) -> Result<Client, Failure> {
        match connected {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => Err(self.no_answer()),
        }
    }

    fn no_answer(&self) -> Failure {
        Failure::Away(format!("no answer within {:?}", self.request_timeout))
    }

    /// Waits for the answer of a request for at most the request timeout; a session that does not answer is discarded.
    pub(super) async fn answer<T>(
        &self,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, Failure> {
        match timeout(self.request_timeout, request).await {
            Ok(Err(error @ (Error::ConnectionLoss | Error::SessionExpired))) => {
                Err(failure(&error))
            }
            Ok(answer) => Ok(answer),
            Err(_) => {
                self.discard();
                Err(self.no_answer())
            }
        }
    }

    /// Options for creating nodes of this mode.
    pub(super) fn options(&self, mode: CreateMode) -> CreateOptions<'static> {
        mode.with_acls(match self.acl {
            Acl::Open => Acls::anyone_all(),
            Acl::Creator => Acls::creator_all(),
        })
    }
}

fn tls(files: &TlsFiles) -> Result<TlsOptions, TlsFileError> {
    // The clients of both stores use rustls with different providers: one must be installed as default, and an
    // installed one is kept.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let read = |path: &std::path::Path| {
        bounded_file::read_text(path, MAX_BYTES).map_err(TlsFileError::read(path))
    };
    let ca = read(&files.ca_file)?;
    let mut options = TlsOptions::new()
        .with_pem_ca(&ca)
        .map_err(TlsFileError::content(&files.ca_file))?;
    if let Some(identity) = &files.identity {
        let (cert, key) = (read(&identity.cert_file)?, read(&identity.key_file)?);
        options = options
            .with_pem_identity(&cert, &key)
            .map_err(TlsFileError::content(&identity.cert_file))?;
    }
    Ok(options)
}
