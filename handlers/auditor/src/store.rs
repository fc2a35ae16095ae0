//! The audit table, in SQLite or PostgreSQL.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::{Duration, Instant};

use sluicegate_sdk::{Classify, HandlerError, Record};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite};

use crate::postgres::Postgres;

/// SQLite allows 32,766 parameters per statement; a row has nine.
const ROWS_PER_STATEMENT: usize = 1_000;

/// Columns, in the order of a row's values.
pub(crate) const COLUMNS: &str = "topic, topic_id, partition_id, record_offset, timestamp_ms, record_key, value_length, value, headers";

/// The end of a statement that inserts rows: those that are there are left unchanged.
pub(crate) const CONFLICT: &str =
    "ON CONFLICT (topic, topic_id, partition_id, record_offset) DO NOTHING";

/// A record as a row.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) topic: &'a str,
    /// Hexadecimal; empty where the topic has no id.
    pub(crate) topic_id: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value_length: Option<i64>,
    pub(crate) value: Option<&'a [u8]>,
    /// JSON: an array of names and values, with invalid UTF-8 replaced.
    pub(crate) headers: String,
}

impl<'a> Row<'a> {
    pub(crate) fn of(record: &Record<'a>, store_value: bool) -> Self {
        Self {
            topic: record.topic(),
            topic_id: record.topic_id().map(hex).unwrap_or_default(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            key: record.key(),
            value_length: record.value().map(|value| value.len() as i64),
            value: record.value().filter(|_| store_value),
            headers: headers(record),
        }
    }
}

fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

fn headers(record: &Record<'_>) -> String {
    type Pair<'h> = (Cow<'h, str>, Option<Cow<'h, str>>);
    let pairs: Vec<Pair<'_>> = record
        .headers()
        .map(|(name, value)| {
            let value = value.map(String::from_utf8_lossy);
            (String::from_utf8_lossy(name), value)
        })
        .collect();
    serde_json::to_string(&pairs).expect("text is written without errors")
}

/// Why rows were not written, or may not have been.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The database does not answer, or is in no state to take any row.
    Away(sqlx::Error),
    /// It refused these rows.
    Refused(sqlx::Error),
}

/// An open table.
#[derive(Debug)]
pub(crate) enum Store {
    Sqlite { pool: SqlitePool, table: String },
    Postgres(Box<Postgres>),
}

impl Store {
    /// Connects, and creates the table if it is missing.
    pub(crate) async fn open(
        url: &str,
        table: &str,
        timeout: Duration,
    ) -> Result<Self, HandlerError> {
        check_table(table)?;
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => {
                let pool = open_sqlite(url, timeout).await?;
                let created = sqlx::query(create_table(table, "BLOB"))
                    .execute(&pool)
                    .await;
                created.retryable()?;
                let table = table.to_owned();
                Ok(Self::Sqlite { pool, table })
            }
            Some("postgres" | "postgresql") => {
                let opened = Postgres::open(url, table, timeout).await?;
                Ok(Self::Postgres(Box::new(opened)))
            }
            _ => Err(HandlerError::terminal(
                "`url` must be sqlite:///path or postgres://user:password@host/database",
            )),
        }
    }

    /// Writes the rows in one transaction and returns the number of new ones.
    pub(crate) async fn write(
        &mut self,
        rows: &[Row<'_>],
        deadline: Option<Instant>,
    ) -> Result<u64, WriteError> {
        let (pool, table) = match self {
            Self::Postgres(postgres) => return postgres.write(rows, deadline).await,
            Self::Sqlite { pool, table } => (pool, table),
        };
        let written = write_sqlite(pool, table, rows).await;
        written.map_err(|error| match is_of_rows(&error) {
            true => WriteError::Refused(error),
            false => WriteError::Away(error),
        })
    }

    /// Checks that the database answers.
    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite { pool, .. } => sqlx::query("SELECT 1").execute(&*pool).await.map(drop),
            Self::Postgres(postgres) => postgres.ping().await,
        }
    }
}

/// Whether SQLite refuses these rows: their size, constraints, or types. Everything else is the state of the file.
fn is_of_rows(error: &sqlx::Error) -> bool {
    /// `SQLITE_TOOBIG`, `SQLITE_CONSTRAINT`, `SQLITE_MISMATCH`.
    const ROWS: [u32; 3] = [18, 19, 20];
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            // The lowest byte is the class.
            code.is_some_and(|code| ROWS.contains(&(code & 0xff)))
        }
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => true,
        _ => false,
    }
}

async fn write_sqlite(
    pool: &SqlitePool,
    table: &str,
    rows: &[Row<'_>],
) -> Result<u64, sqlx::Error> {
    let mut written = 0;
    let mut transaction = pool.begin().await?;
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        let mut insert = insert(table, rows);
        let done = insert.build().execute(&mut *transaction).await?;
        written += done.rows_affected();
    }
    transaction.commit().await?;
    Ok(written)
}

async fn open_sqlite(url: &str, timeout: Duration) -> Result<SqlitePool, HandlerError> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| HandlerError::terminal(format!("`url`: {error}")))?
        .create_if_missing(true)
        // WAL lets readers proceed during a write; workers wait for each other instead of failing.
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(timeout);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(timeout);
    pool.connect_with(options).await.map_err(not_reached)
}

/// The statement that creates the table; `bytes` is the database's type of bytes.
pub(crate) fn create_table(table: &str, bytes: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "CREATE TABLE IF NOT EXISTS {table} (topic TEXT NOT NULL, topic_id TEXT NOT NULL, partition_id INTEGER NOT NULL, \
         record_offset BIGINT NOT NULL, timestamp_ms BIGINT, record_key {bytes}, value_length BIGINT, \
         value {bytes}, headers TEXT NOT NULL, PRIMARY KEY (topic, topic_id, partition_id, record_offset))"
    ))
}

fn insert<'q>(table: &str, rows: &'q [Row<'q>]) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(format!("INSERT INTO {table} ({COLUMNS}) "));
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
    query.push(format!(" {CONFLICT}"));
    query
}

pub(crate) fn not_reached(error: sqlx::Error) -> HandlerError {
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
