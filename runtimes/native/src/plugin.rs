//! A loaded generation of a native plugin.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sluicegate_abi::host::Module;
use sluicegate_abi::plugin::{Create, Refusal};
use sluicegate_runtime::{
    CreateError, CreateRequest, HandlerInfo, HandlerInstance, LoadError, LoadedPlugin,
    PluginIdentity,
};

use crate::artefact::Artefact;
use crate::control::{ControlThread, NoAnswer};
use crate::image::{self, ImageError};
use crate::instance::{NativeInstance, ServicesSink};
use crate::private_copy::PrivateCopy;
use crate::{refused, unreadable};

/// Timeout for opening a library and reading its description.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct NativePlugin {
    identity: PluginIdentity,
    handlers: Vec<HandlerInfo>,
    module: Module,
    control: ControlThread,
    /// Kept so that a panic's backtrace finds the file.
    _copy: Arc<PrivateCopy>,
}

impl NativePlugin {
    pub(crate) fn load(
        artefact: Artefact,
        cache: &Path,
        generation: u64,
    ) -> Result<Self, LoadError> {
        let path = artefact.path.clone();
        let identity = artefact.identity.clone();
        let copy = PrivateCopy::write(cache, &artefact.bytes, &identity.sha256, generation)?;
        let copy = Arc::new(copy);
        let name = format!("{}-{generation}", identity.name);
        let control = ControlThread::start(&name)
            .map_err(|error| unreadable(&path, format!("cannot start a thread: {error}")))?;
        let opened = {
            let copy = Arc::clone(&copy);
            control.run(LOAD_TIMEOUT, move || {
                let module = image::open(&artefact, &copy)?;
                let text = module.describe().map_err(ImageError::Describe)?;
                Ok((module, text))
            })
        };
        let undescribed = |error: DescriptionError| refused(&path, "description", error);
        let (module, text) = opened
            .map_err(|no_answer| undescribed(no_answer.into()))?
            .map_err(|error: ImageError| refused(&path, error.gate(), error))?;
        let handlers = handlers(&text, &identity).map_err(undescribed)?;
        Ok(Self {
            identity,
            handlers,
            module,
            control,
            _copy: copy,
        })
    }
}

/// Why the description check fails.
#[derive(Debug, thiserror::Error)]
enum DescriptionError {
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

impl From<NoAnswer> for DescriptionError {
    fn from(no_answer: NoAnswer) -> Self {
        match no_answer {
            NoAnswer::Late => Self::Late,
            NoAnswer::Gone => Self::ThreadExited,
        }
    }
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

fn handlers(text: &str, identity: &PluginIdentity) -> Result<Vec<HandlerInfo>, DescriptionError> {
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

impl LoadedPlugin for NativePlugin {
    fn identity(&self) -> &PluginIdentity {
        &self.identity
    }

    fn handlers(&self) -> &[HandlerInfo] {
        &self.handlers
    }

    fn create(&self, request: CreateRequest<'_>) -> Result<Box<dyn HandlerInstance>, CreateError> {
        let sink = Arc::new(ServicesSink(Arc::clone(&request.services)));
        let create = Create {
            handler: request.handler,
            instance: request.name,
            config: request.config_json,
            worker: request.worker,
            generation: request.generation,
        };
        match self.module.create(sink, &create) {
            Ok(instance) => Ok(Box::new(NativeInstance::new(instance, request.services))),
            Err(Refusal::Config(text)) => Err(CreateError::Config(text)),
            Err(Refusal::Failed(text)) => Err(CreateError::Failed(text)),
            Err(Refusal::Unknown) => Err(CreateError::Unknown {
                name: request.handler.to_string(),
                known: self.identity.handlers.join(", "),
            }),
        }
    }

    fn shutdown(&self, deadline_ms: u64) {
        let module = self.module;
        let timeout = Duration::from_millis(deadline_ms).saturating_add(Duration::from_secs(1));
        // A plugin that does not return keeps its thread; nothing else can be done here.
        let _ = self
            .control
            .run(timeout, move || module.shutdown(deadline_ms));
    }
}
