//! A loaded generation of a native plugin.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sluicegate_abi::host::Module;
use sluicegate_abi::plugin::Refusal;
use sluicegate_runtime::{
    CreateError, HandlerInfo, HandlerInstance, HostServices, LoadError, LoadedPlugin,
    PluginIdentity,
};

use crate::artefact::Artefact;
use crate::control::{ControlThread, NoAnswer};
use crate::instance::{NativeInstance, ServicesSink};
use crate::private_copy::PrivateCopy;
use crate::{image, refused, unreadable};

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
                let text = module.describe().map_err(|panic| {
                    (
                        "description",
                        format!("it panicked while describing itself: {panic}"),
                    )
                })?;
                Ok((module, text))
            })
        };
        let (module, text) = match opened {
            Ok(done) => {
                done.map_err(|(gate, reason): image::Refusal| refused(&path, gate, reason))?
            }
            Err(NoAnswer::Late) => {
                let seconds = LOAD_TIMEOUT.as_secs();
                return Err(refused(
                    &path,
                    "description",
                    format!("it did not describe itself within {seconds} s"),
                ));
            }
            Err(NoAnswer::Gone) => {
                return Err(refused(
                    &path,
                    "description",
                    "its control thread exited while it was loaded",
                ));
            }
        };
        let mut handlers =
            handlers(&text, &identity).map_err(|reason| refused(&path, "description", reason))?;
        for handler in &mut handlers {
            handler.takes_config &= module.reconfigures();
        }
        Ok(Self {
            identity,
            handlers,
            module,
            control,
            _copy: copy,
        })
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
    #[serde(default)]
    takes_config: bool,
}

fn handlers(text: &str, identity: &PluginIdentity) -> Result<Vec<HandlerInfo>, String> {
    let described: Description = serde_json::from_str(text).map_err(|error| {
        format!("its description cannot be read ({error}); build it with the Sluicegate SDK")
    })?;
    let handlers: Vec<HandlerInfo> = described
        .handlers
        .into_iter()
        .map(|handler| HandlerInfo {
            name: handler.name,
            config_schema: handler.config_schema.to_string(),
            keeps_key_state: handler.keeps_key_state,
            takes_batches: handler.takes_batches,
            takes_config: handler.takes_config,
        })
        .collect();
    let mut names: Vec<&str> = handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    if names != identity.handlers {
        return Err(format!(
            "it describes the handlers {names:?} but its descriptor lists {:?}; build it again",
            identity.handlers
        ));
    }
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!(
            "it exports `{}` twice; give each handler a unique name",
            twice[0]
        ));
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

    fn create(
        &self,
        handler: &str,
        instance_name: &str,
        config_json: &str,
        services: Arc<dyn HostServices>,
    ) -> Result<Box<dyn HandlerInstance>, CreateError> {
        let sink = Arc::new(ServicesSink(Arc::clone(&services)));
        match self
            .module
            .create(sink, handler, instance_name, config_json)
        {
            Ok(instance) => Ok(Box::new(NativeInstance::new(instance, services))),
            Err(Refusal::Config(text)) => Err(CreateError::Config(text)),
            Err(Refusal::Failed(text)) => Err(CreateError::Failed(text)),
            Err(Refusal::Unknown) => Err(CreateError::Unknown {
                name: handler.to_string(),
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
