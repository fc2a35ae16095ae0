//! Asks the running service over its admin HTTP.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sluicegate_config::escape::escape;

use super::failure::Failure;
use crate::admin::http::ErrorBody;

/// Longer than the server's own limit, so that its words arrive.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The argument that finds the service.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Admin {
    /// Address of the running service's admin HTTP
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9600")]
    admin: String,
    /// The command that starts what answers there.
    #[arg(skip = "sluicegate run")]
    starts: &'static str,
}

impl Admin {
    /// The one at `admin`, which `starts` starts.
    pub(super) fn at(admin: &str, starts: &'static str) -> Self {
        Self {
            admin: admin.to_owned(),
            starts,
        }
    }

    /// The answer to a GET.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(agent().get(self.url(path)?).call())
    }

    /// The answer to a PUT of `body`.
    pub(super) fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.answer(agent().put(self.url(path)?).send_json(body))
    }

    /// The answer to a POST without a body.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(agent().post(self.url(path)?).send_empty())
    }

    fn url(&self, path: &str) -> Result<String, Failure> {
        let base = self.admin.trim_end_matches('/');
        if !base.starts_with("http://") {
            return Err(Failure::bad_input(format!(
                "`--admin {}` is no address; it looks like http://127.0.0.1:9600",
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
        let text =
            text.map_err(|error| Failure::other(format!("the answer of {at} broke off: {error}")))?;
        if status.is_success() {
            return serde_json::from_str(&text).map_err(|error| {
                Failure::other(format!(
                    "{at} does not answer like this version of the service: {error}"
                ))
            });
        }
        let message = match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) => escape(&body.error.message).into_owned(),
            Err(_) => format!("{at} answers {status}; is it a sluicegate service?"),
        };
        Err(Failure::other(message))
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        // A proxy from the environment does not lead to this machine's own service.
        .proxy(None)
        .build();
    config.into()
}

/// A text as one segment of a URL's path.
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
