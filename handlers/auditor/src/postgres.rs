//! The audit table in PostgreSQL.
//!
//! A call writes its rows with one statement, which is a transaction of its own: one round trip and one commit. Each column is one
//! array, so that the statement is the same for any number of rows and the server plans it once per connection.
//!
//! While the server is away, a call waits for it instead of failing: a failed call would cost every record one of its attempts, and
//! an outage would end in dead letters. A call that waits for longer than the handler's `timeout` is abandoned by the service,
//! at the cost of one attempt. No other instance can be built in its place until the server is back, which costs none; a call
//! that returned at its timeout would keep its instance, and cost its records their next attempts.

use std::io::ErrorKind;
use std::str::FromStr;
use std::time::Duration;

use sluicegate_sdk::{Classify, HandlerError};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr, SqlStr};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::store::{COLUMNS, CONFLICT, Row, create_table, not_reached};

/// Delay before the second attempt to reach a server that is away; doubled from there on.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// Upper bound of the delay: how late the end of an outage is noticed.
const MAX_DELAY: Duration = Duration::from_millis(500);
/// Timeout of each of a health check's two steps: together less than the service's 10 s, so that a silent server costs no thread.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// Codes of errors with which a server that is stopping, starting or full ends or refuses a connection.
const AWAY: [&str; 6] = ["57P01", "57P02", "57P03", "57P05", "53300", "25P03"];

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
            let connecting = timeout_at(end, PgConnection::connect_with(&self.options));
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

    /// Writes the rows in one transaction and returns the number of new ones. Waits while the server is away; after that,
    /// nothing is written for a call that was cancelled in that time.
    pub(crate) async fn write(
        &mut self,
        rows: &[Row<'_>],
        cancelled: impl Fn() -> bool,
    ) -> Result<u64, sqlx::Error> {
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => match self.connect(self.timeout).await {
                    Err(error) if is_away(&error) => continue,
                    connected => connected?,
                },
            };
            if cancelled() {
                self.connection = Some(connection);
                return Ok(0);
            }
            let inserted = bind(self.insert.clone(), rows).execute(&mut connection);
            match inserted.await {
                // Whether it was committed is unknown; rows that are there are left unchanged.
                Err(error) if is_away(&error) => sleep(FIRST_DELAY).await,
                done => {
                    self.connection = Some(connection);
                    return done.map(|done| done.rows_affected());
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
