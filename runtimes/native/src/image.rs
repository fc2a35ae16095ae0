//! Opens a private copy as a library, and checks that its bytes are those that were read and that its layout matches.
//!
//! `abi_stable`'s own loading functions are not used: they keep one module per type for the whole process, leak memory,
//! and store pointers into libraries in global maps. Its header and layout check are used, with temporary globals.

use std::sync::atomic::{AtomicU32, Ordering};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    CheckingGlobals, check_layout_compatibility_with_globals,
};
use abi_stable::library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sluicegate_abi::descriptor::DESCRIPTOR_SYMBOL;
use sluicegate_abi::host::{InstanceError, Module};
use sluicegate_abi::module::PluginModule_Ref;

use crate::artefact::{Artefact, Extent};
use crate::private_copy::PrivateCopy;

/// Maximum number of libraries that a process maps in its lifetime; see the crate documentation.
pub const MAX_LOADS: u32 = 512;

static LOADS: AtomicU32 = AtomicU32::new(0);

/// Why a copy is not usable as a library. Errors of `abi_stable` point into the library, so their texts are kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(
        "this process has loaded {MAX_LOADS} different native plugins, and the system's thread-local keys for them are never \
         freed; restart the service"
    )]
    TooManyLoads,
    #[error("the system cannot load it: {}", reason(.0))]
    System(#[source] libloading::Error),
    #[error("its descriptor is missing after loading: {}", reason(.0))]
    NoDescriptor(#[source] libloading::Error),
    #[error(
        "the library in memory is not the file that was verified ({0}): the system loaded another one; restart the \
         service"
    )]
    OtherImage(#[from] Difference),
    #[error("the library has no abi_stable root module; build it with `export_handler!`")]
    NoModule,
    #[error("its abi_stable header does not match: {0}")]
    Header(String),
    #[error("its root module has no layout information; build it with `export_handler!`")]
    NoLayout,
    #[error(
        "its type layout differs from this service's, although the ABI version is the same; build it with the SDK of \
         this service's release ({0})"
    )]
    Layout(String),
    #[error("its root module failed to initialize: {0}")]
    Initialize(String),
    #[error("it panicked while describing itself: {0}")]
    Describe(#[source] InstanceError),
}

impl ImageError {
    /// Whether the image is mapped and no attempt with it can succeed.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::TooManyLoads
                | Self::System(_)
                | Self::OtherImage(Difference::Unknown(_))
                | Self::Describe(_)
        )
    }

    /// The failed check.
    pub(crate) fn gate(&self) -> &'static str {
        match self {
            Self::TooManyLoads => "limit",
            Self::Layout(_) => "layout",
            Self::Describe(_) => "description",
            _ => "header",
        }
    }
}

/// The system's own words, which `libloading` has as the source of its error.
fn reason(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// How an image differs from the file that was hashed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Difference {
    #[error(transparent)]
    Unknown(#[from] std::io::Error),
    #[error("the copy is not mapped there")]
    NotMapped,
    #[error("its bytes differ")]
    Bytes,
}

/// Opens the copy, checks it and returns its root module. Runs plugin code: call it on the control thread.
pub(crate) fn open(artefact: &Artefact, copy: &PrivateCopy) -> Result<Module, ImageError> {
    count_load(&LOADS)?;
    // SAFETY: opening runs the file's initialisers. Its descriptor was built by the SDK's macro, and installing a native
    // plugin means trusting it with the process; this kind offers no isolation from hostile code.
    let library = unsafe { Library::open(Some(&copy.path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| {
        // Nothing is mapped and no initialiser has run. A library that it needs may be installed later.
        LOADS.fetch_sub(1, Ordering::Relaxed);
        ImageError::System(error)
    })?;
    // Never unmapped, even if a later check fails: initialisers may have left pointers to it.
    let library = std::mem::ManuallyDrop::new(library);
    same_bytes(&library, artefact, copy)?;
    let layout_checked = root_module(&library)?;
    // SAFETY: its layout was just checked, and the image is never unmapped.
    Ok(unsafe { Module::new(layout_checked) })
}

/// Counts a load; fails at the limit.
fn count_load(loads: &AtomicU32) -> Result<(), ImageError> {
    let one_more = |n: u32| (n < MAX_LOADS).then_some(n + 1);
    match loads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
        Ok(_) => Ok(()),
        Err(_) => Err(ImageError::TooManyLoads),
    }
}

/// The mapped descriptor and code are those of the file that was hashed (G11).
fn same_bytes(
    library: &Library,
    artefact: &Artefact,
    copy: &PrivateCopy,
) -> Result<(), ImageError> {
    let symbol = format!("{DESCRIPTOR_SYMBOL}\0");
    // SAFETY: the symbol is only taken for its address.
    let at = unsafe { library.get::<*const u8>(symbol.as_bytes()) }
        .map_err(ImageError::NoDescriptor)?
        .as_raw_ptr()
        .cast::<u8>()
        .cast_const();
    let base = at.wrapping_sub(artefact.descriptor.address);
    let mapped = Mapped::of(copy).map_err(Difference::Unknown)?;
    for &Extent {
        address,
        offset,
        len,
    } in std::iter::once(&artefact.descriptor).chain(&artefact.code)
    {
        let start = base.wrapping_add(address);
        if !mapped.holds(start as usize, len) {
            return Err(Difference::NotMapped.into());
        }
        // SAFETY: the range is mapped readable from the private copy, which is never written or unmapped.
        let bytes = unsafe { std::slice::from_raw_parts(start, len) };
        if bytes != &artefact.bytes[offset..][..len] {
            return Err(Difference::Bytes.into());
        }
    }
    Ok(())
}

/// Address ranges at which a file is mapped into this process.
struct Mapped(Vec<std::ops::Range<usize>>);

impl Mapped {
    /// Reads `/proc/self/maps`: `start-end perms offset device inode path`.
    fn of(copy: &PrivateCopy) -> std::io::Result<Self> {
        let name = copy.path.file_name().unwrap_or_default().to_string_lossy();
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let ranges = maps.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let readable = words.next()?.starts_with('r');
            // Not by inode: on an overlay file system it can differ between the map and the file's metadata.
            let same = line.ends_with(&*name);
            let at = |hex: &str| usize::from_str_radix(hex, 16).ok();
            (readable && same).then_some(at(start)?..at(end)?)
        });
        Ok(Self(ranges.collect()))
    }

    /// Whether contiguous mappings cover the range. The system lists mappings by address.
    fn holds(&self, start: usize, len: usize) -> bool {
        let mut reached = start;
        for range in &self.0 {
            if range.contains(&reached) {
                reached = range.end;
            }
        }
        start.checked_add(len).is_some_and(|end| reached >= end)
    }
}

fn root_module(library: &Library) -> Result<PluginModule_Ref, ImageError> {
    // SAFETY: a symbol of this name is a static of `abi_stable`'s header type, whose first bytes are a magic string
    // that `upgrade` checks before anything else of it is used.
    let reference: AbiHeaderRef =
        *unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) }
            .map_err(|_| ImageError::NoModule)?;
    let loaded = reference
        .upgrade()
        .map_err(|error| ImageError::Header(first_line(&error.to_string()).to_owned()))?;
    let theirs = loaded.layout().ok_or(ImageError::NoLayout)?;
    let ours = <PluginModule_Ref as StableAbi>::LAYOUT;
    // What the plugin knows must be a part of what this service has: a plugin of an earlier minor lacks functions, and one of a later
    // minor was refused by its descriptor. The errors point into the library, so they are converted to text immediately.
    check_layout_compatibility_with_globals(theirs, ours, &CheckingGlobals::new())
        .map_err(|error| ImageError::Layout(first_difference(&error.to_string())))?;
    // SAFETY: the layout was checked above.
    unsafe { loaded.unchecked_layout::<PluginModule_Ref>() }
        .map_err(|error| ImageError::Initialize(first_line(&error.to_string()).to_owned()))
}

fn first_line(text: &str) -> &str {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("no reason given")
}

/// Extracts the first difference from the layout check's long report.
fn first_difference(report: &str) -> String {
    let mut lines = report
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    match lines.find(|line| line.starts_with("Error:") || line.starts_with("error:")) {
        Some(error) => {
            let rest: Vec<&str> = lines.take(4).collect();
            format!("{error} {}", rest.join(" "))
        }
        None => first_line(report).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_counted_and_refused_at_the_limit() {
        let loads = AtomicU32::new(MAX_LOADS - 1);
        count_load(&loads).unwrap();
        let error = count_load(&loads).unwrap_err();
        assert_eq!(error.gate(), "limit");
        let reason = error.to_string();
        assert!(
            reason.contains("loaded 512 different native plugins") && reason.contains("restart"),
            "{reason}"
        );
    }
}
