//! Compiled code, kept by the digest of its component.
//!
//! A file is named after the component's digest and the engine's settings, and
//! begins with the SHA-256 of what follows: a torn or altered file is compiled
//! anew, never run. Compiled code is trusted as the program itself is, so the
//! directory must be writable by the program's own user alone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiled components kept; the ones used longest ago go first. Enough for a
/// day of swaps, and for going back to any of them.
const COMPILED_KEPT_MAX: usize = 64;
const CHECKSUM_BYTES: usize = 32;

pub(crate) struct CompiledCache {
    dir: PathBuf,
    engine_tag: String,
}

impl CompiledCache {
    pub fn new(dir: &Path, engine: &Engine) -> Self {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self {
            dir: dir.to_owned(),
            engine_tag: format!("{:016x}", hasher.finish()),
        }
    }

    /// The component from the cache, or compiled and then kept. Blocks for as
    /// long as compiling takes. A cache that cannot be written only costs time.
    pub fn load(&self, engine: &Engine, digest: &str, bytes: &[u8]) -> wasmtime::Result<Component> {
        let path = self.dir.join(format!("{digest}-{}.cwasm", self.engine_tag));
        if let Some(component) = read(engine, &path) {
            return Ok(component);
        }
        let component = Component::from_binary(engine, bytes)?;
        if let Err(error) = self.keep(&path, &component.serialize()?) {
            tracing::warn!(dir = %self.dir.display(), %error, "compiled code is not kept; the next start compiles again");
        }
        Ok(component)
    }

    fn keep(&self, path: &Path, code: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&Sha256::digest(code))?;
        file.write_all(code)?;
        file.persist(path)?;
        self.prune()
    }

    fn prune(&self) -> std::io::Result<()> {
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "cwasm")
            {
                kept.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        kept.sort();
        let surplus = kept.len().saturating_sub(COMPILED_KEPT_MAX);
        for (_, path) in kept.drain(..surplus) {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn read(engine: &Engine, path: &Path) -> Option<Component> {
    let file = std::fs::read(path).ok()?;
    let (checksum, code) = file.split_at_checked(CHECKSUM_BYTES)?;
    if Sha256::digest(code).as_slice() != checksum {
        return None;
    }
    if let Ok(handle) = std::fs::File::open(path) {
        // Marks it as used; failing to only makes it go earlier.
        let _ = handle.set_modified(std::time::SystemTime::now());
    }
    #[expect(
        unsafe_code,
        reason = "the checksum proves that this engine's own `keep` wrote it whole"
    )]
    // SAFETY: `code` is what `Component::serialize` returned in a process with
    // the same engine settings (the file's name) and is intact (its checksum).
    unsafe { Component::deserialize(engine, code) }.ok()
}
