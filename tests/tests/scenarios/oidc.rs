//! Situation: a broker that accepts OAUTHBEARER tokens, and an OpenID Connect token endpoint behind TLS that issues short-lived ones
//! for the right secret.
//! Property: the service fetches tokens and renews them, records flow and are committed; with a wrong secret it reports the refusal,
//! is not ready, and shows the secret nowhere.
//! Needs: Kafka of its own.
//! Mostly waits: for tokens.
//! Command: `cargo xtask test --scenario oidc`

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use e2e::certificates::Certificates;
use e2e::client::{Client, Outgoing};
use e2e::kafka::{Kafka, KafkaOptions};
use e2e::service::Service;
use e2e::wait::wait_for;
use e2e::workdir::Workdir;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const RECORDS: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(60);
const SECRET: &str = "open-sesame-open";
/// Lifetime of a short-lived token; it is renewed after 80 % of it.
const SHORT_LIFETIME: Duration = Duration::from_secs(5);
/// Lifetime of the tokens with which the service stops.
const LONG_LIFETIME: Duration = Duration::from_secs(600);

/// A token endpoint over TLS: `POST` with the client's id and secret.
struct Endpoint {
    url: String,
    given: Arc<AtomicUsize>,
    /// Seconds that a token is valid.
    lifetime: Arc<AtomicU64>,
}

impl Endpoint {
    fn start(certificates: &Certificates) -> Self {
        let tls = server_config(certificates);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let given = Arc::new(AtomicUsize::new(0));
        let lifetime = Arc::new(AtomicU64::new(SHORT_LIFETIME.as_secs()));
        let (count, valid) = (Arc::clone(&given), Arc::clone(&lifetime));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (tls, count) = (Arc::clone(&tls), Arc::clone(&count));
                let seconds = valid.load(Ordering::SeqCst);
                // Does not wait for clients that disconnect.
                std::thread::spawn(move || answer(stream, tls, &count, seconds));
            }
        });
        let url = format!("https://localhost:{port}/token");
        Self {
            url,
            given,
            lifetime,
        }
    }

    /// Waits until every connection of every client has a long-lived token: in the moment in which one is authenticated again, the
    /// broker may close the connection on which the service leaves its group.
    fn settle(&self) {
        self.lifetime
            .store(LONG_LIFETIME.as_secs(), Ordering::SeqCst);
        let mut last = (0, Instant::now());
        // The broker ends the sessions of short-lived tokens with these. Some more of them can have been on their way.
        wait_for("long-lived tokens", DEADLINE, || {
            let given = self.given.load(Ordering::SeqCst);
            if given != last.0 {
                last = (given, Instant::now());
            }
            match last.1.elapsed() {
                quiet if quiet > SHORT_LIFETIME => Ok(()),
                quiet => Err(format!("{given} tokens, the last one {quiet:?} ago")),
            }
        });
    }
}

fn server_config(certificates: &Certificates) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&certificates.server_certificate)
        .expect("certificates")
        .collect::<Result<Vec<_>, _>>()
        .expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&certificates.server_key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a server");
    Arc::new(config)
}

fn answer(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    given: &AtomicUsize,
    seconds: u64,
) -> Option<()> {
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    let connection = ServerConnection::new(tls).ok()?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().ok()?
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = value.to_owned()
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let known = format!("Basic {}", STANDARD.encode(format!("service:{SECRET}")));
    let grants = String::from_utf8_lossy(&body).contains("grant_type=client_credentials");
    let (status, body) = match authorization == known && grants {
        true => {
            given.fetch_add(1, Ordering::SeqCst);
            (
                "200 OK",
                format!(
                    "{{\"access_token\": \"{}\", \"token_type\": \"Bearer\"}}",
                    token(seconds)
                ),
            )
        }
        false => (
            "401 Unauthorized",
            "{\"error\": \"invalid_client\", \"error_description\": \"who is that\"}".to_owned(),
        ),
    };
    let stream = reader.get_mut();
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

/// An unsigned token that is valid for some seconds, which the test's broker accepts.
fn token(seconds: u64) -> String {
    let now = e2e::since_epoch().as_secs();
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let claims = format!(
        "{{\"sub\": \"service\", \"iat\": {now}, \"exp\": {}}}",
        now + seconds
    );
    format!(
        "{}.{}.",
        part("{\"alg\": \"none\"}".to_owned()),
        part(claims)
    )
}

fn workdir(bootstrap: &str, group: &str, endpoint: &Endpoint, ca: &Path, secret: &str) -> Workdir {
    let workdir = Workdir::new(bootstrap, group, "");
    let config = std::fs::read_to_string(workdir.config()).expect("the config");
    let login = format!(
        "  client:\n    security.protocol: SASL_PLAINTEXT\n    sasl.mechanism: OAUTHBEARER\n    \
         sasl.oauthbearer.method: oidc\n    sasl.oauthbearer.client.id: service\n    \
         sasl.oauthbearer.client.secret: \"${{file:secret}}\"\n    \
         sasl.oauthbearer.token.endpoint.url: {}\n    https.ca.location: {}\nhandlers:\n",
        endpoint.url,
        ca.display()
    );
    workdir.write("sluicegate.yaml", &config.replace("handlers:\n", &login));
    workdir.write("secret", secret);
    workdir.plugins(&["relay"]);
    workdir.spec(
        "copy",
        "plugin: relay\nversion: \"*\"\nroute: { topics: [guarded] }\nconfig: { topic: copied }\n",
    );
    workdir
}

#[test]
fn tokens_are_fetched_and_renewed_and_a_wrong_secret_is_reported() {
    let kafka = Kafka::start(&KafkaOptions {
        secured: true,
        ..KafkaOptions::default()
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(folder.path()).expect("certificates");
    let endpoint = Endpoint::start(&certificates);
    let client = Client::new(kafka.bootstrap());
    client.create_topic("guarded", 2);
    client.create_topic("copied", 2);

    let good = workdir(
        &kafka.login(),
        "bearer",
        &endpoint,
        &certificates.ca,
        SECRET,
    );
    let mut service = Service::ready(&good, &[]);
    let produce = || {
        client.produce(
            "guarded",
            (0..RECORDS).map(|n| Outgoing::new(&n.to_string(), "v")),
        )
    };
    produce();
    service.wait_outcomes("copy", "ack", RECORDS, DEADLINE);
    let first = endpoint.given.load(Ordering::SeqCst);
    wait_for("renewed tokens", DEADLINE, || {
        match endpoint.given.load(Ordering::SeqCst) {
            // Two more each for the consumer and the producer.
            given if given >= first + 4 => Ok(()),
            given => Err(format!("{given} tokens, {first} at first")),
        }
    });
    produce();
    service.wait_outcomes("copy", "ack", 2 * RECORDS, DEADLINE);
    client.wait_committed("bearer", "guarded", DEADLINE);
    endpoint.settle();
    assert!(service.stop(DEADLINE).success());
    assert_eq!(client.count("copied"), 2 * RECORDS);
    assert!(
        !service.process().log().contains(SECRET),
        "the secret leaks"
    );

    let wrong = "not-the-secret-at-all";
    let bad = workdir(
        &kafka.login(),
        "intruder",
        &endpoint,
        &certificates.ca,
        wrong,
    );
    let mut service = Service::start(&bad, &[]);
    wait_for("the refusal to be reported", DEADLINE, || {
        match service.process().log().contains("who is that") {
            true => Ok(()),
            false => Err("not in the log".to_owned()),
        }
    });
    if service.process().exited().is_none() {
        assert_ne!(service.get("/readyz").map(|(status, _)| status), Ok(200));
        let status = service
            .get("/api/v1/status")
            .map_or_else(|error| error, |(_, body)| body);
        assert!(!status.contains(wrong), "the secret leaks");
    }
    assert!(!service.process().log().contains(wrong), "the secret leaks");
    assert!(client.committed("intruder", "guarded").is_empty());
}
