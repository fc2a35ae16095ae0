//! Runs native plugins: shared libraries built with the Sluicegate SDK.
//!
//! ```text
//!  file ─► artefact (bytes, hash, descriptor) ─► private copy ─► control thread: dlopen ─► identity of the image
//!             checks: manifest, descriptor                         checks: header, layout, description
//!                                                                            │
//!  worker thread: create ─► instance ─► handle … drop  ◄──────────── loaded generation
//! ```
//!
//! - No code of a file runs before its descriptor has been read from its bytes and checked; the bytes that run are the
//!   bytes that were hashed (G11), and those that the service has accepted: they are compared before they are mapped.
//! - The library is opened, described and shut down on a control thread; instances live on the worker threads that create
//!   them.
//! - An image is never unmapped: threads that ran its code may still hold its thread-local destructors. Memory of
//!   instances is freed. Each image can cost a thread-local key, of which a process has about 1,000, so their number is
//!   limited to [`MAX_LOADS`]. Files with the same digest are one image, also one after another, and share its static
//!   state.

mod artefact;
pub mod conformance;
mod control;
mod description;
mod image;
mod instance;
mod loaded;
mod manifest;
mod plugin;
mod private_copy;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use sluicegate_runtime::{
    HandlerRuntime, LoadError, LoadedPlugin, PluginIdentity, VerifiedArtefact,
};

pub use image::MAX_LOADS;

/// The runtime of native plugins.
#[derive(Clone, Copy, Debug, Default)]
pub struct NativeRuntime;

impl HandlerRuntime for NativeRuntime {
    fn kind(&self) -> &'static str {
        "native"
    }

    fn recognises(&self, path: &Path) -> bool {
        artefact::is_native_library(path)
    }

    fn inspect(&self, path: &Path) -> Result<PluginIdentity, LoadError> {
        Ok(artefact::Artefact::read(path)?.identity)
    }

    fn load(
        &self,
        artefact: &VerifiedArtefact,
        cache: &Path,
        generation: u64,
    ) -> Result<Arc<dyn LoadedPlugin>, LoadError> {
        let plugin = plugin::NativePlugin::load(artefact, cache, generation)?;
        Ok(Arc::new(plugin))
    }
}

/// A failed check.
fn refused(
    path: &Path,
    gate: &'static str,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> LoadError {
    LoadError::Refused {
        path: path.display().to_string(),
        gate,
        source: source.into(),
    }
}

/// A file or folder that cannot be read or written.
fn unreadable(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> LoadError {
    LoadError::Unreadable {
        path: path.display().to_string(),
        source: source.into(),
    }
}
