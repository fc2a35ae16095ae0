//! The audit table in SQLite or PostgreSQL.

use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use sluicegate_sdk::{Classify, HandlerError, Record};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, QueryBuilder};

/// PostgreSQL allows 65,535 parameters per statement, SQLite 32,766; a row has nine.
const ROWS_PER_STATEMENT: usize = 1_000;

/// Columns, in the order of a row's values.
const COLUMNS: &str = "topic, topic_id, partition_id, record_offset, timestamp_ms, record_key, value_length, value, headers";

/// A record as a row.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    topic: &'a str,
    /// Hexadecimal; empty where the topic has no id.
    topic_id: String,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<&'a [u8]>,
    value_length: Option<i64>,
    value: Option<&'a [u8]>,
    /// JSON: an array of names and values, with invalid UTF-8 replaced.
    headers: String,
}

impl<'a> Row<'a> {
    pub(crate) fn of(record: &Record<'a>, store_value: bool) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers: Vec<Value> = record
            .headers()
            .map(|(name, value)| serde_json::json!([text(name), value.map(text)]))
            .collect();
        Self {
            topic: record.topic(),
            topic_id: record
                .topic_id()
                .unwrap_or_default()
                .iter()
                .filter(|_| record.topic_id().is_some())
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            key: record.key(),
            value_length: record.value().map(|value| value.len() as i64),
            value: record.value().filter(|_| store_value),
            headers: Value::Array(headers).to_string(),
        }
    }
}

/// An open table.
#[derive(Debug)]
pub(crate) struct Store {
    pool: Pool,
    table: String,
}

#[derive(Debug)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Store {
    /// Connects, and creates the table if it is missing.
    pub(crate) async fn open(
        url: &str,
        table: &str,
        timeout: Duration,
    ) -> Result<Self, HandlerError> {
        check_table(table)?;
        let pool = match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => {
                let options = SqliteConnectOptions::from_str(url)
                    .map_err(|error| HandlerError::terminal(format!("`url`: {error}")))?
                    .create_if_missing(true)
                    // WAL lets readers proceed during a write; workers wait for each other instead of failing.
                    .journal_mode(SqliteJournalMode::Wal)
                    .busy_timeout(timeout);
                let pool = SqlitePoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(timeout);
                Pool::Sqlite(pool.connect_with(options).await.map_err(not_reached)?)
            }
            Some("postgres" | "postgresql") => {
                // The error is discarded because it could quote the password.
                let options = PgConnectOptions::from_str(url).map_err(|_| {
                    HandlerError::terminal(
                        "`url` is not a PostgreSQL URL: postgres://user:password@host/database",
                    )
                })?;
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(timeout);
                Pool::Postgres(pool.connect_with(options).await.map_err(not_reached)?)
            }
            _ => {
                return Err(HandlerError::terminal(
                    "`url` must be sqlite:///path or postgres://user:password@host/database",
                ));
            }
        };
        let store = Self {
            pool,
            table: table.to_string(),
        };
        store.make_table().await.retryable()?;
        Ok(store)
    }

    async fn make_table(&self) -> Result<(), sqlx::Error> {
        let create = |bytes: &str| {
            AssertSqlSafe(format!(
                "CREATE TABLE IF NOT EXISTS {} (topic TEXT NOT NULL, topic_id TEXT NOT NULL, partition_id INTEGER NOT NULL, \
                 record_offset BIGINT NOT NULL, timestamp_ms BIGINT, record_key {bytes}, value_length BIGINT, \
                 value {bytes}, headers TEXT NOT NULL, PRIMARY KEY (topic, topic_id, partition_id, record_offset))",
                self.table
            ))
        };
        match &self.pool {
            Pool::Sqlite(pool) => sqlx::query(create("BLOB")).execute(pool).await.map(drop),
            Pool::Postgres(pool) => match sqlx::query(create("BYTEA")).execute(pool).await {
                // Two workers at once: `IF NOT EXISTS` is not atomic in PostgreSQL, so the slower one conflicts.
                Err(sqlx::Error::Database(error))
                    if matches!(error.code().as_deref(), Some("23505" | "42P07")) =>
                {
                    Ok(())
                }
                other => other.map(drop),
            },
        }
    }

    /// Writes the rows in one transaction and returns the number of new ones.
    pub(crate) async fn write(&self, rows: &[Row<'_>]) -> Result<u64, sqlx::Error> {
        let mut written = 0;
        match &self.pool {
            Pool::Sqlite(pool) => {
                let mut transaction = pool.begin().await?;
                for rows in rows.chunks(ROWS_PER_STATEMENT) {
                    written += self
                        .insert(rows)
                        .build()
                        .execute(&mut *transaction)
                        .await?
                        .rows_affected();
                }
                transaction.commit().await?;
            }
            Pool::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                for rows in rows.chunks(ROWS_PER_STATEMENT) {
                    written += self
                        .insert(rows)
                        .build()
                        .execute(&mut *transaction)
                        .await?
                        .rows_affected();
                }
                transaction.commit().await?;
            }
        }
        Ok(written)
    }

    fn insert<'q, DB>(&self, rows: &'q [Row<'q>]) -> QueryBuilder<DB>
    where
        DB: sqlx::Database,
        &'q str: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
        i32: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
        i64: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
        Option<i64>: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
        Option<&'q [u8]>: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    {
        let mut query = QueryBuilder::new(format!("INSERT INTO {} ({COLUMNS}) ", self.table));
        query.push_values(rows, |mut values, row| {
            values
                .push_bind(row.topic)
                .push_bind(row.topic_id.as_str())
                .push_bind(row.partition)
                .push_bind(row.offset)
                .push_bind(row.timestamp_ms)
                .push_bind(row.key)
                .push_bind(row.value_length)
                .push_bind(row.value)
                .push_bind(row.headers.as_str());
        });
        query.push(" ON CONFLICT (topic, topic_id, partition_id, record_offset) DO NOTHING");
        query
    }

    /// Checks that the database answers.
    pub(crate) async fn ping(&self) -> Result<(), sqlx::Error> {
        match &self.pool {
            Pool::Sqlite(pool) => sqlx::query("SELECT 1").execute(pool).await.map(drop),
            Pool::Postgres(pool) => sqlx::query("SELECT 1").execute(pool).await.map(drop),
        }
    }
}

fn not_reached(error: sqlx::Error) -> HandlerError {
    HandlerError::retryable(format!("the database cannot be reached: {error}"))
}

/// Validates the table name, which is inserted into statements unquoted.
fn check_table(table: &str) -> Result<(), HandlerError> {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if table.split('.').count() <= 2 && table.split('.').all(word) {
        return Ok(());
    }
    Err(HandlerError::terminal(format!(
        "`table` is `{table}`; it must consist of letters, digits and `_`, optionally with a schema before a dot"
    )))
}
