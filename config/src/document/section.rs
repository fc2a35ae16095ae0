//! Fields with types: one declaration per section gives its table, a typed key per field and, for a plain section, a struct
//! with its reader. A reader names a field by its key, so the compiler refuses one that is not declared, belongs to another
//! section or has another type.

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::check::{Checked, CheckedSection, Checker, ListedText};
use super::table::{ChoiceValue, Field, FieldType, Reserved, SectionType, TextRule, words};
use super::{Node, Place, join};

/// A section that is declared by [`section!`](crate::section).
pub trait SectionFields {
    /// The table of its fields.
    const TYPE: &'static SectionType;
}

/// A section that has the fields of another one and more.
pub trait Extends: SectionFields {
    /// The other section.
    type Base: SectionFields;
}

/// A field of the section `S` whose value is a `T`.
pub struct Key<S, T> {
    name: &'static str,
    types: PhantomData<fn() -> (S, T)>,
}

impl<S, T> Clone for Key<S, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, T> Copy for Key<S, T> {}

impl<S, T> Key<S, T> {
    #[doc(hidden)]
    pub const fn new(name: &'static str) -> Self {
        let types = PhantomData;
        Self { name, types }
    }

    /// The key without the type of its value, for keys of one section in a list.
    pub fn any(self) -> Key<S, ()> {
        Key::new(self.name)
    }

    /// Name of the field, without the path of its section.
    pub fn name(self) -> &'static str {
        self.name
    }
}

/// Type and bounds of a field whose value is a `T`.
pub struct ValueType<T> {
    kind: FieldType,
    value: PhantomData<fn() -> T>,
}

impl<T> ValueType<T> {
    const fn new(kind: FieldType) -> Self {
        let value = PhantomData;
        Self { kind, value }
    }

    #[doc(hidden)]
    pub const fn into_kind(self) -> FieldType {
        self.kind
    }
}

/// A value of a field, read after it was checked.
pub trait FieldValue: Sized {
    /// The value; `None` only if a problem was reported.
    fn of(checked: &Checked) -> Option<Self>;
}

/// A value that is written as a string; its rule accepts only texts that can be read.
pub trait TextValue: FieldValue {}

/// An integer that a [`count`] can be.
pub trait CountValue: FieldValue {
    /// Largest value of the type.
    const MAX: u64;
}

impl FieldValue for bool {
    fn of(checked: &Checked) -> Option<Self> {
        match checked {
            Checked::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

macro_rules! count_values {
    ($($type:ident)*) => {$(
        impl FieldValue for $type {
            fn of(checked: &Checked) -> Option<Self> {
                match checked {
                    Checked::Count(count) => $type::try_from(*count).ok(),
                    _ => None,
                }
            }
        }

        impl CountValue for $type {
            const MAX: u64 = $type::MAX as u64;
        }
    )*};
}

count_values!(u32 u64 usize);

impl FieldValue for f64 {
    fn of(checked: &Checked) -> Option<Self> {
        match checked {
            Checked::Number(number) => Some(*number),
            _ => None,
        }
    }
}

impl FieldValue for Duration {
    fn of(checked: &Checked) -> Option<Self> {
        match checked {
            Checked::Duration(duration) => Some(*duration),
            _ => None,
        }
    }
}

impl<T: ChoiceValue> FieldValue for T {
    fn of(checked: &Checked) -> Option<Self> {
        T::of(checked.text()?)
    }
}

impl FieldValue for String {
    fn of(checked: &Checked) -> Option<Self> {
        checked.text().map(str::to_owned)
    }
}

impl TextValue for String {}

impl FieldValue for PathBuf {
    fn of(checked: &Checked) -> Option<Self> {
        checked.text().map(Self::from)
    }
}

impl TextValue for PathBuf {}

/// Boolean.
pub const fn flag() -> ValueType<bool> {
    ValueType::new(FieldType::Flag)
}

/// Whole number.
pub const fn count<T: CountValue>(min: u64, max: u64) -> ValueType<T> {
    assert!(max <= T::MAX, "the type cannot hold the largest count");
    ValueType::new(FieldType::Count { min, max })
}

/// Integer or floating-point number.
pub const fn number(min: f64, max: f64) -> ValueType<f64> {
    ValueType::new(FieldType::Number { min, max })
}

/// Duration between two numbers of milliseconds.
pub const fn millis(min: u64, max: u64) -> ValueType<Duration> {
    ValueType::new(FieldType::Duration {
        min: Duration::from_millis(min),
        max: Duration::from_millis(max),
    })
}

/// Number of bytes.
pub const fn size(min: u64, max: u64) -> ValueType<u64> {
    ValueType::new(FieldType::Size { min, max })
}

/// String that satisfies the rule.
pub const fn text<T: TextValue>(rule: &'static TextRule) -> ValueType<T> {
    ValueType::new(FieldType::Text(rule))
}

/// List of `min` to `max` strings that satisfy the rule.
pub const fn texts(rule: &'static TextRule, min: usize, max: usize) -> ValueType<Vec<String>> {
    ValueType::new(FieldType::Texts { rule, min, max })
}

/// A word of `T`; the words of `later` are rejected with their reason.
pub const fn choice<T: ChoiceValue>(later: &'static [Reserved]) -> ValueType<T> {
    let words = words::<T>;
    ValueType::new(FieldType::Choice { words, later })
}

/// A word that is not read, since only one is accepted yet.
pub const fn only(words: fn() -> Vec<&'static str>, later: &'static [Reserved]) -> ValueType<()> {
    ValueType::new(FieldType::Choice { words, later })
}

/// Map with the fields of `T`.
pub const fn object<T: SectionFields>() -> ValueType<T> {
    ValueType::new(FieldType::Object(T::TYPE))
}

/// Parsed by custom code, which accepts what the schema says.
pub const fn custom(schema: fn() -> Json) -> ValueType<Node> {
    ValueType::new(FieldType::Custom { schema })
}

/// The document that was checked against the table of `S`.
pub struct Document<S> {
    checked: CheckedSection,
    fields: PhantomData<fn() -> S>,
}

impl<S: SectionFields> Document<S> {
    /// Checks `node` as a whole document.
    pub fn check(node: &Node, checker: &mut Checker<'_>) -> Self {
        let checked = checker.section(node, S::TYPE, "");
        let fields = PhantomData;
        Self { checked, fields }
    }

    /// Its outermost section.
    pub fn section(&self) -> Section<'_, S> {
        Section::new(&self.checked)
    }
}

/// A map that was checked against the table of `S`: the values of all fields that are set or have a default.
pub struct Section<'a, S> {
    checked: &'a CheckedSection,
    fields: PhantomData<fn() -> S>,
}

impl<S> Clone for Section<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Section<'_, S> {}

impl<'a, S> Section<'a, S> {
    fn new(checked: &'a CheckedSection) -> Self {
        let fields = PhantomData;
        Self { checked, fields }
    }

    #[doc(hidden)]
    pub fn of(checked: &'a Checked) -> Option<Self> {
        match checked {
            Checked::Object(section) => Some(Self::new(section)),
            _ => None,
        }
    }

    /// The same section with the keys of the section that it extends.
    pub fn base(self) -> Section<'a, S::Base>
    where
        S: Extends,
    {
        Section::new(self.checked)
    }

    fn value<T>(self, key: Key<S, T>) -> Option<&'a Checked> {
        self.checked.values.get(key.name).map(|held| &held.value)
    }

    /// The field's value; `None` if it is absent or rejected.
    pub fn get<T: FieldValue>(self, key: Key<S, T>) -> Option<T> {
        T::of(self.value(key)?)
    }

    /// A field that is a map; `None` if it is absent or cannot be checked.
    pub fn object<T: SectionFields>(self, key: Key<S, T>) -> Option<Section<'a, T>> {
        Section::of(self.value(key)?)
    }

    /// Strings of a list field with their positions, without rejected entries; empty if the field is absent or rejected.
    pub fn texts(self, key: Key<S, Vec<String>>) -> &'a [ListedText] {
        match self.value(key) {
            Some(Checked::Texts(texts)) => texts,
            _ => &[],
        }
    }

    /// The raw node of a field with a custom parser.
    pub fn node(self, key: Key<S, Node>) -> Option<&'a Node> {
        match self.value(key) {
            Some(Checked::Custom(node)) => Some(node),
            _ => None,
        }
    }

    /// Whether the field has a valid value.
    pub fn holds<T>(self, key: Key<S, T>) -> bool {
        self.value(key).is_some()
    }

    /// Reports a problem of the field.
    pub fn report<T>(self, key: Key<S, T>, message: impl ToString, checker: &mut Checker<'_>) {
        checker.report(self.place_of(key), &self.path_of(key), message);
    }

    /// Position of the field's value; the section's own position for a default.
    pub fn place_of<T>(self, key: Key<S, T>) -> &'a Place {
        let held = self.checked.values.get(key.name);
        held.map_or(&self.checked.place, |held| &held.place)
    }

    /// Dotted path of the field.
    pub fn path_of<T>(self, key: Key<S, T>) -> String {
        join(&self.checked.path, key.name)
    }
}

/// Doc comment of one line as text.
#[doc(hidden)]
pub const fn doc_text(comment: &'static str) -> &'static str {
    match comment.as_bytes() {
        [b' ', ..] => comment.split_at(1).1,
        _ => comment,
    }
}

/// The fields of a base section and those that another one adds.
#[doc(hidden)]
pub const fn joined<const N: usize>(base: &[Field], own: &[Field]) -> [Field; N] {
    let mut all = [base[0]; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < base.len() {
            base[at]
        } else {
            own[at - base.len()]
        };
        at += 1;
    }
    all
}

/// Declares a section. The doc comments are the texts of the JSON Schema and the reference pages: one line per field.
///
/// A `struct` is made for a section that is read as a whole, and read by its `read` or as a field of another section. `keys`
/// declare a section of which a reader takes one field at a time, since it has rules between fields or another result.
///
/// ```
/// use std::time::Duration;
/// use sluicegate_config::document::{Section, SectionFields, count, flag, millis, object};
///
/// sluicegate_config::section! {
///     /// Retries of failed attempts.
///     pub struct Retry {
///         /// Maximum attempts.
///         max_attempts: u32 = count(1, 100), default "5";
///         /// Delay between attempts; none by default.
///         delay: Duration = millis(0, 60_000), optional;
///     }
/// }
///
/// sluicegate_config::section! {
///     /// A job.
///     pub keys Job {
///         /// Whether it runs.
///         enabled: bool = flag(), required;
///         /// Retries.
///         retry: Retry = object(), default "{}";
///     }
/// }
///
/// fn read(section: Section<'_, Job>) -> Option<(bool, Retry)> {
///     Some((section.get(Job::enabled)?, section.get(Job::retry)?))
/// }
/// assert_eq!(Job::TYPE.fields[0].doc, "Whether it runs.");
/// ```
///
/// A field that is not declared cannot be read, nor one as another type or from another section:
///
/// ```compile_fail,E0599
/// # use sluicegate_config::document::{Section, flag};
/// # sluicegate_config::section! {
/// #     /// A job.
/// #     pub keys Job {
/// #         /// Whether it runs.
/// #         enabled: bool = flag(), required;
/// #     }
/// # }
/// fn read(section: Section<'_, Job>) -> Option<bool> {
///     section.get(Job::enable)
/// }
/// ```
///
/// ```compile_fail,E0308
/// # use sluicegate_config::document::{Section, flag};
/// # sluicegate_config::section! {
/// #     /// A job.
/// #     pub keys Job {
/// #         /// Whether it runs.
/// #         enabled: bool = flag(), required;
/// #     }
/// # }
/// fn read(section: Section<'_, Job>) -> Option<String> {
///     section.get(Job::enabled)
/// }
/// ```
///
/// Each field is `name: Type = kind, presence;`, with a kind such as [`count`], and `required`, `optional` or `default "text"`
/// as presence. In a struct, the member of an optional field is an `Option`. `name as Raw => Type = …` declares a member that
/// the caller reads from a `Raw` and passes to `read`; `name = only(…), …` a field without a member.
#[macro_export]
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $(#[derive($($derive:path),* $(,)?)])?
        $vis:vis struct $section:ident {$(
            #[doc = $doc:literal]
            $name:ident $(: $type:ty)? $(as $raw:ty => $given:ty)? = $kind:expr, $need:ident $($default:expr)?;
        )*}
        $(reserved $later:expr)?
    ) => {
        $(#[doc = $about])+
        $(#[derive($($derive),*)])?
        $vis struct $section {$(
            $(#[doc = $doc] pub $name: $crate::section!(@member $need $type),)?
            $(#[doc = $doc] pub $name: $given,)?
        )*}

        $crate::section!(@table $section [] [$($about)+] [$(
            [$doc $name $need $($default)?] [$($type)? $($raw)?] [$kind]
        )*] $($later)?);

        impl $section {
            /// Reads a checked section; `None` only if a problem was reported.
            pub(crate) fn read(
                section: $crate::document::Section<'_, Self>,
                $($($name: Option<$given>,)?)*
            ) -> Option<Self> {
                Some(Self {$(
                    $($name: $crate::section!(@value $need section $name $type),)?
                    $($name: { let given: Option<$given> = $name; given? },)?
                )*})
            }
        }

        $crate::section!(@nested $section [$($($given)?)*]);
    };
    (
        $(#[doc = $about:literal])+
        $vis:vis keys $section:ident $(: $base:ty)? {$(
            #[doc = $doc:literal]
            $name:ident $(: $type:ty)? = $kind:expr, $need:ident $($default:expr)?;
        )*}
        $(reserved $later:expr)?
    ) => {
        $(#[doc = $about])+
        $vis enum $section {}

        $(impl $crate::document::Extends for $section {
            type Base = $base;
        })?

        $crate::section!(@table $section [$($base)?] [$($about)+] [$(
            [$doc $name $need $($default)?] [$($type)?] [$kind]
        )*] $($later)?);
    };
    (@table $section:ident [$($base:ty)?] [$($about:literal)+] [$(
        [$doc:literal $name:ident $need:ident $($default:expr)?] [$($type:ty)?] [$kind:expr]
    )*] $($later:expr)?) => {
        impl $crate::document::SectionFields for $section {
            const TYPE: &'static $crate::document::SectionType = {
                const OWN: &[$crate::document::Field] = &[$($crate::document::Field {
                    name: stringify!($name),
                    doc: $crate::document::doc_text($doc),
                    kind: $crate::document::ValueType$(::<$type>)?::into_kind($kind),
                    need: $crate::section!(@need $need $($default)?),
                }),*];
                &$crate::document::SectionType {
                    doc: $crate::document::doc_text(concat!($($about),+)),
                    fields: $crate::section!(@fields OWN $($base)?),
                    later: $crate::section!(@later $($later)?),
                }
            };
        }

        #[allow(non_upper_case_globals, reason = "a key is called as its field")]
        impl $section {$($(
            #[doc = $doc]
            pub(crate) const $name: $crate::document::Key<Self, $type> =
                $crate::document::Key::new(stringify!($name));
        )?)*}
    };
    (@member optional $type:ty) => { Option<$type> };
    (@member $need:ident $type:ty) => { $type };
    (@value optional $section:ident $name:ident $type:ty) => { $section.get(Self::$name) };
    (@value $need:ident $section:ident $name:ident $type:ty) => { $section.get::<$type>(Self::$name)? };
    (@need required) => { $crate::document::Presence::Required };
    (@need optional) => { $crate::document::Presence::Optional };
    (@need default $text:expr) => { $crate::document::Presence::Default($text) };
    (@later) => { &[] };
    (@later $later:expr) => { $later };
    (@fields $own:ident) => { $own };
    (@fields $own:ident $base:ty) => {{
        const BASE: &[$crate::document::Field] =
            <$base as $crate::document::SectionFields>::TYPE.fields;
        &$crate::document::joined::<{ BASE.len() + $own.len() }>(BASE, $own)
    }};
    (@nested $section:ident []) => {
        impl $crate::document::FieldValue for $section {
            fn of(checked: &$crate::document::Checked) -> Option<Self> {
                Self::read($crate::document::Section::of(checked)?)
            }
        }
    };
    (@nested $section:ident [$($given:ty)+]) => {};
}
