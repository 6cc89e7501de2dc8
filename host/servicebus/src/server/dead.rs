//! Peek-lock on dead letters: locks in memory, as those of the queue are.
//!
//! A dead letter has no next stage: it stays until it is completed, however
//! often it is delivered.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orchestrator_queue::local::Queue;
use orchestrator_queue::{DeadMessage, Millis, Selection, Unavailable};
use tokio::time::Instant;
use uuid::Uuid;

use super::now_ms;

/// Dead letters looked at in one read, to find one that is not locked.
const LOOKED_AT_ONCE: usize = 32;
/// How often a poll that found none looks again: dead letters are for people.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Who holds which dead letter.
#[derive(Default)]
pub struct DeadLocks(Mutex<HashMap<(String, u64), DeadLock>>);

#[derive(Clone, Debug)]
struct DeadLock {
    token: Uuid,
    locked_until: Millis,
    deliveries: u32,
}

/// One dead letter under its lock.
pub struct DeadDelivery {
    pub dead: DeadMessage,
    pub token: Uuid,
    pub locked_until: Millis,
    /// Deliveries as a dead letter, on top of those before.
    pub deliveries: u32,
}

/// The lock ran out, was settled, or never was.
pub struct LockLost;

impl DeadLocks {
    fn held(&self) -> MutexGuard<'_, HashMap<(String, u64), DeadLock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the first dead letter that is not, waiting until `deadline` for one.
    pub async fn receive(
        &self,
        queue: &Queue,
        deadline: Instant,
    ) -> Result<Option<DeadDelivery>, Unavailable> {
        loop {
            if let Some(delivery) = self.lock_first(queue).await? {
                return Ok(Some(delivery));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_AGAIN.min(deadline - Instant::now())).await;
        }
    }

    async fn lock_first(&self, queue: &Queue) -> Result<Option<DeadDelivery>, Unavailable> {
        let mut after = None;
        loop {
            let dead = queue.dead_messages(after, LOOKED_AT_ONCE).await?;
            let Some(last) = dead.last().map(|dead| dead.sequence) else {
                return Ok(None);
            };
            after = Some(last);
            for dead in dead {
                if let Some(lock) = self.lock(queue, dead.sequence) {
                    return Ok(Some(DeadDelivery {
                        token: lock.token,
                        locked_until: lock.locked_until,
                        deliveries: lock.deliveries,
                        dead,
                    }));
                }
            }
        }
    }

    fn lock(&self, queue: &Queue, sequence: u64) -> Option<DeadLock> {
        let now = now_ms();
        let mut held = self.held();
        let key = (queue.name().to_owned(), sequence);
        let before = held.get(&key);
        if before.is_some_and(|lock| lock.locked_until > now) {
            return None;
        }
        let lock = DeadLock {
            token: Uuid::new_v4(),
            locked_until: now + duration_ms(queue),
            deliveries: before.map_or(0, |lock| lock.deliveries) + 1,
        };
        held.insert(key, lock.clone());
        Some(lock)
    }

    /// Throws the dead letter away; durable when this returns `Ok`.
    pub async fn complete(
        &self,
        queue: &Queue,
        message: &str,
        token: Uuid,
    ) -> Result<Result<(), LockLost>, Unavailable> {
        let Some(key) = self.key(queue, message, token) else {
            return Ok(Err(LockLost));
        };
        let purged = queue.purge(Selection::Sequence(key.1)).await?;
        self.held().remove(&key);
        // It may have been brought back or thrown away beside this lock.
        Ok(if purged == 1 { Ok(()) } else { Err(LockLost) })
    }

    /// Lets go of it.
    pub fn unlock(&self, queue: &Queue, message: &str, token: Uuid) -> Result<(), LockLost> {
        let key = self.key(queue, message, token).ok_or(LockLost)?;
        if let Some(lock) = self.held().get_mut(&key) {
            lock.locked_until = now_ms();
        }
        Ok(())
    }

    /// Prolongs the lock by its length from now.
    pub fn renew(&self, queue: &Queue, message: &str, token: Uuid) -> Result<(), LockLost> {
        let key = self.key(queue, message, token).ok_or(LockLost)?;
        if let Some(lock) = self.held().get_mut(&key) {
            lock.locked_until = now_ms() + duration_ms(queue);
        }
        Ok(())
    }

    /// The lock that holds now, by its token; the number must agree where one is given.
    fn key(&self, queue: &Queue, message: &str, token: Uuid) -> Option<(String, u64)> {
        let now = now_ms();
        let mut held = self.held();
        held.retain(|_, lock| lock.locked_until + FORGET_MS > now);
        let found = held.iter().find(|((name, sequence), lock)| {
            name == queue.name()
                && lock.token == token
                && lock.locked_until > now
                && message
                    .parse::<u64>()
                    .map_or(true, |number| number == *sequence)
        });
        found.map(|(key, _)| key.clone())
    }
}

/// How long a lock that ran out is remembered, for its delivery count.
const FORGET_MS: Millis = 3_600_000;

fn duration_ms(queue: &Queue) -> Millis {
    u64::try_from(queue.config().lock_duration.as_millis()).unwrap_or(u64::MAX / 2)
}
