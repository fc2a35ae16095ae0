//! Exports handlers as a plugin library.

use std::marker::PhantomData;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use sluicegate_abi::plugin::{Create, Host, Instance, Plugin, Refusal};

use crate::adapter::{Batches, PerRecord};
use crate::handler::{BatchHandler, Handler, Setup};
use crate::objects;
use crate::outcome::{ErrorClass, HandlerError};

/// Exports handlers from a `cdylib`; use it once per crate:
///
/// ```text
/// sluicegate_sdk::export_handler! {
///     "orders" => Orders,            // a `Handler`
///     "archive" => batch Archive,    // a `BatchHandler`
///     "notify" => async Notify,      // an `AsyncHandler` (feature `async`)
/// }
/// ```
///
/// The plugin is named after its first handler, unless the list begins with `plugin: "name",`. The macro generates the
/// descriptor, the root module, and the guards that contain panics within the plugin.
///
/// A spec names the handler with the plugin's name, or the only one, by `plugin: NAME`, and each of them by `plugin: NAME/HANDLER`.
///
/// A build is loaded once per process: the statics of the crate are shared by all generations that run it, and outlive them, also
/// after a restart of the handler. The state of a generation belongs into its handlers, or into what they share by
/// `Setup::shared`.
#[macro_export]
macro_rules! export_handler {
    (plugin: $plugin:literal, $($list:tt)+) => {
        $crate::export_handler!(@each $plugin [] [$($list)+]);
    };
    ($first:literal $($list:tt)+) => {
        $crate::export_handler!(@each $first [] [$first $($list)+]);
    };
    (@each $plugin:literal [$($done:tt)*] [$name:literal => batch $handler:ty $(, $($rest:tt)*)?]) => {
        $crate::export_handler!(@each $plugin [$($done)* ($name, batch, $handler)] [$($($rest)*)?]);
    };
    (@each $plugin:literal [$($done:tt)*] [$name:literal => async $handler:ty $(, $($rest:tt)*)?]) => {
        $crate::export_handler!(@each $plugin [$($done)* ($name, overlapping, $handler)] [$($($rest)*)?]);
    };
    (@each $plugin:literal [$($done:tt)*] [$name:literal => $handler:ty $(, $($rest:tt)*)?]) => {
        $crate::export_handler!(@each $plugin [$($done)* ($name, per_record, $handler)] [$($($rest)*)?]);
    };
    (@each $plugin:literal [$(($name:literal, $kind:ident, $handler:ty))+] []) => {
        const _: () = {
            struct Exports;

            impl $crate::__private::Exports for Exports {
                fn entries() -> ::std::vec::Vec<$crate::__private::Entry> {
                    ::std::vec![$($crate::__private::$kind::<$handler>($name)),+]
                }
            }

            #[unsafe(no_mangle)]
            pub static SLUICEGATE_PLUGIN_DESCRIPTOR: $crate::__private::Descriptor =
                $crate::__private::Descriptor::new(
                    $plugin,
                    ::core::env!("CARGO_PKG_VERSION"),
                    match ::core::option_env!("SLUICEGATE_BUILD_ID") {
                        ::core::option::Option::Some(id) => id,
                        ::core::option::Option::None => "",
                    },
                    ::core::concat!($($name, "\n"),+),
                    ::core::cfg!(panic = "unwind"),
                );

            // The symbol that abi_stable expects.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static ROOT_MODULE: $crate::__private::LibHeader =
                $crate::__private::library_header::<$crate::__private::Exported<Exports>>();
        };
    };
    ($($other:tt)*) => {
        ::core::compile_error!(
            "write `export_handler! { \"name\" => Type }`, with `batch Type` for a BatchHandler and `async Type` \
             for an AsyncHandler, separated by commas"
        );
    };
}

/// Builds an instance from the config's JSON text.
type Build = fn(&str, &mut Setup) -> Result<Box<dyn Instance>, Refusal>;

/// One exported handler.
pub struct Entry {
    name: &'static str,
    config_schema: fn() -> serde_json::Value,
    keeps_key_state: bool,
    takes_config: bool,
    takes_batches: bool,
    concurrency: usize,
    max_batch: u32,
    create: Build,
}

/// A [`Handler`].
pub fn per_record<H: Handler>(name: &'static str) -> Entry {
    Entry {
        name,
        config_schema: schema::<H::Config>,
        keeps_key_state: H::KEEPS_KEY_STATE,
        takes_config: H::TAKES_CONFIG,
        takes_batches: false,
        concurrency: 1,
        max_batch: u32::MAX,
        create: |config, setup| {
            let handler = H::new(read_config(config)?, setup).map_err(refusal)?;
            Ok(Box::new(PerRecord::new(handler)))
        },
    }
}

/// A [`BatchHandler`].
pub fn batch<H: BatchHandler>(name: &'static str) -> Entry {
    Entry {
        name,
        config_schema: schema::<H::Config>,
        keeps_key_state: H::KEEPS_KEY_STATE,
        takes_config: H::TAKES_CONFIG,
        takes_batches: true,
        concurrency: 1,
        max_batch: H::MAX_RECORDS.max(1),
        create: |config, setup| {
            let handler = H::new(read_config(config)?, setup).map_err(refusal)?;
            Ok(Box::new(Batches(handler)))
        },
    }
}

/// An [`crate::AsyncHandler`].
#[cfg(feature = "async")]
pub fn overlapping<H: crate::AsyncHandler>(name: &'static str) -> Entry {
    Entry {
        name,
        config_schema: schema::<H::Config>,
        keeps_key_state: H::KEEPS_KEY_STATE,
        takes_config: H::TAKES_CONFIG,
        takes_batches: false,
        concurrency: H::CONCURRENCY,
        max_batch: u32::MAX,
        create: |config, setup| {
            let instance =
                crate::async_handler::Overlapping::<H>::create(read_config(config)?, setup);
            Ok(Box::new(instance.map_err(refusal)?))
        },
    }
}

fn schema<C: JsonSchema>() -> serde_json::Value {
    match is_unit::<C>() {
        true => serde_json::json!({ "type": "object", "additionalProperties": false }),
        false => schemars::schema_for!(C).into(),
    }
}

/// Whether a handler has no config: its config is `()`, which serde reads from `null` only.
fn is_unit<C>() -> bool {
    std::any::type_name::<C>() == std::any::type_name::<()>()
}

pub(crate) fn read_config<C: DeserializeOwned>(text: &str) -> Result<C, Refusal> {
    let text = match text.trim() {
        "" | "null" => "{}",
        text => text,
    };
    // Serde would read a list as the fields of a struct in order.
    if !text.starts_with('{') {
        return Err(Refusal::Config(
            "a config must be a map of keys and values".into(),
        ));
    }
    let text = match is_unit::<C>() && text[1..].trim_start() == "}" {
        true => "null",
        false => text,
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let read = objects::read(tracked).and_then(|config| json.end().map(|()| config));
    read.map_err(|cause: serde_json::Error| {
        let path = track.path().to_string();
        Refusal::Config(if path == "." {
            cause.to_string()
        } else {
            format!("`{path}`: {cause}")
        })
    })
}

pub(crate) fn refusal(error: HandlerError) -> Refusal {
    match error.class() {
        ErrorClass::Terminal => Refusal::Config(error.to_string()),
        ErrorClass::Retryable | ErrorClass::Unavailable => Refusal::Failed(error.to_string()),
    }
}

/// The exports of a library; implemented by the macro.
pub trait Exports: 'static {
    /// The handlers.
    fn entries() -> Vec<Entry>;
}

/// The [`Plugin`] of some [`Exports`].
pub struct Exported<E>(PhantomData<E>);

impl<E: Exports> Plugin for Exported<E> {
    fn describe() -> String {
        let handlers: Vec<_> = E::entries()
            .iter()
            .map(|entry| {
                serde_json::json!({
                    "name": entry.name,
                    "config_schema": (entry.config_schema)(),
                    "keeps_key_state": entry.keeps_key_state,
                    "takes_config": entry.takes_config,
                    "takes_batches": entry.takes_batches,
                    "concurrency": entry.concurrency,
                    "max_batch": entry.max_batch,
                })
            })
            .collect();
        serde_json::json!({ "handlers": handlers }).to_string()
    }

    fn create(host: Host, create: &Create<'_>) -> Result<Box<dyn Instance>, Refusal> {
        #[cfg(feature = "log")]
        crate::forward::install();
        let entries = E::entries();
        let entry = entries
            .iter()
            .find(|entry| entry.name == create.handler)
            .ok_or(Refusal::Unknown)?;
        (entry.create)(create.config, &mut Setup::new(host, create))
    }

    fn shutdown(_deadline: Duration) {
        // Runtimes belong to generations, whose instances have all been dropped.
    }
}
