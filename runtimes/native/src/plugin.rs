//! A loaded plugin: one user of the code with its digest.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluicegate_abi::plugin::{Create, Refusal};
use sluicegate_runtime::{
    CreateError, CreateRequest, HandlerInfo, HandlerInstance, LoadError, LoadedPlugin,
    PluginIdentity, VerifiedArtefact,
};

use crate::instance::{NativeInstance, ServicesSink};
use crate::loaded::{self, Living, SharedSlot, Use};

pub(crate) struct NativePlugin {
    used: Use,
    slot: SharedSlot,
    /// It does not count as a user any more.
    left: AtomicBool,
}

impl NativePlugin {
    pub(crate) fn load(
        artefact: &VerifiedArtefact,
        cache: &Path,
        generation: u64,
    ) -> Result<Self, LoadError> {
        Self::in_slot(loaded::slot(&artefact.sha256), artefact, cache, generation)
    }

    pub(crate) fn in_slot(
        slot: SharedSlot,
        artefact: &VerifiedArtefact,
        cache: &Path,
        generation: u64,
    ) -> Result<Self, LoadError> {
        let used = loaded::lock(&slot).join(&slot, artefact, cache, generation)?;
        Ok(Self {
            used,
            slot,
            left: AtomicBool::new(false),
        })
    }
}

impl LoadedPlugin for NativePlugin {
    fn identity(&self) -> &PluginIdentity {
        &self.used.code.identity
    }

    fn handlers(&self) -> &[HandlerInfo] {
        &self.used.code.handlers
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
        // Counted from before it is built: it may hang in there.
        let living = Living::of(&self.used.code);
        match self.used.code.module.create(sink, &create) {
            Ok(instance) => Ok(Box::new(NativeInstance::new(
                instance,
                request.services,
                living,
            ))),
            Err(Refusal::Config(text)) => Err(CreateError::Config(text)),
            Err(Refusal::Failed(text)) => Err(CreateError::Failed(text)),
            Err(Refusal::Unknown) => Err(CreateError::Unknown {
                name: request.handler.to_string(),
                known: self.identity().handlers.join(", "),
            }),
        }
    }

    fn shutdown(&self, deadline_ms: u64) {
        self.leave(deadline_ms);
    }
}

impl NativePlugin {
    fn leave(&self, deadline_ms: u64) {
        if !self.left.swap(true, Ordering::SeqCst) {
            loaded::lock(&self.slot).leave(&self.used.code, deadline_ms);
        }
    }
}

impl Drop for NativePlugin {
    fn drop(&mut self) {
        self.leave(loaded::DROPPED_DEADLINE_MS);
    }
}
