//! `auditor` through the testing kit, on SQLite, and on PostgreSQL if `SLUICEGATE_TEST_POSTGRES_URL` is set.

use std::io::Write;

use auditor::Auditor;
use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome, TestRecord, record};
use sqlx::{Connection, Row};

fn batch(from: i64, to: i64) -> impl Iterator<Item = TestRecord> {
    (from..to).map(|offset| {
        record("orders")
            .at(2, offset)
            .key(format!("k{offset}"))
            .value(b"\0binary\xff")
            .header("a", "1")
            .timestamp_ms(5)
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn sqlite_gets_one_row_per_record_and_a_repeat_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    let mut kit = Kit::of_batch::<Auditor>(json!({ "url": url })).unwrap();
    assert_eq!(kit.health(), Ok(()));
    let run = kit.run(batch(0, 2500));
    assert!(
        run.outcomes.iter().all(|outcome| *outcome == Outcome::Ack),
        "{:?}",
        run.outcomes[0]
    );
    assert_eq!(kit.counter("rows_written"), 2500.0);
    kit.run(batch(2400, 2600));
    assert_eq!(kit.counter("rows_written"), 2600.0);

    let row = runtime().block_on(async {
        let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
        let count: i64 = sqlx::query("SELECT count(*) FROM audit")
            .fetch_one(&pool)
            .await
            .unwrap()
            .get(0);
        assert_eq!(count, 2600);
        sqlx::query("SELECT * FROM audit WHERE record_offset = 7")
            .fetch_one(&pool)
            .await
            .unwrap()
    });
    assert_eq!(row.get::<&str, _>("topic"), "orders");
    assert_eq!(
        (
            row.get::<i64, _>("partition_id"),
            row.get::<i64, _>("timestamp_ms")
        ),
        (2, 5)
    );
    assert_eq!(row.get::<&[u8], _>("record_key"), b"k7");
    assert_eq!(row.get::<&[u8], _>("value"), b"\0binary\xff");
    assert_eq!(row.get::<&str, _>("headers"), r#"[["a","1"]]"#);
}

/// The offsets of a recreated topic restart, but they identify other records.
#[test]
fn a_recreated_topic_has_separate_rows() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    let mut kit = Kit::of_batch::<Auditor>(json!({ "url": url })).unwrap();
    let of = |id: u8| batch(0, 10).map(move |record| record.topic_id([id; 16]));
    kit.run(of(1));
    kit.run(of(2));
    kit.run(of(1));
    assert_eq!(kit.counter("rows_written"), 20.0);
}

#[test]
fn a_failing_database_writes_nothing_and_causes_a_retry() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("audit.db").display());
    let config =
        json!({ "url": url, "table": "t", "store_value": false, "connect_timeout_ms": 300 });
    let mut kit = Kit::of_batch::<Auditor>(config).unwrap();
    let other = async |sql: &'static str| {
        let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
        sqlx::query(sql).execute(&pool).await.unwrap();
        pool.close().await;
    };
    runtime().block_on(other("CREATE TRIGGER no BEFORE INSERT ON t WHEN NEW.record_offset = 9 BEGIN SELECT RAISE(ABORT, 'no'); END"));
    let run = kit.run(batch(0, 10));
    assert!(
        run.outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Retry(None, _))),
        "{:?}",
        run.outcomes
    );
    runtime().block_on(other("DROP TRIGGER no"));
    assert_eq!(kit.run(batch(0, 10)).outcomes, vec![Outcome::Ack; 10]);
    assert_eq!(
        kit.counter("rows_written"),
        10.0,
        "the first attempt left no rows"
    );
    // No record is to blame; another instance creates the table.
    runtime().block_on(other("DROP TABLE t"));
    let run = kit.run(batch(0, 10));
    assert_eq!(run.outcomes, vec![Outcome::NotRun; 10]);
    assert!(run.unavailable.is_some());
    assert_eq!(kit.settle(batch(0, 10)).outcomes, vec![Outcome::Ack; 10]);
}

#[test]
fn configs_are_checked() {
    for bad in [
        json!({}),
        json!({ "url": "mysql://x" }),
        json!({ "url": "sqlite://x", "table": "a; DROP TABLE b" }),
        json!({ "url": "postgres://user:secret@:x" }),
        json!({ "url": "sqlite://x", "tabel": "a" }),
    ] {
        let refusal = Kit::of_batch::<Auditor>(bad).err().unwrap();
        assert!(
            refusal.starts_with("config refused: ") && !refusal.contains("secret"),
            "{refusal}"
        );
    }
    let missing = json!({ "url": "sqlite:///nowhere/at/all/audit.db", "connect_timeout_ms": 200 });
    assert!(
        Kit::of_batch::<Auditor>(missing)
            .err()
            .unwrap()
            .starts_with("failed to start: ")
    );
}

/// The server for the tests on PostgreSQL; reports a test as skipped if there is none.
fn postgres(test: &str) -> Option<String> {
    let url = std::env::var("SLUICEGATE_TEST_POSTGRES_URL").ok();
    if url.is_none() {
        // Written directly to bypass the test output capture, so that skipped tests can be counted.
        let reason = "SLUICEGATE_TEST_POSTGRES_URL is not set; `cargo xtask test` starts a server";
        writeln!(
            std::io::stdout(),
            "\nskipped: auditor on PostgreSQL, {test}: {reason}"
        )
        .expect("stdout takes a line");
    }
    url
}

async fn connect(url: &str) -> sqlx::PgConnection {
    let connected = sqlx::PgConnection::connect(url).await;
    connected.expect("the server answers")
}

/// What a statement on PostgreSQL returns, as a number.
fn number(url: &str, sql: String) -> i64 {
    let row = runtime().block_on(async {
        let query = sqlx::query(sqlx::AssertSqlSafe(sql));
        query.fetch_one(&mut connect(url).await).await
    });
    row.expect("one row").get(0)
}

fn drop_table(url: &str, table: &str) {
    let sql = sqlx::AssertSqlSafe(format!("DROP TABLE {table}"));
    let done =
        runtime().block_on(async { sqlx::query(sql).execute(&mut connect(url).await).await });
    done.expect("the table is dropped");
}

#[test]
fn postgres_gets_one_row_per_record_and_a_repeat_changes_nothing() {
    let Some(url) = postgres("rows") else {
        return;
    };
    let table = format!("audit_{}", std::process::id());
    let mut kit = Kit::of_batch::<Auditor>(json!({ "url": url, "table": table })).unwrap();
    assert_eq!(kit.health(), Ok(()));
    assert_eq!(kit.run(batch(0, 2500)).outcomes, vec![Outcome::Ack; 2500]);
    kit.run(batch(2400, 2600));
    assert_eq!(kit.counter("rows_written"), 2600.0);
    let bare = record("orders").at(3, 0);
    assert_eq!(kit.run([bare]).outcomes, [Outcome::Ack]);
    let complete = format!(
        "SELECT count(*) FROM {table} WHERE topic = 'orders' AND partition_id = 2 AND timestamp_ms = 5 AND value_length = 8 \
         AND record_key = convert_to('k' || record_offset, 'UTF8') AND value = '\\x0062696e617279ff' \
         AND headers = '[[\"a\",\"1\"]]'"
    );
    assert_eq!(number(&url, complete), 2600);
    let of_tombstone = format!(
        "SELECT count(*) FROM {table} WHERE partition_id = 3 AND value IS NULL AND value_length IS NULL AND headers = '[]'"
    );
    assert_eq!(number(&url, of_tombstone), 1);
    // Of an earlier call; each call is one transaction.
    let transactions = format!("SELECT count(DISTINCT xmin::text) FROM {table}");
    assert_eq!(number(&url, transactions), 3);
    drop(kit);
    drop_table(&url, &table);
}

#[test]
fn a_broken_connection_to_postgres_is_replaced_within_the_call() {
    let Some(url) = postgres("a broken connection") else {
        return;
    };
    let table = format!("audit_broken_{}", std::process::id());
    let mut kit = Kit::of_batch::<Auditor>(json!({ "url": url, "table": table })).unwrap();
    assert_eq!(kit.run(batch(0, 10)).outcomes, vec![Outcome::Ack; 10]);
    let end = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%{table}%'"
    );
    assert_eq!(number(&url, end.clone()), 1);
    assert_eq!(kit.run(batch(5, 15)).outcomes, vec![Outcome::Ack; 10]);
    assert_eq!(kit.counter("rows_written"), 15.0);
    assert_eq!(number(&url, end), 1);
    assert_eq!(kit.health(), Ok(()));
    let count = format!("SELECT count(*) FROM {table}");
    assert_eq!(number(&url, count), 15);
    drop_table(&url, &table);
}

#[test]
fn records_make_no_attempt_while_postgres_takes_no_connection() {
    let Some(url) = postgres("an outage") else {
        return;
    };
    let (server, _) = url.rsplit_once('/').expect("a database");
    let database = format!("audit_away_{}", std::process::id());
    let run = |sql: String| {
        let query = sqlx::AssertSqlSafe(sql);
        let done = runtime()
            .block_on(async { sqlx::query(query).execute(&mut connect(&url).await).await });
        done.expect("the statement succeeds");
    };
    run(format!("CREATE DATABASE {database}"));
    let own = format!("{server}/{database}");
    let config = json!({ "url": own, "connect_timeout_ms": 200 });
    let mut kit = Kit::of_batch::<Auditor>(config).unwrap();
    run(format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false"));
    run(format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    ));
    let away = kit.run(batch(0, 10));
    assert_eq!(away.outcomes, vec![Outcome::NotRun; 10]);
    let why = away.unavailable.expect("it is away");
    assert!(why.starts_with("the database takes no rows: "), "{why}");
    assert!(kit.health().is_err() && kit.run(batch(0, 10)).unavailable.is_some());
    run(format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true"));
    assert_eq!(kit.settle(batch(0, 10)).outcomes, vec![Outcome::Ack; 10]);
    assert_eq!(number(&own, "SELECT count(*) FROM audit".into()), 10);

    // As after a failover to a server that does not lead, or of a table that was replaced.
    let connected = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    for (begin, end) in [
        (
            format!("ALTER DATABASE {database} SET default_transaction_read_only = on"),
            format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
        ),
        (
            format!("ALTER DATABASE {database} SET search_path = nowhere"),
            format!("ALTER DATABASE {database} RESET search_path"),
        ),
    ] {
        run(begin);
        run(connected.clone());
        let run_there = kit.run(batch(10, 20));
        assert_eq!(run_there.outcomes, vec![Outcome::NotRun; 10]);
        assert!(run_there.unavailable.is_some());
        run(end);
        run(connected.clone());
        assert_eq!(kit.settle(batch(10, 20)).outcomes, vec![Outcome::Ack; 10]);
    }
    // A constraint is about the rows: they are retried, and dead-lettered in the end.
    let own_run = |sql: &'static str| {
        let done =
            runtime().block_on(async { sqlx::query(sql).execute(&mut connect(&own).await).await });
        done.expect("the statement succeeds");
    };
    own_run("ALTER TABLE audit ADD CHECK (record_offset < 25)");
    let refused = kit.run(batch(20, 30)).outcomes;
    let is_retry = |outcome: &Outcome| matches!(outcome, Outcome::Retry(None, _));
    assert!(refused.iter().all(is_retry), "{refused:?}");
    drop(kit);
    run(format!("DROP DATABASE {database} WITH (FORCE)"));
}
