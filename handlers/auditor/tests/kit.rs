//! `auditor` through the testing kit, on SQLite, and on PostgreSQL if `SLUICEGATE_TEST_POSTGRES_URL` is set.

use std::io::Write;

use auditor::Auditor;
use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome, TestRecord, record};
use sqlx::Row;

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

#[test]
fn postgres_gets_one_row_per_record_and_a_repeat_changes_nothing() {
    let Ok(url) = std::env::var("SLUICEGATE_TEST_POSTGRES_URL") else {
        // Written directly to bypass the test output capture, so that skipped tests can be counted.
        let reason =
            "SLUICEGATE_TEST_POSTGRES_URL is not set; `cargo xtask test` starts a server for it";
        writeln!(
            std::io::stdout(),
            "\nskipped: auditor on PostgreSQL: {reason}"
        )
        .expect("stdout takes a line");
        return;
    };
    let table = format!("audit_{}", std::process::id());
    let mut kit = Kit::of_batch::<Auditor>(json!({ "url": url, "table": table })).unwrap();
    assert_eq!(kit.health(), Ok(()));
    assert_eq!(kit.run(batch(0, 2500)).outcomes, vec![Outcome::Ack; 2500]);
    kit.run(batch(2400, 2600));
    assert_eq!(kit.counter("rows_written"), 2600.0);
    let count: i64 = runtime().block_on(async {
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT count(*) FROM {table} WHERE value = '\\x0062696e617279ff'"
        ));
        let count = sqlx::query(sql).fetch_one(&pool).await.unwrap().get(0);
        sqlx::query(sqlx::AssertSqlSafe(format!("DROP TABLE {table}")))
            .execute(&pool)
            .await
            .unwrap();
        count
    });
    assert_eq!(count, 2600);
}
