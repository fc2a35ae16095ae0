//! A plugin file as bytes: its identity and code ranges, read without running any of its code.

use std::io::Read;
use std::path::Path;

use object::elf::{PF_W, PF_X};
use object::{Architecture, Object, ObjectSegment, ObjectSymbol, SegmentFlags};
use sha2::{Digest, Sha256};
use sluicegate_abi::descriptor::{
    ABI_MAJOR, ABI_MINOR, ABI_STABLE_MINOR, DESCRIPTOR_SYMBOL, FIRST_SIZE, Facts, TARGET,
};
use sluicegate_runtime::{LoadError, PluginIdentity, VerifiedArtefact};

use crate::manifest::{Manifest, ManifestError};
use crate::{refused, unreadable};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Maximum size of a plugin file: it is read into memory.
const MAX_BYTES: u64 = 512 << 20;

/// The processor that this service was built for, where it is checked.
const OURS: Option<Architecture> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64"))
{
    Some(Architecture::X86_64)
} else if cfg!(all(target_arch = "aarch64", target_pointer_width = "64")) {
    Some(Architecture::Aarch64)
} else {
    None
};

/// A plugin file that passed the checks that need no code to run.
pub(crate) struct Artefact {
    pub(crate) bytes: Vec<u8>,
    pub(crate) identity: PluginIdentity,
    /// Location of the descriptor once the file is mapped.
    pub(crate) descriptor: Extent,
    /// The executable segments.
    pub(crate) code: Vec<Extent>,
}

/// Why the descriptor check fails; only another file can pass it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorError {
    #[error(
        "it has {have} bytes, more than {} MiB; strip its debug information, as with `strip --strip-debug`",
        MAX_BYTES >> 20
    )]
    TooLarge { have: u64 },
    #[error(
        "it is not a shared library (not an ELF file); name the lib*.so that the build produced"
    )]
    NotElf,
    #[error("the file is truncated or damaged ({0}); copy or build it again")]
    Damaged(#[source] object::Error),
    #[error("it is an ELF file but not a shared library; build the crate as `cdylib`")]
    NotShared,
    #[error(
        "the library has no symbol {DESCRIPTOR_SYMBOL}; export a handler with `export_handler!` of the Sluicegate SDK"
    )]
    NoSymbol,
    #[error("{DESCRIPTOR_SYMBOL} points outside the file; it is damaged, build it again")]
    SymbolOutside,
    #[error("it has writable code segments; link it without text relocations")]
    WritableCode,
    #[error(
        "the file is truncated: it has {have} bytes, but its contents extend further; copy or build it again"
    )]
    Truncated { have: u64 },
    #[error(transparent)]
    Content(#[from] sluicegate_abi::descriptor::DescriptorError),
    #[error(
        "it was built for handler ABI {theirs}, this service supports {ABI_MAJOR}.{ABI_MINOR}; build it with the SDK of \
         this service's release"
    )]
    OtherAbi { theirs: String },
    #[error(
        "it was built for handler ABI {theirs}, which is newer than this service's {ABI_MAJOR}.{ABI_MINOR}; update the \
         service, or build it with an older SDK"
    )]
    NewerAbi { theirs: String },
    #[error(
        "it was built with abi_stable 0.{theirs}, this service has 0.{ABI_STABLE_MINOR}; build it with the SDK of this \
         service's release"
    )]
    AbiStable { theirs: u16 },
    #[error(
        "it was built with panic=abort, so a panic in it would end the service; build it with panic=unwind"
    )]
    PanicAbort,
    #[error("it was built for {theirs}, this service runs on {TARGET}; build it for {TARGET}")]
    OtherTarget { theirs: String },
    #[error(
        "it contains code for another processor ({theirs}), this service runs on {TARGET}; build it for {TARGET}"
    )]
    OtherProcessor { theirs: String },
    #[error("it exports no handler; name at least one in `export_handler!`")]
    NoHandler,
}

/// A range of the file, with its address relative to the library's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) address: usize,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// Whether the file has a library's name, `lib*.so` or `*.so`. Files that are not complete yet, or not meant to be used, have others:
/// `.libx.so.AbC123` of rsync, `libx.so~` of editors, `libx.so.part`.
pub(crate) fn is_native_library(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden && path.extension().is_some_and(|ext| ext == "so")
}

/// Opens a regular file. Other file types are refused before opening, because opening a pipe would block.
pub(crate) fn open_regular(path: &Path) -> std::io::Result<std::fs::File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    std::fs::File::open(path)
}

impl Artefact {
    /// Reads the file and runs the checks that need no code to run.
    pub(crate) fn read(path: &Path) -> Result<Self, LoadError> {
        let manifest = manifest(path)?;
        let bytes = read(path)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        Self::check(path, bytes, sha256, manifest)
    }

    /// Reads the file again, to be loaded: refused unless it has the bytes that were accepted.
    pub(crate) fn read_verified(artefact: &VerifiedArtefact) -> Result<Self, LoadError> {
        let path = &artefact.path;
        let bytes = read(path)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        if sha256 != artefact.sha256 {
            return Err(LoadError::Changed {
                path: path.display().to_string(),
            });
        }
        Self::check(path, bytes, sha256, manifest(path)?)
    }

    fn check(
        path: &Path,
        bytes: Vec<u8>,
        sha256: String,
        manifest: Option<Manifest>,
    ) -> Result<Self, LoadError> {
        let no = |error: DescriptorError| refused(path, "descriptor", error);
        if !bytes.starts_with(&ELF_MAGIC) {
            return Err(no(DescriptorError::NotElf));
        }
        let damaged = |error| no(DescriptorError::Damaged(error));
        let file = object::File::parse(bytes.as_slice()).map_err(damaged)?;
        if file.kind() != object::ObjectKind::Dynamic {
            return Err(no(DescriptorError::NotShared));
        }
        // The target in the descriptor is what the plugin says of itself; this is what the system will go by.
        let processor = file.architecture();
        if OURS.is_some_and(|ours| processor != ours) {
            let theirs = format!("{processor:?}");
            return Err(no(DescriptorError::OtherProcessor { theirs }));
        }
        let layout = Layout {
            file,
            have: bytes.len() as u64,
        };
        // Code first, to distinguish a truncated file from one that never had a descriptor.
        let code = layout.code().map_err(no)?;
        let descriptor = layout.descriptor().map_err(no)?;
        let facts = Facts::read(&bytes[descriptor.offset..][..descriptor.len])
            .map_err(|error| no(error.into()))?;
        check(&facts).map_err(no)?;
        let identity = PluginIdentity {
            name: facts.name,
            version: facts.version,
            handlers: facts.handlers,
            abi: format!("{}.{}", facts.abi_major, facts.abi_minor),
            toolchain: format!("{}, {}", facts.rustc, facts.target),
            sha256,
        };
        if let Some(manifest) = manifest {
            manifest
                .check(&identity)
                .map_err(|error| manifest_error(path, error))?;
        }
        Ok(Self {
            bytes,
            identity,
            descriptor,
            code,
        })
    }
}

/// The manifest of the library, if it has one.
fn manifest(path: &Path) -> Result<Option<Manifest>, LoadError> {
    Manifest::for_library(path).map_err(|error| manifest_error(path, error))
}

fn manifest_error(path: &Path, error: ManifestError) -> LoadError {
    match error.is_retryable() {
        true => unreadable(path, error),
        false => refused(path, "manifest", error),
    }
}

/// The bytes of the file.
fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let file = open_regular(path).map_err(|error| unreadable(path, error))?;
    let have = file.metadata().map_err(|error| unreadable(path, error))?;
    let mut bytes = Vec::new();
    if have.len() <= MAX_BYTES {
        // It may grow while it is read.
        let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(path, error))?;
    }
    let have = have.len().max(bytes.len() as u64);
    match have <= MAX_BYTES {
        true => Ok(bytes),
        false => Err(refused(
            path,
            "descriptor",
            DescriptorError::TooLarge { have },
        )),
    }
}

/// Locates ranges of the file.
struct Layout<'a> {
    file: object::File<'a>,
    /// Size of the file in bytes.
    have: u64,
}

impl Layout<'_> {
    fn descriptor(&self) -> Result<Extent, DescriptorError> {
        let symbol = self
            .file
            .dynamic_symbols()
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok(DESCRIPTOR_SYMBOL))
            .ok_or(DescriptorError::NoSymbol)?;
        let address = symbol.address();
        let len = usize::try_from(symbol.size()).unwrap_or(0).max(FIRST_SIZE);
        for segment in self.file.segments() {
            let (start, size) = segment.file_range();
            let within = address
                .checked_sub(segment.address())
                .filter(|within| within.saturating_add(len as u64) <= size);
            if let Some(within) = within {
                return self.extent(address, start.saturating_add(within), len as u64);
            }
        }
        Err(DescriptorError::SymbolOutside)
    }

    fn code(&self) -> Result<Vec<Extent>, DescriptorError> {
        let mut code = Vec::new();
        for segment in self.file.segments() {
            let (start, size) = segment.file_range();
            let all = self.extent(segment.address(), start, size)?;
            let SegmentFlags::Elf { p_flags, .. } = segment.flags() else {
                continue;
            };
            let (executable, writable) = (p_flags.0 & PF_X.0 != 0, p_flags.0 & PF_W.0 != 0);
            if executable && writable {
                return Err(DescriptorError::WritableCode);
            }
            if executable {
                code.push(all);
            }
        }
        Ok(code)
    }

    /// The range, checked against the file size.
    fn extent(&self, address: u64, offset: u64, len: u64) -> Result<Extent, DescriptorError> {
        let have = self.have;
        match offset.checked_add(len) {
            Some(end) if end <= have => Ok(Extent {
                address: address as usize,
                offset: offset as usize,
                len: len as usize,
            }),
            _ => Err(DescriptorError::Truncated { have }),
        }
    }
}

/// The descriptor check.
fn check(facts: &Facts) -> Result<(), DescriptorError> {
    let theirs = || format!("{}.{}", facts.abi_major, facts.abi_minor);
    if facts.abi_major != ABI_MAJOR {
        return Err(DescriptorError::OtherAbi { theirs: theirs() });
    }
    if facts.abi_minor > ABI_MINOR {
        return Err(DescriptorError::NewerAbi { theirs: theirs() });
    }
    if facts.abi_stable_minor != ABI_STABLE_MINOR {
        return Err(DescriptorError::AbiStable {
            theirs: facts.abi_stable_minor,
        });
    }
    if !facts.panic_unwind {
        return Err(DescriptorError::PanicAbort);
    }
    if facts.target != TARGET {
        return Err(DescriptorError::OtherTarget {
            theirs: facts.target.clone(),
        });
    }
    if facts.handlers.is_empty() {
        return Err(DescriptorError::NoHandler);
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
