//! The memory limit of one instance.

use wasmtime::{ResourceLimiter, Result};

/// Entries that all tables of an instance may hold. A table holds function
/// pointers: even the Python interpreter needs fewer than 20,000.
const TABLE_ENTRIES_MAX: usize = 100_000;

/// Counts linear memory over all memories of one store and refuses to grow
/// past the limit. A refusal is remembered: a guest that dies after one died
/// of its memory limit.
pub struct MemoryLimit {
    limit_bytes: usize,
    used_bytes: usize,
    refused: bool,
}

impl MemoryLimit {
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            used_bytes: 0,
            refused: false,
        }
    }

    /// True once a growth was refused.
    pub fn was_refused(&self) -> bool {
        self.refused
    }

    /// Linear memory in use: its peak, since it never shrinks.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let used_bytes = self
            .used_bytes
            .saturating_add(desired.saturating_sub(current));
        if used_bytes > self.limit_bytes {
            self.refused = true;
            return Ok(false);
        }
        self.used_bytes = used_bytes;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= TABLE_ENTRIES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_all_memories_together() {
        let mut limit = MemoryLimit::new(100);
        assert!(limit.memory_growing(0, 60, None).expect("no error"));
        assert!(!limit.memory_growing(0, 60, None).expect("no error"));
        assert!(limit.was_refused());
        assert!(limit.memory_growing(0, 40, None).expect("no error"));
        assert_eq!(limit.used_bytes(), 100);
    }
}
