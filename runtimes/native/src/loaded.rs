//! Code by the digest of its file: mapped once, kept for the life of the process, and used by one generation after another.
//!
//! ```text
//!  Absent ─► Pending (it took too long) ─► Mapped ─► Loaded ◄─► used by any number of plugins
//!    ▲          └───────── Refused for good              │ its shutdown hung or panicked
//!    └───────────────────────────────────────────────────┘
//! ```
//!
//! An image is never unmapped and costs a part of what the process has for its lifetime, so a handler that is refused for weeks, or
//! replaced back and forth between two builds, must not cost one per attempt (ADR 0039). What is shared with the image is its
//! static state: it ends only once it has no user and none of its instances is left, and a new user waits for that.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sluicegate_abi::host::{self, Module};
use sluicegate_runtime::{HandlerInfo, LoadError, PluginIdentity, VerifiedArtefact};

use crate::artefact::Artefact;
use crate::control::{Answer, Answered, ControlThread, NoAnswer};
use crate::description::{DescriptionError, LOAD_TIMEOUT, handlers};
use crate::image::{self, ImageError};
use crate::private_copy::PrivateCopy;
use crate::{refused, unreadable};

static SLOTS: Mutex<BTreeMap<String, SharedSlot>> = Mutex::new(BTreeMap::new());

/// The place of the code with one digest. Its lock is held while that code is opened or shut down.
pub(crate) type SharedSlot = Arc<Mutex<Slot>>;

/// Loaded code, and who uses it.
pub(crate) struct Code {
    pub(crate) identity: PluginIdentity,
    pub(crate) handlers: Vec<HandlerInfo>,
    pub(crate) module: Module,
    /// Plugins that use it; it grows only under the lock of its slot.
    users: AtomicU32,
    /// Its living instances, on any thread.
    instances: AtomicU32,
    /// It has had an instance since it was last shut down: only then there is something to shut down.
    is_used: AtomicBool,
    slot: Weak<Mutex<Slot>>,
}

/// Deadline of a shutdown for which none is set: the last user was dropped without it, as after a refusal, or was gone when the last
/// instance ended, on a thread that had hung.
pub(crate) const DROPPED_DEADLINE_MS: u64 = 1_000;

/// Counts an instance of the code as long as it lives.
pub(crate) struct Living(Arc<Code>);

impl Living {
    pub(crate) fn of(code: &Arc<Code>) -> Self {
        code.instances.fetch_add(1, Ordering::SeqCst);
        code.is_used.store(true, Ordering::SeqCst);
        Self(Arc::clone(code))
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        let Self(code) = self;
        let others = code.instances.fetch_sub(1, Ordering::SeqCst) - 1;
        if others == 0
            && code.users.load(Ordering::SeqCst) == 0
            && let Some(slot) = code.slot.upgrade()
        {
            lock(&slot).end_unused(code, DROPPED_DEADLINE_MS);
        }
    }
}

#[derive(Default)]
pub(crate) struct Slot {
    state: State,
    /// The file from which it is mapped, as long as the code has a user.
    copy: Weak<PrivateCopy>,
}

/// The opened module with its description, or why there is none.
type Opened = Result<(Module, Result<String, host::InstanceError>), ImageError>;

#[derive(Default)]
enum State {
    /// Nothing that can be used is mapped.
    #[default]
    Absent,
    /// It is being opened or described on an abandoned thread.
    Pending(PluginIdentity, Answer<Opened>),
    /// It has not described itself yet.
    Mapped(PluginIdentity, Module),
    Loaded(Arc<Code>),
    /// Mapped, and no attempt with these bytes can succeed in this process.
    Refused {
        gate: &'static str,
        why: String,
    },
}

/// A use of loaded code.
pub(crate) struct Use {
    pub(crate) code: Arc<Code>,
    /// Kept so that a panic's backtrace finds the file.
    _copy: Option<Arc<PrivateCopy>>,
}

/// The slot of a digest.
pub(crate) fn slot(sha256: &str) -> SharedSlot {
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(slots.entry(sha256.to_owned()).or_default())
}

pub(crate) fn lock(slot: &SharedSlot) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Adds a user of the code; reads and opens the file only if the code is not loaded yet.
    ///
    /// `slot` is this one, which the code refers to.
    pub(crate) fn join(
        &mut self,
        slot: &SharedSlot,
        artefact: &VerifiedArtefact,
        cache: &Path,
        generation: u64,
    ) -> Result<Use, LoadError> {
        let path = &artefact.path;
        if let State::Refused { gate, why } = &self.state {
            return Err(refused(path, gate, why.clone()));
        }
        let control = || {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            ControlThread::start(&format!("{name}-{generation}"))
                .map_err(|error| unreadable(path, format!("cannot start a thread: {error}")))
        };
        let mut copy = self.copy.upgrade();
        let code = match std::mem::take(&mut self.state) {
            State::Loaded(code) => {
                self.state = State::Loaded(Arc::clone(&code));
                code
            }
            State::Pending(identity, answer) => {
                self.take(slot, path, identity, Ok(answer.poll()))?
            }
            State::Mapped(identity, module) => {
                self.state = State::Mapped(identity.clone(), module);
                let describe = move || Ok((module, module.describe()));
                let answered = control()?.begin(LOAD_TIMEOUT, describe);
                self.take(slot, path, identity, answered)?
            }
            State::Absent | State::Refused { .. } => {
                let control = control()?;
                let read = Artefact::read_verified(artefact)?;
                let identity = read.identity.clone();
                let written = PrivateCopy::write(cache, &read.bytes, &identity.sha256, generation)?;
                let written = Arc::new(written);
                self.copy = Arc::downgrade(&written);
                copy = Some(Arc::clone(&written));
                let open = move || {
                    let module = image::open(&read, &written)?;
                    Ok((module, module.describe()))
                };
                let answered = control.begin(LOAD_TIMEOUT, open);
                self.take(slot, path, identity, answered)?
            }
        };
        code.users.fetch_add(1, Ordering::SeqCst);
        Ok(Use { code, _copy: copy })
    }

    /// Takes over what opening it has come to.
    fn take(
        &mut self,
        slot: &SharedSlot,
        path: &Path,
        identity: PluginIdentity,
        answered: Result<Answered<Opened>, NoAnswer>,
    ) -> Result<Arc<Code>, LoadError> {
        let undescribed = |error: DescriptionError| refused(path, "description", error);
        let (module, text) = match answered {
            Ok(Answered::Now(Ok(opened))) => opened,
            Ok(Answered::Now(Err(error))) => {
                let (gate, why) = (error.gate(), error.to_string());
                if error.is_final() {
                    self.state = State::Refused { gate, why };
                }
                return Err(refused(path, gate, error));
            }
            Ok(Answered::Late(answer)) => {
                self.state = State::Pending(identity, answer);
                return Err(undescribed(DescriptionError::Late));
            }
            Ok(Answered::Gone) | Err(_) => {
                let error = DescriptionError::ThreadExited;
                let why = error.to_string();
                let gate = "description";
                self.state = State::Refused { gate, why };
                return Err(undescribed(error));
            }
        };
        // A description costs nothing that lasts: one that fails is asked for again.
        self.state = State::Mapped(identity.clone(), module);
        let text = text.map_err(|panic| {
            let panic = ImageError::Describe(panic);
            refused(path, panic.gate(), panic)
        })?;
        let code = Arc::new(Code {
            handlers: handlers(&text, &identity).map_err(undescribed)?,
            identity,
            module,
            users: AtomicU32::new(0),
            instances: AtomicU32::new(0),
            is_used: AtomicBool::new(false),
            slot: Arc::downgrade(slot),
        });
        self.state = State::Loaded(Arc::clone(&code));
        Ok(code)
    }

    /// Removes a user, and shuts the code down if it was the last one and no instance is left.
    pub(crate) fn leave(&mut self, code: &Arc<Code>, deadline_ms: u64) {
        code.users.fetch_sub(1, Ordering::SeqCst);
        self.end_unused(code, deadline_ms);
    }

    /// Shuts the code down if it has no user and no instance. An instance without a user is on a thread that was abandoned in a call: its
    /// code is still running, and the end of that instance comes here too.
    fn end_unused(&mut self, code: &Arc<Code>, deadline_ms: u64) {
        let is_in_use = [&code.users, &code.instances];
        if is_in_use
            .iter()
            .any(|count| count.load(Ordering::SeqCst) > 0)
            || !code.is_used.swap(false, Ordering::SeqCst)
        {
            return;
        }
        let module = code.module;
        let timeout = Duration::from_millis(deadline_ms).saturating_add(Duration::from_secs(1));
        let control = ControlThread::start(&format!("{}-end", code.identity.name));
        let ended = control.map_or(Err(NoAnswer::Gone), |control| {
            control.run(timeout, move || module.shutdown(deadline_ms))
        });
        let is_current = matches!(&self.state, State::Loaded(loaded) if Arc::ptr_eq(loaded, code));
        if ended != Ok(true) && is_current {
            // It may be running, or half ended: the next user gets an image of its own.
            self.state = State::Absent;
        }
    }
}

#[cfg(test)]
mod tests;
