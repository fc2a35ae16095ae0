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
}

fn one() -> u32 {
    1
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
        .map(|handler| HandlerInfo {
            name: handler.name,
            config_schema: handler.config_schema.to_string(),
            keeps_key_state: handler.keeps_key_state,
            takes_batches: handler.takes_batches,
            concurrency: handler.concurrency.max(1),
            takes_config: handler.takes_config,
        })
        .collect();
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
