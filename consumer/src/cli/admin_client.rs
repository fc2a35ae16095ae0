//! Client of the running service's admin HTTP API.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sluicegate_admin::http::ErrorBody;
use sluicegate_config::escape::escape;

use super::failure::Failure;

/// Longer than the server's own limit, so that its error message arrives first.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The argument that locates the service.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Admin {
    /// Address of the running service's admin HTTP API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9600")]
    admin: String,
    /// The command that starts the server, for the error message.
    #[arg(skip = "sluicegate run")]
    starts: &'static str,
}

impl Admin {
    /// The server at `admin`, started by the command `starts`.
    pub(super) fn at(admin: &str, starts: &'static str) -> Self {
        Self {
            admin: admin.to_owned(),
            starts,
        }
    }

    /// Sends a GET and decodes the response.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(agent().get(self.url(path)?).call())
    }

    /// Sends a PUT of `body` and decodes the response.
    pub(super) fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answer(agent().put(self.url(path)?).send_json(body))
    }

    /// Sends a POST without a body and decodes the response.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(agent().post(self.url(path)?).send_empty())
    }

    fn url(&self, path: &str) -> Result<String, Failure> {
        let base = self.admin.trim_end_matches('/');
        if !base.starts_with("http://") {
            return Err(Failure::bad_input(format!(
                "`--admin {}` is not an address; expected a URL such as http://127.0.0.1:9600",
                self.admin
            )));
        }
        Ok(format!("{base}{path}"))
    }

    fn answer<T: DeserializeOwned>(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Failure> {
        let at = &self.admin;
        let mut response = response.map_err(|error| {
            Failure::other(format!(
                "no service answers at {at} ({error}); start it with `{}`, or set --admin",
                self.starts
            ))
        })?;
        let status = response.status();
        let text = response.body_mut().read_to_string();
        let text = text.map_err(|error| {
            Failure::other(format!("the response of {at} was cut off: {error}"))
        })?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| {
                Failure::other(format!(
                    "the response of {at} does not match this version of the service: {error}"
                ))
            });
        }
        let message = match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) => escape(&body.error.message).into_owned(),
            Err(_) => format!("{at} answered {status}; is it a sluicegate service?"),
        };
        Err(Failure::other(message))
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        // The service usually runs on this host, which a proxy from the environment cannot reach.
        .proxy(None)
        .build();
    config.into()
}

/// Percent-encodes `text` as one path segment of a URL.
pub(super) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}
