//! Which versions of each component there were, on disk.
//!
//! `components/<id>.json` in the state directory is a component's record:
//! which version is to run, and what became of the others. `components/blobs`
//! holds the bytes of those that can be gone back to, by digest. A file is
//! written beside its place, fsync'd, renamed into it, and the directory is
//! fsync'd: a crash leaves the old record or the new one. Bytes are written
//! before the record that names them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Versions of one component whose bytes are kept: a day of changes to go back through.
pub const VERSIONS_KEPT_MAX: usize = 10;
/// Versions of one component that are remembered, refused ones too.
const REMEMBERED_MAX: usize = 50;
const FORMAT: u32 = 1;

/// All that is remembered of one component.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    format: u32,
    /// Digest of the version that runs, or is to run after a start.
    pub current: Option<String>,
    /// Digest of the manifest's file when it was last looked at: a file that
    /// is another one after a start is a new version.
    pub seen_in_file: Option<String>,
    /// Number of the next version.
    pub next_generation: u64,
    /// Oldest first; each digest once.
    pub versions: Vec<Entry>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            format: FORMAT,
            current: None,
            seen_in_file: None,
            next_generation: 1,
            versions: Vec::new(),
        }
    }
}

/// What became of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It runs, or ran until another took its place.
    Promoted,
    /// It is tried on a share of the jobs.
    Canary,
    /// It was taken back.
    RolledBack,
    /// It was never run.
    Refused,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// SHA-256 of its bytes, in hexadecimal.
    pub digest: String,
    /// Size of its bytes.
    pub bytes: u64,
    /// Counts the component's versions, from 1.
    pub generation: u64,
    /// How it came: `file`, `upload` or `rollback`.
    pub origin: String,
    /// Who brought it.
    pub by: String,
    /// Why, in their words.
    pub reason: Option<String>,
    /// When it last came or changed: milliseconds since 1970-01-01 UTC.
    pub at: u64,
    /// What became of it.
    pub fate: Fate,
    /// Why that became of it.
    pub told: Option<String>,
    /// Its signature, if it came with one.
    pub signature: Option<String>,
    /// Whether its bytes are kept.
    pub is_kept: bool,
}

impl Record {
    /// What is known of this digest, or of the only one that begins so.
    pub fn find(&self, digest: &str) -> Option<&Entry> {
        let wanted = digest.strip_prefix("sha256:").unwrap_or(digest);
        let mut found = self
            .versions
            .iter()
            .filter(|entry| entry.digest.starts_with(wanted));
        let first = found.next().filter(|_| !wanted.is_empty())?;
        found.next().is_none().then_some(first)
    }

    /// The version to go back to: the last one that ran before the current one.
    pub fn previous(&self) -> Option<&Entry> {
        let current = self.current.as_deref();
        self.versions.iter().rev().find(|entry| {
            entry.fate == Fate::Promoted && entry.is_kept && Some(entry.digest.as_str()) != current
        })
    }

    /// Puts a version last, in the place of what was known of its digest.
    pub fn put(&mut self, entry: Entry) {
        self.versions.retain(|other| other.digest != entry.digest);
        self.versions.push(entry);
        let mut kept = 0;
        let current = self.current.as_deref();
        for entry in self.versions.iter_mut().rev() {
            kept += usize::from(entry.is_kept);
            let is_current = Some(entry.digest.as_str()) == current;
            entry.is_kept &= kept <= VERSIONS_KEPT_MAX || is_current;
        }
        while self.versions.len() > REMEMBERED_MAX
            && let Some(oldest) = self
                .versions
                .iter()
                // What can be gone back to, and what is being tried, stays:
                // however many are refused.
                .position(|entry| !entry.is_kept && Some(entry.digest.as_str()) != current)
        {
            self.versions.remove(oldest);
        }
    }

    /// Changes what is known of a digest.
    pub fn set_fate(&mut self, digest: &str, fate: Fate, told: Option<String>, at: u64) {
        if let Some(entry) = self
            .versions
            .iter_mut()
            .find(|entry| entry.digest == digest)
        {
            (entry.fate, entry.told, entry.at) = (fate, told, at);
        }
    }
}

/// The records cannot be kept: the disk's fault; a retry may help.
#[derive(Debug, thiserror::Error)]
#[error("the versions of components in {path} {what}")]
pub struct StoreError {
    path: String,
    what: String,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct VersionStore {
    dir: PathBuf,
}

impl VersionStore {
    /// The one of this state directory; made when something is first kept.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("components"),
        }
    }

    fn failed(path: &Path, what: impl std::fmt::Display) -> StoreError {
        StoreError {
            path: path.display().to_string(),
            what: what.to_string(),
        }
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{digest}.wasm"))
    }

    /// What is remembered of a component; nothing yet: an empty record.
    pub fn record(&self, id: &str) -> Result<Record, StoreError> {
        let path = self.record_path(id);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Record::default());
            }
            Err(error) => return Err(Self::failed(&path, format!("cannot be read: {error}"))),
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|error| Self::failed(&path, format!("is damaged ({error}): move it away")))?;
        if record.format != FORMAT {
            return Err(Self::failed(
                &path,
                format!(
                    "has format {}; this program reads {FORMAT}: run the version that wrote it, or move it away",
                    record.format
                ),
            ));
        }
        Ok(record)
    }

    /// Keeps a component's record; durable when this returns `Ok`.
    pub fn keep(&self, id: &str, record: &Record) -> Result<(), StoreError> {
        let path = self.record_path(id);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| Self::failed(&path, error.to_string()))?;
        write_whole(&path, &text)
            .map_err(|error| Self::failed(&path, format!("cannot be written: {error}")))
    }

    /// Keeps a version's bytes; durable when this returns `Ok`.
    pub fn keep_bytes(&self, digest: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        let is_there = std::fs::read(&path).is_ok_and(|there| there == bytes);
        if is_there {
            return Ok(());
        }
        write_whole(&path, bytes)
            .map_err(|error| Self::failed(&path, format!("cannot be written: {error}")))
    }

    /// A version's bytes.
    pub fn bytes(&self, digest: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        std::fs::read(&path)
            .map_err(|error| Self::failed(&path, format!("cannot be read: {error}")))
    }

    /// Removes bytes that no record keeps, those of components that the
    /// manifest leaves out now included. What cannot be removed stays; with a
    /// record that cannot be read, all of it does.
    pub fn forget_others(&self) {
        let Ok(files) = std::fs::read_dir(&self.dir) else {
            return;
        };
        let mut kept = BTreeSet::new();
        for file in files.flatten() {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let id = path.file_stem().and_then(|id| id.to_str());
            let Some(Ok(record)) = id.map(|id| self.record(id)) else {
                return;
            };
            let versions = record.versions.into_iter().filter(|entry| entry.is_kept);
            kept.extend(versions.map(|entry| format!("{}.wasm", entry.digest)));
        }
        let Ok(found) = std::fs::read_dir(self.dir.join("blobs")) else {
            return;
        };
        for file in found.flatten() {
            let is_kept = file
                .file_name()
                .to_str()
                .is_some_and(|name| kept.contains(name));
            if !is_kept {
                let _ = std::fs::remove_file(file.path());
            }
        }
    }
}

/// Beside its place, fsync'd, renamed into it.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digest: &str, fate: Fate) -> Entry {
        Entry {
            digest: digest.to_owned(),
            bytes: 1,
            generation: 1,
            origin: "file".to_owned(),
            by: "test".to_owned(),
            reason: None,
            at: 0,
            fate,
            told: None,
            signature: None,
            is_kept: fate != Fate::Refused,
        }
    }

    #[test]
    fn going_back_goes_to_the_last_one_that_ran() {
        let mut record = Record::default();
        assert!(record.previous().is_none());
        for (digest, fate) in [
            ("aa", Fate::Promoted),
            ("bb", Fate::Promoted),
            ("cc", Fate::Refused),
            ("dd", Fate::RolledBack),
            ("ee", Fate::Promoted),
        ] {
            record.put(entry(digest, fate));
        }
        record.current = Some("ee".to_owned());
        assert_eq!(record.previous().map(|entry| &*entry.digest), Some("bb"));
        assert_eq!(
            record.find("sha256:d").map(|entry| &*entry.digest),
            Some("dd")
        );
        record.put(entry("de", Fate::Promoted));
        assert!(record.find("d").is_none() && record.find("").is_none());
    }

    #[test]
    fn versions_are_bounded_and_the_current_one_is_always_kept() {
        let mut record = Record {
            current: Some("first".to_owned()),
            ..Record::default()
        };
        record.put(entry("first", Fate::Promoted));
        for n in 0..100 {
            record.put(entry(&format!("v{n}"), Fate::RolledBack));
        }
        assert_eq!(record.versions.len(), REMEMBERED_MAX);
        let kept = |record: &Record| {
            let kept = record.versions.iter().filter(|entry| entry.is_kept);
            kept.count()
        };
        assert_eq!(kept(&record), VERSIONS_KEPT_MAX + 1);
        assert!(record.find("first").is_some_and(|entry| entry.is_kept));
        // However many bad ones come: what can be gone back to stays.
        for n in 0..200 {
            record.put(entry(&format!("bad{n}"), Fate::Refused));
        }
        assert_eq!(record.versions.len(), REMEMBERED_MAX);
        assert_eq!(kept(&record), VERSIONS_KEPT_MAX + 1);
    }

    #[test]
    fn what_is_kept_is_read_back_and_the_rest_is_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = VersionStore::new(dir.path());
        assert!(
            store
                .record("worker")
                .is_ok_and(|record| record.current.is_none())
        );
        let mut record = Record::default();
        record.put(entry("aa", Fate::Promoted));
        for digest in ["aa", "bb"] {
            store.keep_bytes(digest, b"bytes").expect("a disk");
        }
        store.keep("worker", &record).expect("a disk");
        store.forget_others();
        assert_eq!(store.bytes("aa").expect("it is kept"), b"bytes");
        assert!(store.bytes("bb").is_err());
        std::fs::write(dir.path().join("components/worker.json"), "{").expect("a disk");
        let error = store.record("worker").expect_err("it is damaged");
        assert!(
            error.to_string().contains("worker.json is damaged"),
            "{error}"
        );
    }
}
