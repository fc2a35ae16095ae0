//! The audit table in PostgreSQL.
//!
//! A call writes its rows with one statement, which is a transaction of its own: one round trip and one commit. Each column is one
//! array, so that the statement is the same for any number of rows and the server plans it once per connection.
//!
//! While the server is away, a call ends as unavailable: its records make no attempt, and the service builds an instance again, which
//! waits for the server for a while, until one can be built.

use std::io::ErrorKind;
use std::str::FromStr;
use std::time::{Duration, Instant};

use sluicegate_sdk::{Classify, HandlerError};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr, SqlStr};
use tokio::time::{sleep, timeout, timeout_at};

use crate::store::{COLUMNS, CONFLICT, Row, WriteError, create_table, not_reached};

/// Delay before the second attempt to reach a server that is away; doubled from there on.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// Upper bound of the delay: how late the end of an outage is noticed.
const MAX_DELAY: Duration = Duration::from_millis(500);
/// Timeout of each of a health check's two steps: together less than the service's 10 s, so that a silent server costs no thread.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Codes of errors with which a server that is stopping, starting or full ends or refuses a connection.
const AWAY: [&str; 6] = ["57P01", "57P02", "57P03", "57P05", "53300", "25P03"];

/// Classes of errors that are about the rows: data exceptions, integrity constraints, program limits.
const ROWS: [&str; 3] = ["22", "23", "54"];

/// A table, and the connection to it.
#[derive(Debug)]
pub(crate) struct Postgres {
    options: PgConnectOptions,
    timeout: Duration,
    /// `None` after it broke.
    connection: Option<PgConnection>,
    insert: SqlStr,
}

impl Postgres {
    /// Connects, and creates the table if it is missing.
    pub(crate) async fn open(
        url: &str,
        table: &str,
        timeout: Duration,
    ) -> Result<Self, HandlerError> {
        // The error is discarded because it could quote the password.
        let options = PgConnectOptions::from_str(url).map_err(|_| {
            HandlerError::terminal(
                "`url` is not a PostgreSQL URL: postgres://user:password@host/database",
            )
        })?;
        // Each instance would be told that the table exists.
        let options = options.options([("client_min_messages", "warning")]);
        let mut opened = Self {
            options,
            timeout,
            connection: None,
            insert: AssertSqlSafe(insert(table)).into_sql_str(),
        };
        let connected = opened.connect(timeout).await;
        let mut connection = connected.map_err(not_reached)?;
        match connection.execute(create_table(table, "BYTEA")).await {
            // Two workers at once: `IF NOT EXISTS` is not atomic in PostgreSQL, so the slower one conflicts.
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("23505" | "42P07")) => {}
            created => {
                created.retryable()?;
            }
        }
        opened.connection = Some(connection);
        Ok(opened)
    }

    /// Connects; tries again while the server is away.
    async fn connect(&self, within: Duration) -> Result<PgConnection, sqlx::Error> {
        let end = Instant::now() + within;
        let mut delay = FIRST_DELAY;
        loop {
            let connecting = timeout_at(end.into(), PgConnection::connect_with(&self.options));
            match connecting.await {
                Err(_) => return Err(sqlx::Error::Io(ErrorKind::TimedOut.into())),
                Ok(Err(error)) if is_away(&error) && Instant::now() + delay < end => {
                    sleep(delay).await;
                }
                Ok(connected) => return connected,
            }
            delay = MAX_DELAY.min(2 * delay);
        }
    }

    /// Writes the rows in one transaction before the deadline, and returns the number of new ones.
    pub(crate) async fn write(
        &mut self,
        rows: &[Row<'_>],
        deadline: Option<Instant>,
    ) -> Result<u64, WriteError> {
        let Some(deadline) = deadline else {
            return self.insert(rows).await;
        };
        // A call that returned later would be abandoned, with its thread.
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left - left / 10, self.insert(rows)).await {
            Ok(done) => done,
            Err(_) => Err(WriteError::Away(sqlx::Error::Io(
                ErrorKind::TimedOut.into(),
            ))),
        }
    }

    /// Whether the rows of a failed attempt are there is unknown; they are left unchanged by another one.
    async fn insert(&mut self, rows: &[Row<'_>]) -> Result<u64, WriteError> {
        let mut kept = self.connection.take();
        loop {
            // One that was kept may have broken while it was idle: then another one is tried.
            let was_kept = kept.is_some();
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => {
                    let connected = PgConnection::connect_with(&self.options).await;
                    connected.map_err(WriteError::Away)?
                }
            };
            let insert = bind(self.insert.clone(), rows);
            match insert.execute(&mut connection).await {
                Err(error) if is_away(&error) && was_kept => {}
                Err(error) if !is_of_rows(&error) => return Err(WriteError::Away(error)),
                done => {
                    self.connection = Some(connection);
                    let written = done.map(|done| done.rows_affected());
                    return written.map_err(WriteError::Refused);
                }
            }
        }
    }

    /// Checks that the database answers; a broken connection is replaced.
    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        if let Some(mut connection) = self.connection.take()
            && let Ok(Ok(())) = timeout(PING_TIMEOUT, connection.ping()).await
        {
            self.connection = Some(connection);
            return Ok(());
        }
        let connected = self.connect(PING_TIMEOUT.min(self.timeout)).await?;
        self.connection = Some(connected);
        Ok(())
    }
}

/// Whether the server, or the connection to it, is gone: the same statement can succeed on another connection.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => {
            let code = error.code();
            let code = code.as_deref().unwrap_or_default();
            // Class 08 is that of connections.
            AWAY.contains(&code) || code.starts_with("08")
        }
        _ => false,
    }
}

/// Whether the server refuses these rows: data that it cannot store, constraints, and limits of a row. Everything else is its state, or that of
/// the table: it would refuse any row.
fn is_of_rows(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            ROWS.iter().any(|class| code.starts_with(class))
        }
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => true,
        _ => false,
    }
}

fn insert(table: &str) -> String {
    format!(
        "INSERT INTO {table} ({COLUMNS}) SELECT * FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], \
         $6::bytea[], $7::int8[], $8::bytea[], $9::text[]) {CONFLICT}"
    )
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bind<'q>(insert: SqlStr, rows: &'q [Row<'q>]) -> Query<'q> {
    macro_rules! column {
        ($value:expr) => {
            rows.iter().map($value).collect::<Vec<_>>()
        };
    }
    sqlx::query(insert)
        .bind(column!(|row| row.topic))
        .bind(column!(|row| row.topic_id.as_str()))
        .bind(column!(|row| row.partition))
        .bind(column!(|row| row.offset))
        .bind(column!(|row| row.timestamp_ms))
        .bind(column!(|row| row.key))
        .bind(column!(|row| row.value_length))
        .bind(column!(|row| row.value))
        .bind(column!(|row| row.headers.as_str()))
}
