//! The locks of one queue. In memory only: a crash unlocks everything.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use crate::Millis;
use crate::local::records::{DueRecord, Position};

/// Names one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockKey {
    pub sequence: u64,
    pub token: Uuid,
}

/// What is remembered of a locked message, so that settling reads nothing.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub position: Position,
    pub expires_at: Millis,
    pub due: DueRecord,
    pub head: Arc<Head>,
}

/// What identifies a message, without its payload.
#[derive(Debug)]
pub(crate) struct Head {
    pub id: String,
    pub job_type: String,
    pub enqueued_at: Millis,
    pub traceparent: Option<String>,
    pub size: u64,
}

#[derive(Default)]
pub(crate) struct Locks {
    leases: HashMap<u64, (Uuid, Lease)>,
    by_expiry: BTreeSet<(Millis, u64)>,
    by_position: BTreeSet<Position>,
    /// What to undo if the batch fails, newest last.
    undo: Vec<(u64, Option<(Uuid, Lease)>)>,
    changes: Vec<(u64, bool)>,
}

impl Locks {
    pub fn len(&self) -> u64 {
        self.leases.len() as u64
    }

    pub fn contains(&self, sequence: u64) -> bool {
        self.leases.contains_key(&sequence)
    }

    pub fn oldest(&self) -> Option<Position> {
        self.by_position.first().copied()
    }

    pub fn next_expiry(&self) -> Option<Millis> {
        self.by_expiry.first().map(|(at, _)| *at)
    }

    pub fn insert(&mut self, key: LockKey, lease: Lease) {
        let before = self.leases.get(&key.sequence).cloned();
        self.undo.push((key.sequence, before));
        self.set(key.sequence, Some((key.token, lease)));
    }

    /// The lease, if this very lock holds.
    pub fn get(&self, key: LockKey) -> Option<&Lease> {
        self.leases
            .get(&key.sequence)
            .filter(|(token, _)| *token == key.token)
            .map(|(_, lease)| lease)
    }

    /// The lock that holds a message now.
    pub fn holder(&self, sequence: u64) -> Option<LockKey> {
        let (token, _) = self.leases.get(&sequence)?;
        Some(LockKey {
            sequence,
            token: *token,
        })
    }

    /// Ends the lock, if it holds.
    pub fn take(&mut self, key: LockKey) -> Option<Lease> {
        let lease = self.get(key)?.clone();
        self.undo
            .push((key.sequence, Some((key.token, lease.clone()))));
        self.set(key.sequence, None);
        Some(lease)
    }

    /// Ends the locks that ran out; says where their messages are. Final even
    /// if the batch fails: time does not come back.
    pub fn expire(&mut self, now: Millis) -> Vec<Position> {
        let mut expired = Vec::new();
        while let Some((at, sequence)) = self.by_expiry.first().copied()
            && at <= now
        {
            expired.extend(self.leases.get(&sequence).map(|(_, lease)| lease.position));
            self.set(sequence, None);
        }
        expired
    }

    pub fn commit(&mut self) {
        self.undo.clear();
    }

    /// The locks as they were before the batch that failed.
    pub fn before_batch(&self) -> Vec<(LockKey, Lease)> {
        let mut leases = self.leases.clone();
        for (sequence, before) in self.undo.iter().rev() {
            match before {
                Some(before) => leases.insert(*sequence, before.clone()),
                None => leases.remove(sequence),
            };
        }
        leases
            .into_iter()
            .map(|(sequence, (token, lease))| (LockKey { sequence, token }, lease))
            .collect()
    }

    pub fn take_changes(&mut self) -> Vec<(u64, bool)> {
        std::mem::take(&mut self.changes)
    }

    fn set(&mut self, sequence: u64, lease: Option<(Uuid, Lease)>) {
        self.changes.push((sequence, lease.is_some()));
        let before = match lease {
            Some((token, lease)) => {
                self.by_expiry.insert((lease.expires_at, sequence));
                self.by_position.insert(lease.position);
                self.leases.insert(sequence, (token, lease))
            }
            None => self.leases.remove(&sequence),
        };
        if let Some((_, before)) = before {
            let now = self.leases.get(&sequence).map(|(_, lease)| lease);
            if now.is_none_or(|now| now.expires_at != before.expires_at) {
                self.by_expiry.remove(&(before.expires_at, sequence));
            }
            if now.is_none_or(|now| now.position != before.position) {
                self.by_position.remove(&before.position);
            }
        }
    }
}
