//! Random operations against a model that is too simple to be wrong.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::{Ledger, LockKey};
use crate::local::memory::Memory;
use crate::local::store::{Staged, StoreError};
use crate::{Message, Millis, Output, QueueConfig, Retention, Selection, Settlement};

const LOCK_MS: u64 = 10;
const WINDOW_MS: u64 = 50;
const LIFETIME_MS: u64 = 60;
const DELIVERIES_MAX: u32 = 3;

fn config() -> QueueConfig {
    QueueConfig {
        name: "q".to_owned(),
        lock_duration: Duration::from_millis(LOCK_MS),
        max_delivery_count: DELIVERIES_MAX,
        duplicate_window: Duration::from_millis(WINDOW_MS),
        time_to_live: Some(Duration::from_millis(LIFETIME_MS)),
        dead_letter_expired: true,
        max_bytes: u64::MAX,
        retention: Retention {
            age: Duration::from_secs(3_600),
            count: 1_000_000,
            bytes: u64::MAX,
        },
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Send { id: u8, delay_ms: u64 },
    Receive { max: usize },
    Renew { lock: prop::sample::Index },
    Settle { lock: prop::sample::Index, how: How },
    Redrive,
    Purge,
    Wait { ms: u64 },
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Complete,
    Retry { delay_ms: u64 },
    DeadLetter,
    Release,
}

fn operation() -> impl Strategy<Value = Operation> {
    let how = prop_oneof![
        Just(How::Complete),
        (0..30_u64).prop_map(|delay_ms| How::Retry { delay_ms }),
        Just(How::DeadLetter),
        Just(How::Release),
    ];
    prop_oneof![
        4 => (0..8_u8, prop_oneof![Just(0), 1..30_u64]).prop_map(|(id, delay_ms)| Operation::Send { id, delay_ms }),
        4 => (1..4_usize).prop_map(|max| Operation::Receive { max }),
        1 => any::<prop::sample::Index>().prop_map(|lock| Operation::Renew { lock }),
        4 => (any::<prop::sample::Index>(), how).prop_map(|(lock, how)| Operation::Settle { lock, how }),
        1 => Just(Operation::Redrive),
        1 => Just(Operation::Purge),
        3 => (1..15_u64).prop_map(|ms| Operation::Wait { ms }),
        1 => Just(Operation::Restart),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Waiting,
    Locked { token: Uuid, until: Millis },
    Dead,
    Gone,
}

#[derive(Clone, Debug)]
struct Model {
    id: String,
    accepted: Millis,
    due: Millis,
    /// Its time to live counts from here.
    first_due: Millis,
    deliveries: u32,
    at: At,
}

/// The ledger beside the list of everything that was ever accepted.
struct Both {
    memory: Memory,
    ledger: Ledger,
    now: Millis,
    messages: BTreeMap<u64, Model>,
    newest: HashMap<String, u64>,
    locks: Vec<LockKey>,
    tokens: u128,
}

impl Both {
    fn new() -> Self {
        let memory = Memory::default();
        let ledger = Ledger::open(0, config(), &mut Staged::new(&memory), 1_000).expect("opens");
        Self {
            memory,
            ledger,
            now: 1_000,
            messages: BTreeMap::new(),
            newest: HashMap::new(),
            locks: Vec::new(),
            tokens: 0,
        }
    }

    /// One operation as the writer does it: advance, apply, commit.
    fn ledger<T>(
        &mut self,
        apply: impl FnOnce(&mut Ledger, &mut Staged<'_, Memory>, Millis) -> Result<T, StoreError>,
    ) -> T {
        let mut staged = Staged::new(&self.memory);
        self.ledger
            .advance(&mut staged, self.now)
            .expect("advances");
        let answer = apply(&mut self.ledger, &mut staged, self.now).expect("applies");
        self.ledger.stage_counters(&mut staged);
        let writes = staged.into_writes();
        self.memory.commit(writes);
        self.ledger.commit_locks();
        answer
    }

    fn expire(&mut self) {
        for message in self.messages.values_mut() {
            if let At::Locked { until, .. } = message.at
                && until <= self.now
            {
                message.at = At::Waiting;
            }
        }
    }

    fn apply(&mut self, operation: Operation) {
        self.expire();
        match operation {
            Operation::Send { id, delay_ms } => self.send(format!("id{id}"), delay_ms),
            Operation::Receive { max } => self.receive(max),
            Operation::Renew { lock } => self.renew(lock),
            Operation::Settle { lock, how } => self.settle(lock, how),
            Operation::Redrive => self.redrive(),
            Operation::Purge => self.purge(),
            Operation::Wait { ms } => {
                self.now += ms;
                self.expire();
                self.ledger(|_, _, _| Ok(()));
            }
            Operation::Restart => {
                self.ledger = Ledger::open(0, config(), &mut Staged::new(&self.memory), self.now)
                    .expect("opens");
                for message in self.messages.values_mut() {
                    if matches!(message.at, At::Locked { .. }) {
                        message.at = At::Waiting;
                    }
                }
                self.ledger(|_, _, _| Ok(()));
            }
        }
        self.compare();
    }

    fn compare(&self) {
        let count = |test: &dyn Fn(&Model) -> bool| {
            self.messages
                .values()
                .filter(|message| test(message))
                .count() as u64
        };
        let stats = self.ledger.stats();
        let now = self.now;
        assert_eq!(
            stats.ready,
            count(&|m| m.at == At::Waiting && m.due <= now),
            "ready"
        );
        assert_eq!(
            stats.scheduled,
            count(&|m| m.at == At::Waiting && m.due > now),
            "scheduled"
        );
        assert_eq!(
            stats.locked,
            count(&|m| matches!(m.at, At::Locked { .. })),
            "locked"
        );
        assert_eq!(stats.dead, count(&|m| m.at == At::Dead), "dead");
        if stats.ready + stats.scheduled + stats.locked + stats.dead == 0 {
            assert_eq!(stats.bytes, 0, "an empty queue holds nothing");
        }
    }

    fn send(&mut self, id: String, delay_ms: u64) {
        let known = self
            .newest
            .get(&id)
            .map(|sequence| &self.messages[sequence]);
        let duplicate = known.is_some_and(|m| {
            m.accepted + WINDOW_MS > self.now || matches!(m.at, At::Waiting | At::Locked { .. })
        });
        let message = Message {
            id: id.clone(),
            job_type: String::new(),
            payload: id.clone().into(),
            content_type: String::new(),
            properties: Vec::new(),
            traceparent: None,
            delay: Duration::from_millis(delay_ms),
            time_to_live: None,
            envelope: bytes::Bytes::new(),
        };
        let receipt = self
            .ledger(|ledger, view, now| ledger.send(view, now, message))
            .expect("accepted");
        assert_eq!(receipt.duplicate, duplicate, "{id}");
        if !duplicate {
            let due = self.now + delay_ms;
            let model = Model {
                id: id.clone(),
                accepted: self.now,
                due,
                first_due: due,
                deliveries: 0,
                at: At::Waiting,
            };
            self.messages.insert(receipt.sequence, model);
            self.newest.insert(id, receipt.sequence);
        }
    }

    fn receive(&mut self, max: usize) {
        let mut tokens = self.tokens;
        let deliveries = self.ledger(|ledger, view, now| {
            ledger.receive(view, now, max, &mut || {
                tokens += 1;
                Uuid::from_u128(tokens)
            })
        });
        self.tokens = tokens;
        let mut due: Vec<(Millis, u64)> = self
            .messages
            .iter()
            .filter(|(_, m)| m.at == At::Waiting && m.due <= self.now)
            .map(|(sequence, m)| (m.due, *sequence))
            .collect();
        due.sort_unstable();
        let mut got = deliveries.iter();
        let mut delivered = 0;
        for (_, sequence) in due {
            if delivered == max {
                break;
            }
            let message = self.messages.get_mut(&sequence).expect("known");
            if message.first_due + LIFETIME_MS <= self.now || message.deliveries >= DELIVERIES_MAX {
                message.at = At::Dead;
                self.newest.insert(message.id.clone(), sequence);
                continue;
            }
            delivered += 1;
            message.deliveries += 1;
            let delivery = got.next().expect("the oldest due are delivered");
            let lock = &delivery.lock;
            assert_eq!(
                (lock.sequence, delivery.delivery_count),
                (sequence, message.deliveries)
            );
            assert_eq!(delivery.message.payload, message.id.as_bytes());
            message.at = At::Locked {
                token: lock.token,
                until: self.now + LOCK_MS,
            };
            self.locks.push(LockKey {
                sequence,
                token: lock.token,
            });
        }
        assert!(got.next().is_none(), "more was delivered than was due");
    }

    /// One of all locks there ever were, and whether it still holds.
    fn pick(&self, lock: prop::sample::Index) -> Option<(LockKey, bool)> {
        let key = *self.locks.get(lock.index(self.locks.len().max(1)))?;
        let holds = matches!(self.messages[&key.sequence].at, At::Locked { token, .. } if token == key.token);
        Some((key, holds))
    }

    fn renew(&mut self, lock: prop::sample::Index) {
        let Some((key, holds)) = self.pick(lock) else {
            return;
        };
        let renewed = self.ledger(|ledger, _, now| Ok(ledger.renew(now, key)));
        assert_eq!(renewed.is_ok(), holds);
        if holds {
            let until = self.now + LOCK_MS;
            self.messages.get_mut(&key.sequence).expect("known").at = At::Locked {
                token: key.token,
                until,
            };
        }
    }

    fn settle(&mut self, lock: prop::sample::Index, how: How) {
        let Some((key, holds)) = self.pick(lock) else {
            return;
        };
        let settlement = match how {
            How::Complete => Settlement::Complete {
                output: Output::default(),
            },
            How::Retry { delay_ms } => Settlement::Retry {
                delay: Duration::from_millis(delay_ms),
            },
            How::DeadLetter => Settlement::DeadLetter {
                reason: "r".to_owned(),
                description: String::new(),
            },
            How::Release => Settlement::Release,
        };
        let settled =
            self.ledger(|ledger, view, now| ledger.settle(view, now, key, settlement, None));
        assert_eq!(settled.is_ok(), holds);
        if !holds {
            return;
        }
        let message = self.messages.get_mut(&key.sequence).expect("known");
        message.at = match how {
            How::Complete => At::Gone,
            How::DeadLetter => At::Dead,
            How::Retry { .. } | How::Release => At::Waiting,
        };
        match how {
            How::Retry { delay_ms } => message.due = self.now + delay_ms,
            How::Release => message.deliveries -= 1,
            How::Complete | How::DeadLetter => {}
        }
        if !matches!(how, How::Release) {
            self.newest.insert(message.id.clone(), key.sequence);
        }
    }

    fn redrive(&mut self) {
        let count =
            self.ledger(|ledger, view, now| ledger.redrive(view, now, &Selection::All, usize::MAX));
        let mut expected = 0;
        for (sequence, message) in self.messages.iter_mut().filter(|(_, m)| m.at == At::Dead) {
            *message = Model {
                at: At::Waiting,
                deliveries: 0,
                due: self.now,
                first_due: self.now,
                ..message.clone()
            };
            self.newest.insert(message.id.clone(), *sequence);
            expected += 1;
        }
        assert_eq!(count, expected);
    }

    fn purge(&mut self) {
        let count =
            self.ledger(|ledger, view, now| ledger.purge(view, now, &Selection::All, usize::MAX));
        let mut expected = 0;
        for message in self.messages.values_mut().filter(|m| m.at == At::Dead) {
            message.at = At::Gone;
            expected += 1;
        }
        assert_eq!(count, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_does_what_the_model_does(operations in prop::collection::vec(operation(), 1..120)) {
        let mut both = Both::new();
        for operation in operations {
            both.apply(operation);
        }
    }
}
