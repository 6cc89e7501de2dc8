//! What a ledger sees of the disk: reads, and writes that are staged until
//! they are committed together.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::records::Table;

/// The store failed. Whatever was staged is not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct StoreError(pub String);

impl StoreError {
    pub fn damaged(what: &str) -> Self {
        Self(format!("the store is damaged: {what}"))
    }
}

pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// Ordered maps of bytes that can be read.
pub(crate) trait Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Rows with keys in `from..to`, in order, at most `limit`.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError>;

    /// The same from the end backwards.
    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError>;
}

/// Writes on top of rows: later reads see them, the rows below do not.
pub(crate) struct Staged<'a, R: Rows> {
    base: &'a R,
    writes: Writes,
}

/// The staged writes; none is a removal.
pub(crate) type Writes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

impl<'a, R: Rows> Staged<'a, R> {
    pub fn new(base: &'a R) -> Self {
        Self {
            base,
            writes: Writes::new(),
        }
    }

    pub fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert((table, key), Some(value));
    }

    pub fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.writes.insert((table, key), None);
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        // A key of the map is an owned pair; looking up needs one too.
        match self.writes.get(&(table, key.to_vec())) {
            Some(staged) => Ok(staged.clone()),
            None => self.base.get(table, key),
        }
    }

    /// Rows of both, staged ones winning.
    pub fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let bounds = (
            Bound::Included((table, from.to_vec())),
            Bound::Excluded((table, to.to_vec())),
        );
        let staged = self.writes.range(bounds);
        // Each staged write can hide one row below, so that many more are read.
        let hidden = staged.clone().count();
        let below = self
            .base
            .scan(table, from, to, limit.saturating_add(hidden))?;
        if hidden == 0 {
            return Ok(below);
        }
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = below.into_iter().collect();
        for ((_, key), value) in staged {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    pub fn into_writes(self) -> Writes {
        self.writes
    }
}
