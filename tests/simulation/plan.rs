//! What is going to happen, made from the seed before anything does.

use std::time::Duration;

use orchestrator::dispatch::chaos::Chaos;
use orchestrator::dispatch::policy::RetryPolicy;
use orchestrator_engine::Outcome;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// One seed in so many is calm, so that rules hold that need calm.
const CALM: u64 = 4;

/// What the dispatcher, the queue and the world are given.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub jobs: Vec<PlannedJob>,
    pub concurrency: usize,
    pub attempts_max: u32,
    pub lock: Duration,
    pub timeout: Duration,
    pub retry: RetryPolicy,
    pub chaos: Chaos,
    /// How the hosts end, one after the other; the last one does not.
    pub ends: Vec<(Duration, End)>,
    /// Storage faults that may happen in the whole run.
    pub storage_faults: u32,
    /// Share of the disk's operations that fail, while there are faults left.
    pub storage_fault_rate: f64,
    /// Longest wait of a batch for its disk.
    pub disk_delay: Duration,
    /// How wild the worker is, from 0 to 1.
    pub wildness: f64,
    /// Bytes that the queue may hold.
    pub bytes_max: u64,
}

#[derive(Debug)]
pub struct PlannedJob {
    pub id: String,
    pub send_at: Duration,
    pub delay: Duration,
    /// When it is sent once more after it was accepted.
    pub repeat_after: Option<Duration>,
}

/// How a host ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    Kill,
    /// Of what was not synced, so many batches survive.
    PowerLoss {
        kept: usize,
    },
    /// Told to stop, with this long for jobs to end.
    Stop {
        patience: Duration,
    },
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut plan = Self::wild(seed);
        if seed.is_multiple_of(CALM) {
            // Hosts only stop, and nothing takes locks or hinders brokers and disks.
            plan.chaos.lock_loss_rate = 0.0;
            plan.chaos.late_settle_rate = 0.0;
            plan.chaos.broker_down_rate = 0.0;
            plan.chaos.broker_throttle_rate = 0.0;
            plan.chaos.broker_slow_rate = 0.0;
            plan.storage_faults = 0;
            for (_, end) in &mut plan.ends {
                let patience = Duration::from_millis(300);
                *end = End::Stop { patience };
            }
        }
        plan
    }

    fn wild(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let random = &mut random;
        let spread = Duration::from_millis(random.random_range(1..20_000));
        let jobs = (0..random.random_range(1..24))
            .map(|n| PlannedJob {
                id: format!("job-{n}"),
                send_at: spread.mul_f64(random.random()),
                delay: if random.random_bool(0.2) {
                    Duration::from_millis(random.random_range(1..10_000))
                } else {
                    Duration::ZERO
                },
                repeat_after: random
                    .random_bool(0.3)
                    .then(|| Duration::from_millis(random.random_range(0..20_000))),
            })
            .collect();
        let ends = (0..random.random_range(0..4))
            .map(|_| {
                let end = match random.random_range(0..3) {
                    0 => End::Kill,
                    1 => End::PowerLoss {
                        kept: random.random_range(0..4),
                    },
                    _ => End::Stop {
                        patience: Duration::from_millis(random.random_range(0..3_000)),
                    },
                };
                (Duration::from_millis(random.random_range(1..15_000)), end)
            })
            .collect();
        // Half of the faults of each kind are away, so that rare mixtures are
        // not drowned by a broker that never answers.
        let mut rate = |most: f64| match random.random_bool(0.5) {
            true => random.random_range(0.0..most),
            false => 0.0,
        };
        let chaos = Chaos {
            failure_rate: rate(0.3),
            trap_rate: rate(0.3),
            latency_rate: rate(0.5),
            latency_ms: 500,
            lock_loss_rate: rate(0.3),
            late_settle_rate: rate(0.3),
            broker_down_rate: rate(0.3),
            broker_throttle_rate: rate(0.3),
            broker_slow_rate: rate(0.5),
            broker_delay_ms: 200,
            seed,
        };
        Self {
            seed,
            jobs,
            concurrency: random.random_range(1..8),
            attempts_max: random.random_range(1..6),
            lock: Duration::from_millis(random.random_range(1_000..5_000)),
            timeout: Duration::from_secs(12),
            retry: RetryPolicy {
                initial: Duration::from_millis(random.random_range(1..1_000)),
                factor: random.random_range(1.0..3.0),
                max: Duration::from_secs(5),
                jitter: false,
            },
            chaos,
            ends,
            storage_faults: random.random_range(0..6),
            storage_fault_rate: random.random_range(0.0..0.1),
            disk_delay: Duration::from_millis(random.random_range(0..30)),
            wildness: random.random_range(0.0..0.7),
            bytes_max: if random.random_bool(0.2) {
                2_000
            } else {
                1 << 30
            },
        }
    }

    /// What the worker does with this attempt: for how long, and how it ends.
    /// The number of the run only names its result, and lets an instance that
    /// did not start do so the next time.
    pub fn behaviour(&self, job: &str, attempt: u32, run: usize) -> (Duration, Outcome) {
        let digest = Sha256::digest(format!("{} {job} {attempt}", self.seed));
        let head = digest.first_chunk().expect("a SHA-256 has 32 bytes");
        let mut random = StdRng::seed_from_u64(u64::from_be_bytes(*head));
        let busy = match random.random_range(0..10) {
            // Longer than several locks, and sometimes than the deadline.
            0 => Duration::from_millis(random.random_range(2_000..15_000)),
            1..4 => Duration::ZERO,
            _ => Duration::from_millis(random.random_range(1..800)),
        };
        let done = Outcome::Done {
            result: format!("{job} run {run}").into_bytes(),
            content_type: String::new(),
        };
        if !random.random_bool(self.wildness) {
            return (busy, done);
        }
        let outcome = match random.random_range(0..8) {
            0 => Outcome::Retry {
                reason: "wanted".to_owned(),
                delay: Some(Duration::from_millis(random.random_range(0..8_000))),
            },
            1 => Outcome::Retry {
                reason: "wanted".to_owned(),
                delay: None,
            },
            2 => Outcome::DeadLetter {
                reason: "GivenUp".to_owned(),
                description: "by the worker".to_owned(),
            },
            3 => Outcome::Trapped {
                kind: "unreachable".to_owned(),
                backtrace: String::new(),
            },
            4 => Outcome::OutOfMemory,
            5 => Outcome::BadAnswer {
                description: "too long".to_owned(),
            },
            // At its second try an instance starts.
            6 if run.is_multiple_of(2) => Outcome::NotStarted {
                description: "no room".to_owned(),
            },
            _ => done,
        };
        (busy, outcome)
    }
}
