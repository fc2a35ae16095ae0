//! How a plugin describes its handlers.

use std::time::Duration;

use serde::Deserialize;
use sluicegate_runtime::{HandlerInfo, PluginIdentity};

/// Timeout for opening a library and reading its description.
pub(crate) const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the description check fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptionError {
    #[error("it did not describe itself within {} s", LOAD_TIMEOUT.as_secs())]
    Late,
    #[error("its control thread exited while it was loaded")]
    ThreadExited,
    #[error("its description cannot be read ({0}); build it with the Sluicegate SDK")]
    Unreadable(#[from] serde_json::Error),
    #[error(
        "it describes the handlers {described:?} but its descriptor lists {listed:?}; build it again"
    )]
    OtherHandlers {
        described: Vec<String>,
        listed: Vec<String>,
    },
    #[error("it exports `{0}` twice; give each handler a unique name")]
    Duplicate(String),
    #[error(
        "its handler `{handler}` needs the service `{service}`, which this version of Sluicegate does not provide; run a later version"
    )]
    UnknownService { handler: String, service: String },
}

#[derive(Deserialize)]
struct Description {
    handlers: Vec<DescribedHandler>,
}

#[derive(Deserialize)]
struct DescribedHandler {
    name: String,
    config_schema: serde_json::Value,
    #[serde(default)]
    keeps_key_state: bool,
    #[serde(default)]
    takes_batches: bool,
    #[serde(default = "one")]
    concurrency: u32,
    #[serde(default)]
    takes_config: bool,
    #[serde(default = "unlimited")]
    max_batch: u32,
    #[serde(default)]
    services: Vec<String>,
}

fn one() -> u32 {
    1
}

fn unlimited() -> u32 {
    u32::MAX
}

impl DescribedHandler {
    fn info(self) -> Result<HandlerInfo, DescriptionError> {
        if let Some(service) = self.services.into_iter().next() {
            return Err(DescriptionError::UnknownService {
                handler: self.name,
                service,
            });
        }
        let mut info = HandlerInfo::new(&self.name, &self.config_schema.to_string());
        info.keeps_key_state = self.keeps_key_state;
        info.takes_batches = self.takes_batches;
        info.concurrency = self.concurrency.max(1);
        info.takes_config = self.takes_config;
        info.max_batch = self.max_batch.max(1);
        Ok(info)
    }
}

/// The handlers that the text describes, which must be those of the descriptor.
pub(crate) fn handlers(
    text: &str,
    identity: &PluginIdentity,
) -> Result<Vec<HandlerInfo>, DescriptionError> {
    let described: Description = serde_json::from_str(text)?;
    let handlers: Vec<HandlerInfo> = described
        .handlers
        .into_iter()
        .map(DescribedHandler::info)
        .collect::<Result<_, _>>()?;
    let mut names: Vec<&str> = handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    if names != identity.handlers {
        return Err(DescriptionError::OtherHandlers {
            described: names.into_iter().map(str::to_owned).collect(),
            listed: identity.handlers.clone(),
        });
    }
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(DescriptionError::Duplicate(twice[0].to_owned()));
    }
    Ok(handlers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(handler: &str) -> Result<HandlerInfo, String> {
        let identity = PluginIdentity {
            name: "p".into(),
            version: "1.0.0".into(),
            handlers: vec!["h".into()],
            abi: "1.0".into(),
            toolchain: "test".into(),
            sha256: "00".into(),
        };
        let text =
            format!(r#"{{"handlers":[{{"name":"h","config_schema":{{}}{handler}}}],"later":1}}"#);
        let handlers = handlers(&text, &identity).map_err(|error| error.to_string())?;
        Ok(handlers[0].clone())
    }

    #[test]
    fn a_handler_is_what_its_description_says_and_what_it_leaves_out_is_usual() {
        assert_eq!(described(""), Ok(HandlerInfo::new("h", "{}")));
        let info = described(
            r#","keeps_key_state":true,"takes_config":true,"takes_batches":true,"concurrency":0,"max_batch":7,"of_a_later_minor":[1]"#,
        )
        .expect("a good description");
        assert!(info.keeps_key_state && info.takes_config && info.takes_batches);
        assert_eq!((info.concurrency, info.max_batch), (1, 7));
    }

    #[test]
    fn a_handler_that_needs_an_unknown_service_is_refused() {
        let refused = described(r#","services":["state"]"#).expect_err("it is refused");
        assert!(
            refused.contains("its handler `h` needs the service `state`"),
            "{refused}"
        );
        assert!(described(r#","services":[]"#).is_ok());
    }
}
