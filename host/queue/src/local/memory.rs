//! Rows in memory, for tests of what stands on them.

use std::collections::BTreeMap;

use super::records::Table;
use super::store::{Row, Rows, StoreError, Writes};

/// Ordered maps of bytes, all tables in one.
#[derive(Clone, Default)]
pub(crate) struct Memory(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl Memory {
    pub fn commit(&mut self, writes: Writes) {
        for (key, value) in writes {
            match value {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    fn rows(&self, table: Table, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = Row> {
        // An empty range may be written with its ends exchanged.
        let range = (table, from.to_vec())..(table, to.max(from).to_vec());
        self.0
            .range(range)
            .map(|((_, key), value)| (key.clone(), value.clone()))
    }
}

impl Rows for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.rows(table, from, to).take(limit).collect())
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.rows(table, from, to).rev().take(limit).collect())
    }
}
