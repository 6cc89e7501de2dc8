//! From bytes to a component that is known to run: digest, compile, check
//! against the world, link, start once.
//!
//! Every refusal is one sentence that says what is wrong with the component
//! and what to do; nothing that is running is touched by one.

use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre, Linker};

use crate::compose::ComposeError;
use crate::runtime::Runtime;
use crate::state::GuestState;

/// How long a component may take to start once when it is checked. Starting
/// runs no guest code beyond its initialisers.
pub(crate) const TRIAL_START_MAX: Duration = Duration::from_secs(10);
/// First bytes of every WebAssembly file.
const WASM_MAGIC: &[u8] = b"\0asm";
/// What follows them in a component; a core module has another version here.
const COMPONENT_VERSION: &[u8] = &[0x0d, 0x00, 0x01, 0x00];

/// Why a component was refused. Always the component's fault, except `Host`.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not WebAssembly at all.
    #[error("not a WebAssembly file: it does not begin with the bytes of one")]
    NotWasm,
    /// A core module.
    #[error(
        "a core WebAssembly module, not a component: build it for `wasm32-wasip2`, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// Not valid.
    #[error("not a valid component: {0}")]
    Invalid(String),
    /// The export that makes it what the manifest says is missing.
    #[error("it does not export {expected}; it exports {found}")]
    MissingExport {
        /// What was looked for.
        expected: &'static str,
        /// What there is.
        found: String,
    },
    /// It and its dependencies do not become one.
    #[error(transparent)]
    Composition(#[from] ComposeError),
    /// It wants something that this host does not offer.
    #[error("it needs something that this host does not offer: {0}")]
    MissingImport(String),
    /// An export has the right name and the wrong shape.
    #[error("it does not fit the interface: {0}")]
    WrongType(String),
    /// It cannot be started once.
    #[error("it does not start: {0}")]
    DoesNotStart(String),
    /// The host's own trouble: a retry may help.
    #[error("the host cannot load it now: {0}")]
    Host(String),
}

/// How long the way in took.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadTimes {
    /// Compiling, or reading compiled code.
    pub compile: Duration,
    /// Checking against the world, linking, starting once.
    pub check: Duration,
}

/// Whether bytes end where a WebAssembly file may: after a whole section. A
/// file that is still being written mostly does not.
pub fn ends_whole(bytes: &[u8]) -> bool {
    let Some(mut rest) = bytes.get(8..) else {
        return false;
    };
    // Each section: its id, its size as LEB128, its content.
    while let Some((_, after)) = rest.split_first() {
        let (mut size, mut place) = (0_u64, 0);
        loop {
            let Some(byte) = after.get(place).filter(|_| place < 5) else {
                return false;
            };
            size |= u64::from(byte & 0x7f) << (7 * place);
            place += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let end = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_add(place));
        let Some(next) = end.and_then(|end| after.get(end..)) else {
            return false;
        };
        rest = next;
    }
    true
}

/// The SHA-256 of a component's bytes, in lower-case hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Compiles (or finds compiled) on a blocking thread, so that neither jobs nor
/// requests wait for it.
pub(crate) async fn compile(runtime: &Runtime, bytes: Vec<u8>) -> Result<Component, LoadError> {
    check_preamble(&bytes)?;
    let runtime = runtime.clone();
    tokio::task::spawn_blocking(move || {
        // Of what is compiled, which need not be one file.
        let digest = digest(&bytes);
        runtime
            .compiled()
            .load(runtime.engine(), &digest, &bytes)
            .map_err(|error| LoadError::Invalid(one_line(&error)))
    })
    .await
    .map_err(|error| LoadError::Host(error.to_string()))?
}

pub(crate) fn check_preamble(bytes: &[u8]) -> Result<(), LoadError> {
    let Some(version) = bytes.strip_prefix(WASM_MAGIC) else {
        return Err(LoadError::NotWasm);
    };
    if version.starts_with(COMPONENT_VERSION) {
        Ok(())
    } else {
        Err(LoadError::CoreModule)
    }
}

/// The name of the first export that begins with one of `wanted`, in their order.
pub(crate) fn find_export(
    runtime: &Runtime,
    component: &Component,
    wanted: &[&str],
    expected: &'static str,
) -> Result<String, LoadError> {
    let component_type = component.component_type();
    let names: Vec<&str> = component_type
        .exports(runtime.engine())
        .map(|(name, _)| name)
        .collect();
    wanted
        .iter()
        .find_map(|prefix| names.iter().find(|name| name.starts_with(prefix)))
        .map(|name| (*name).to_owned())
        .ok_or_else(|| LoadError::MissingExport {
            expected,
            found: list(&names),
        })
}

/// The names of what a component imports.
pub(crate) fn imports(runtime: &Runtime, component: &Component) -> Vec<String> {
    component
        .component_type()
        .imports(runtime.engine())
        .map(|(name, _)| name.to_owned())
        .collect()
}

pub(crate) fn list(names: &[impl AsRef<str>]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names
            .iter()
            .map(|name| format!("`{}`", name.as_ref()))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

pub(crate) fn link(
    linker: &Linker<GuestState>,
    component: &Component,
) -> Result<InstancePre<GuestState>, LoadError> {
    linker
        .instantiate_pre(component)
        .map_err(|error| LoadError::MissingImport(one_line(&error)))
}

/// An error and its causes as one sentence.
pub(crate) fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_stops_in_the_middle_is_told_from_a_whole_one() {
        let whole = b"\0asm\x0d\0\x01\0\x00\x03\x02ab\x00\x81\x00x";
        assert!(ends_whole(whole));
        let ends: Vec<usize> = (0..=whole.len())
            .filter(|end| ends_whole(&whole[..*end]))
            .collect();
        assert_eq!(ends, [8, 13, whole.len()]);
        assert!(!ends_whole(
            b"\0asm\x0d\0\x01\0\x00\xff\xff\xff\xff\xff\xff"
        ));
    }

    #[test]
    fn a_file_that_is_no_component_is_told_apart() {
        assert!(matches!(
            check_preamble(b"MZ not wasm"),
            Err(LoadError::NotWasm)
        ));
        assert!(matches!(
            check_preamble(b"\0asm\x01\0\0\0"),
            Err(LoadError::CoreModule)
        ));
        assert!(check_preamble(b"\0asm\x0d\0\x01\0").is_ok());
        assert!(check_preamble(b"").is_err());
    }
}
