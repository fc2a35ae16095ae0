//! Situation: a good handler together with one that panics on certain records, one that hangs on some, and one that always fails.
//! Property: the good one handles every record at full speed, bad records get their attempts and their dead letters, counts,
//! metrics and API agree, and the process keeps running (G7, G14).
//! Needs: Kafka.
//! Mostly waits: for hung calls.
//! Command: `cargo xtask test --scenario misbehaving`

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::client::{Client, Outgoing, Read};
use e2e::kafka::Kafka;
use e2e::service::Service;
use e2e::unique;
use e2e::workdir::Workdir;

const RECORDS: u64 = 4_000;
const PANICS: u64 = 20;
const HANGS: u64 = 2;
const ATTEMPTS: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(120);

fn kind(number: u64) -> &'static str {
    match number {
        number if number % (RECORDS / PANICS) == 7 => "panic",
        number if number % (RECORDS / HANGS) == 11 => "hang",
        _ => "plain",
    }
}

/// The numbers of the records in a dead-letter topic.
fn numbers(letters: &[Read]) -> BTreeSet<u64> {
    letters
        .iter()
        .map(|letter| letter.text().parse().expect("a number"))
        .collect()
}

fn expected(of: &str) -> BTreeSet<u64> {
    (0..RECORDS)
        .filter(|number| of.is_empty() || kind(*number) == of)
        .collect()
}

struct Names {
    source: String,
    copy: String,
    group: String,
}

fn set_up(kafka: &Kafka, client: &Client) -> (Names, Workdir) {
    let names = Names {
        source: unique("mixed"),
        copy: unique("copy"),
        group: unique("group"),
    };
    client.create_topic(&names.source, 6);
    client.create_topic(&names.copy, 6);
    for handler in ["panics", "hangs", "errs"] {
        client.create_topic(&format!("{}.{handler}", names.source), 1);
    }
    let source = &names.source;
    let workdir = Workdir::new(kafka.bootstrap(), &names.group, "");
    workdir.plugins(&["relay", "misbehave"]);
    workdir.spec(
        "good",
        &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nconfig: {{ topic: {} }}\n", names.copy),
    );
    let bad = |name: &str, attempts: u64, more: &str, rule: &str| {
        let spec = format!(
            "plugin: misbehave\nversion: \"*\"\nroute: {{ topics: [{source}] }}\nworkers: 2\n{more}\
             retry: {{ max_attempts: {attempts}, backoff: {{ delay: 10ms }} }}\n\
             dead_letter: {{ topic: \"{{topic}}.{name}\" }}\n\
             config: {{ rules: [ {rule} ] }}\n"
        );
        workdir.spec(name, &spec);
    };
    // The restart limit is never reached: acked records follow each one that panics.
    let restart = "restart: { max_restarts: 1000, restart_window: 1m }\n";
    bad(
        "panics",
        ATTEMPTS,
        restart,
        "{ when: { header: kind, equals: panic }, do: panic }",
    );
    bad(
        "hangs",
        1,
        "timeout: 500ms\n",
        "{ when: { header: kind, equals: hang }, do: hang }",
    );
    bad(
        "errs",
        ATTEMPTS,
        "",
        "{ when: { one_in: 1 }, do: error, class: retryable }",
    );
    (names, workdir)
}

#[test]
fn the_good_handler_is_not_affected_by_the_bad_ones() {
    let kafka = Kafka::shared();
    let client = Client::new(kafka.bootstrap());
    let (names, workdir) = set_up(kafka, &client);
    let mut service = Service::ready(&workdir, &[]);
    let begun = Instant::now();
    client.produce(
        &names.source,
        (0..RECORDS).map(|number| {
            Outgoing::new(&format!("k{}", number % 500), number.to_string())
                .header("kind", kind(number))
        }),
    );
    service.wait_outcomes("good", "ack", RECORDS, DEADLINE);
    let good_after = begun.elapsed();
    service.wait_outcomes("panics", "dead_letter", PANICS, DEADLINE);
    service.wait_outcomes("hangs", "dead_letter", HANGS, DEADLINE);
    service.wait_outcomes("errs", "dead_letter", RECORDS, DEADLINE);
    assert!(
        good_after < Duration::from_secs(20),
        "the good handler took {good_after:?}"
    );
    client.wait_committed(&names.group, &names.source, DEADLINE);
    assert_eq!(service.get("/livez").expect("an answer").0, 200);

    check_counts(&service);
    assert!(
        service.stop(Duration::from_secs(60)).success(),
        "hung calls do not prevent the process from stopping"
    );
    check_letters(&client, &names);
    assert_eq!(client.count(&names.copy), RECORDS);
}

/// Checks that metrics and API agree with each other and with the expected counts.
fn check_counts(service: &Service) {
    let metrics = service.metrics().expect("metrics");
    let wanted = [
        ("good", RECORDS, 0, 0),
        ("panics", RECORDS - PANICS, PANICS, PANICS * ATTEMPTS),
        ("hangs", RECORDS - HANGS, HANGS, 0),
        ("errs", 0, RECORDS, 0),
    ];
    for (name, acks, letters, panics) in wanted {
        let of = |outcome: &str| {
            metrics.sum(
                "sluicegate_handler_outcomes_total",
                &[("handler", name), ("outcome", outcome)],
            ) as u64
        };
        assert_eq!(
            (of("ack"), of("dead_letter"), of("drop")),
            (acks, letters, 0),
            "{name}"
        );
        assert_eq!(
            metrics.sum("sluicegate_handler_panics_total", &[("handler", name)]) as u64,
            panics,
            "{name}"
        );
        let api = service
            .api(&format!("handlers/{name}"))
            .expect("the handler's page");
        assert_eq!(api["outcomes"]["ack"].as_u64(), Some(acks), "{api}");
        assert_eq!(
            api["outcomes"]["dead_letter"].as_u64(),
            Some(letters),
            "{api}"
        );
        assert_eq!(api["state"], "ACTIVE", "{api}");
        assert_eq!(api["last_error"].is_null(), name == "good", "{api}");
    }
    let retries = metrics.sum(
        "sluicegate_handler_outcomes_total",
        &[("handler", "errs"), ("outcome", "retry")],
    ) as u64;
    assert_eq!(retries, RECORDS * (ATTEMPTS - 1));
}

/// Checks that dead letters contain the record byte for byte and describe its failure.
fn check_letters(client: &Client, names: &Names) {
    for (handler, of, attempts) in [
        ("panics", "panic", ATTEMPTS),
        ("hangs", "hang", 1),
        ("errs", "", ATTEMPTS),
    ] {
        let letters = client.read(&format!("{}.{handler}", names.source));
        assert_eq!(numbers(&letters), expected(of), "{handler}");
        assert_eq!(
            letters.len(),
            expected(of).len(),
            "{handler}: one dead letter per record"
        );
        for letter in &letters {
            let number: u64 = letter.text().parse().expect("a number");
            assert_eq!(letter.key_text(), format!("k{}", number % 500));
            assert_eq!(
                letter.headers[0],
                ("kind".to_owned(), kind(number).as_bytes().to_vec())
            );
            let header = |name: &str| letter.header(&format!("__dlq.errors.{name}"));
            assert_eq!(header("topic").as_deref(), Some(&*names.source));
            assert_eq!(header("group").as_deref(), Some(&*names.group));
            assert_eq!(header("handler").as_deref(), Some(handler));
            assert_eq!(
                header("delivery.count"),
                Some(attempts.to_string()),
                "{handler} {:?}",
                letter.headers
            );
            assert!(
                header("offset")
                    .and_then(|text| text.parse::<u64>().ok())
                    .is_some(),
                "{:?}",
                letter.headers
            );
            assert!(
                header("reason").is_some() && header("partition").is_some(),
                "{:?}",
                letter.headers
            );
        }
    }
}
