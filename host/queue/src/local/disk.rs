//! The store on disk: fjall, a log-structured engine; or a simulated one.

use std::fmt;
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::records::Table;
use super::store::{Row, Rows, StoreError, Writes};

/// Blocks kept in memory, over all tables.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Recent writes of one table kept in memory before they are written as a
/// sorted file: larger means fewer files, and more to replay after a crash.
const MEMTABLE_BYTES: u64 = 16 * 1024 * 1024;
/// Journal on disk before old parts of it must go: bounds replay after a crash.
const JOURNAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Threads that sort and merge files: one, the cores are for jobs.
const WORKER_THREADS: usize = 1;

/// Where a store is.
#[derive(Clone)]
pub(crate) enum Place {
    /// In this directory.
    Dir(PathBuf),
    /// In memory, with faults.
    #[cfg(feature = "simulation")]
    Simulated(super::simulated::SimulatedDisk),
}

impl Place {
    pub fn open(&self) -> Result<Disk, OpenFailure> {
        match self {
            Self::Dir(dir) => Files::open(dir).map(Disk::Files),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.open().map(Disk::Simulated),
        }
    }

    /// Free space, in bytes, as far as that is known.
    pub fn free_bytes(&self) -> u64 {
        match self {
            Self::Dir(dir) => rustix::fs::statvfs(dir)
                .map(|stat| stat.f_bavail * stat.f_frsize)
                .unwrap_or(u64::MAX),
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => u64::MAX,
        }
    }
}

#[cfg(feature = "simulation")]
impl Place {
    /// Waits as long as a slow disk would take.
    pub async fn pause(&self) {
        match self {
            Self::Dir(_) => {}
            Self::Simulated(disk) => disk.pause().await,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => dir.display().fmt(f),
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => f.write_str("memory"),
        }
    }
}

/// An open store. Clones share it.
#[derive(Clone)]
pub(crate) enum Disk {
    Files(Files),
    #[cfg(feature = "simulation")]
    Simulated(super::simulated::SimulatedDisk),
}

impl Disk {
    /// Writes a batch whole or not at all. It then survives the process's
    /// death; the machine's only after [`sync`](Self::sync).
    pub fn commit(&self, writes: Writes) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        match self {
            Self::Files(files) => files.commit(writes),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.commit(writes),
        }
    }

    /// Makes everything committed so far survive a power failure. Apart from
    /// [`commit`](Self::commit), so that a full disk and a failed fsync, which
    /// mean different things, can be told apart.
    pub fn sync(&self) -> Result<(), StoreError> {
        match self {
            Self::Files(files) => files.sync(),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => disk.sync(),
        }
    }

    /// A view that later writes do not change.
    pub fn snapshot(&self) -> DiskView<'_> {
        match self {
            Self::Files(files) => DiskView::Files(files.snapshot()),
            #[cfg(feature = "simulation")]
            Self::Simulated(disk) => DiskView::Simulated(disk.snapshot()),
        }
    }
}

/// One moment of a store.
pub(crate) enum DiskView<'a> {
    Files(FilesView<'a>),
    #[cfg(feature = "simulation")]
    Simulated(std::sync::Arc<super::memory::Memory>),
}

impl Rows for DiskView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Self::Files(view) => view.get(table, key),
            #[cfg(feature = "simulation")]
            Self::Simulated(rows) => rows.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Files(view) => view.scan(table, from, to, limit),
            #[cfg(feature = "simulation")]
            Self::Simulated(rows) => rows.scan(table, from, to, limit),
        }
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Files(view) => view.scan_back(table, from, to, limit),
            #[cfg(feature = "simulation")]
            Self::Simulated(rows) => rows.scan_back(table, from, to, limit),
        }
    }
}

/// A store of files. Clones share it.
#[derive(Clone)]
pub(crate) struct Files {
    database: Database,
    tables: [Keyspace; Table::ALL.len()],
}

/// Why a store could not be opened.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// Another process has it.
    Locked,
    /// Anything else.
    Other(String),
}

impl Files {
    fn open(dir: &Path) -> Result<Self, OpenFailure> {
        let opened = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(WORKER_THREADS)
            .open();
        let database = match opened {
            Ok(database) => database,
            Err(fjall::Error::Locked) => return Err(OpenFailure::Locked),
            Err(error) => return Err(OpenFailure::Other(describe(&error))),
        };
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let keyspace = database.keyspace(table.name(), options);
            tables.push(keyspace.map_err(|error| OpenFailure::Other(describe(&error)))?);
        }
        let tables = tables
            .try_into()
            .unwrap_or_else(|_| unreachable!("one keyspace for each table"));
        Ok(Self { database, tables })
    }

    fn commit(&self, writes: Writes) -> Result<(), StoreError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        for ((table, key), value) in writes {
            match value {
                Some(value) => batch.insert(self.keyspace(table), key, value),
                None => batch.remove(self.keyspace(table), key),
            }
        }
        batch.commit().map_err(|error| StoreError(describe(&error)))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(|error| StoreError(describe(&error)))
    }

    fn snapshot(&self) -> FilesView<'_> {
        FilesView {
            snapshot: self.database.snapshot(),
            files: self,
        }
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.tables[table as usize]
    }
}

/// One moment of a store of files.
pub(crate) struct FilesView<'a> {
    snapshot: Snapshot,
    files: &'a Files,
}

impl Rows for FilesView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.snapshot.get(self.files.keyspace(table), key);
        Ok(value
            .map_err(|error| StoreError(describe(&error)))?
            .map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        collect(
            self.snapshot.range(self.files.keyspace(table), from..to),
            limit,
        )
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        collect(
            self.snapshot
                .range(self.files.keyspace(table), from..to)
                .rev(),
            limit,
        )
    }
}

fn collect(rows: impl Iterator<Item = fjall::Guard>, limit: usize) -> Result<Vec<Row>, StoreError> {
    rows.take(limit)
        .map(|row| match row.into_inner() {
            Ok((key, value)) => Ok((key.to_vec(), value.to_vec())),
            Err(error) => Err(StoreError(describe(&error))),
        })
        .collect()
}

/// The engine's errors print their own structure; these are for people.
fn describe(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) => error.to_string(),
        fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        fjall::Error::Poisoned => "an earlier write failed".to_owned(),
        fjall::Error::InvalidVersion(version) => {
            format!("its files have an unknown version ({version:?})")
        }
        other => format!("the storage engine reports {other:?}"),
    }
}
