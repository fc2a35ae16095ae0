//! The descriptor of a plugin file, readable from the file before it is opened as a library.
//!
//! The layout is frozen: it contains no pointers (so it needs no relocation) and grows only at its end, as given by
//! `struct_size`. It determines whether the rest of the ABI may be used at all.

/// First bytes of every descriptor.
pub const MAGIC: [u8; 8] = *b"SLUICEGT";

/// Size in bytes of the descriptor in ABI 1.0; those of later minors are larger.
pub const FIRST_SIZE: usize = 1_332;

/// ABI version implemented by this crate. Plugins with another major are refused.
pub const ABI_MAJOR: u16 = 1;

/// Minor version within [`ABI_MAJOR`]. The service runs plugins with the same or an older minor.
pub const ABI_MINOR: u16 = 0;

/// Minor version of `abi_stable` 0.x, whose header is incompatible between minors.
pub const ABI_STABLE_MINOR: u16 = 11;

/// Symbol of the descriptor in a plugin library.
pub const DESCRIPTOR_SYMBOL: &str = "SLUICEGATE_PLUGIN_DESCRIPTOR";

/// Compiler version of this build.
pub const RUSTC: &str = env!("SLUICEGATE_RUSTC");

/// Target triple of this build.
pub const TARGET: &str = env!("SLUICEGATE_TARGET");

/// The static that the export macro adds to a plugin library. Texts are UTF-8, padded with NUL.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Size in bytes of this struct, when the plugin was built.
    pub struct_size: u32,
    /// [`ABI_MAJOR`] when the plugin was built.
    pub abi_major: u16,
    /// [`ABI_MINOR`] when the plugin was built.
    pub abi_minor: u16,
    /// [`ABI_STABLE_MINOR`] when the plugin was built.
    pub abi_stable_minor: u16,
    /// 1 when panics unwind; other panic strategies cannot be contained.
    pub panic_unwind: u8,
    /// Zero.
    pub reserved: u8,
    /// Catalogue name.
    pub name: [u8; 64],
    /// Semantic version.
    pub version: [u8; 32],
    /// Compiler.
    pub rustc: [u8; 64],
    /// Target triple.
    pub target: [u8; 64],
    /// Build id; may be empty.
    pub build_id: [u8; 64],
    /// Names of the exported handlers, separated by line feeds.
    pub handlers: [u8; 1024],
}

impl Descriptor {
    /// The descriptor of the plugin being built. `handlers` are names separated by line feeds.
    ///
    /// # Panics
    /// When a text is too long; in a `static` this is a compile error.
    #[must_use]
    pub const fn new(
        name: &str,
        version: &str,
        build_id: &str,
        handlers: &str,
        panic_unwind: bool,
    ) -> Self {
        assert!(!name.is_empty(), "a plugin needs a name");
        assert!(name.len() <= 64, "a plugin's name takes at most 64 bytes");
        assert!(
            version.len() <= 32,
            "a plugin's version takes at most 32 bytes"
        );
        assert!(
            handlers.len() <= 1024,
            "the names of a plugin's handlers take at most 1,024 bytes together"
        );
        Self {
            magic: MAGIC,
            struct_size: size_of::<Self>() as u32,
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            abi_stable_minor: ABI_STABLE_MINOR,
            panic_unwind: panic_unwind as u8,
            reserved: 0,
            name: padded(name),
            version: padded(version),
            rustc: padded(RUSTC),
            target: padded(TARGET),
            build_id: padded(build_id),
            handlers: padded(handlers),
        }
    }
}

/// As much of `text` as fits, padded with NUL.
const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    let mut out = [0u8; N];
    let mut at = 0;
    while at < bytes.len() && at < N {
        out[at] = bytes[at];
        at += 1;
    }
    out
}

/// Content of a descriptor, read from the bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// ABI major version.
    pub abi_major: u16,
    /// ABI minor version.
    pub abi_minor: u16,
    /// Minor version of `abi_stable`.
    pub abi_stable_minor: u16,
    /// Whether panics unwind.
    pub panic_unwind: bool,
    /// Catalogue name.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// Compiler.
    pub rustc: String,
    /// Target triple.
    pub target: String,
    /// Build id; may be empty.
    pub build_id: String,
    /// Names of the exported handlers.
    pub handlers: Vec<String>,
}

/// Why bytes are not a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// Fewer bytes than the first version of the descriptor.
    Short,
    /// Wrong magic bytes.
    Magic,
    /// A text is not UTF-8, or the name is empty.
    Text,
}

impl std::fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Short => "its descriptor is truncated; the file is damaged, copy or build it again",
            Self::Magic => "its descriptor does not begin with SLUICEGT; it was not built with the Sluicegate SDK",
            Self::Text => "a text in its descriptor is empty or not UTF-8; the file is damaged, build it again",
        })
    }
}

impl std::error::Error for DescriptorError {}

impl Facts {
    /// Reads a descriptor from the bytes at its symbol; additional bytes of newer versions are ignored.
    ///
    /// # Errors
    /// [`DescriptorError`] when the bytes are not a descriptor. An unknown version is not an error here.
    pub fn read(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let mut rest = bytes;
        let mut take = |n: usize| -> Result<&[u8], DescriptorError> {
            let (head, tail) = rest.split_at_checked(n).ok_or(DescriptorError::Short)?;
            rest = tail;
            Ok(head)
        };
        if take(8)? != MAGIC {
            return Err(DescriptorError::Magic);
        }
        let _struct_size = take(4)?;
        let mut number = || -> Result<u16, DescriptorError> {
            let pair = take(2)?;
            Ok(u16::from_ne_bytes([pair[0], pair[1]]))
        };
        let (abi_major, abi_minor, abi_stable_minor) = (number()?, number()?, number()?);
        let panic_unwind = take(2)?[0] == 1;
        let name = text(take(64)?)?;
        if name.is_empty() {
            return Err(DescriptorError::Text);
        }
        Ok(Self {
            abi_major,
            abi_minor,
            abi_stable_minor,
            panic_unwind,
            name,
            version: text(take(32)?)?,
            rustc: text(take(64)?)?,
            target: text(take(64)?)?,
            build_id: text(take(64)?)?,
            handlers: text(take(1024)?)?
                .lines()
                .filter(|line| !line.is_empty())
                .map(str::to_string)
                .collect(),
        })
    }
}

fn text(bytes: &[u8]) -> Result<String, DescriptorError> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end])
        .map(str::to_string)
        .map_err(|_| DescriptorError::Text)
}
