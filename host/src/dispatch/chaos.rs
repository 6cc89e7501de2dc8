//! Faults injected on purpose, at three seams: the worker, the lock, the broker.
//!
//! What happens to an attempt is a pure function of the seed, the job's id and
//! the attempt; what happens to an operation of the broker, of the seed, the
//! operation and its number. So a run can be repeated, and two hosts agree on
//! attempts.
//!
//! | seam | fault | what happens |
//! | --- | --- | --- |
//! | worker | failure | the attempt fails as `Simulated Crash` before the worker starts |
//! | | trap | the worker runs to its end, and what it answered is lost as in a trap |
//! | | latency | the worker starts later, under its lock |
//! | lock | loss | someone else gets the job in the middle; the attempt is cancelled |
//! | | late settle | someone else gets the job at once; this one runs on and settles too late |
//! | broker | down | a send, receive, renewal or settlement fails as if the queue were away |
//! | | slow | it takes longer |
//! | | throttling | a burst of operations of one kind is turned away |

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The error of an attempt that chaos failed.
pub const SIMULATED_CRASH: &str = "Simulated Crash";
/// The kind of a trap that chaos made.
pub const SIMULATED_TRAP: &str = "Simulated Trap";
/// The error of an operation of the broker that chaos failed.
pub const SIMULATED_OUTAGE: &str = "Simulated Outage";
/// The error of an operation that chaos throttled.
pub const SIMULATED_THROTTLING: &str = "Simulated Throttling";
/// Sends, or receives, that a throttling turns away one after the other: brokers
/// throttle for a while, not here and there.
pub const THROTTLED_OPERATIONS: u64 = 16;
/// The same for renewals and settlements: fewer than a keeper of a lock tries
/// before it runs out, so that a throttling alone takes no lock.
pub const THROTTLED_UNDER_LOCK: u64 = 3;
/// Longest latency or delay that can be injected: half of the shortest usual lock.
pub const DELAY_MAX: Duration = Duration::from_secs(10);

/// Which faults to inject into the jobs of one queue. Rates are from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Chaos {
    /// Share of attempts that fail before the worker starts.
    pub failure_rate: f64,
    /// Share of attempts whose answer is lost in a trap.
    pub trap_rate: f64,
    /// Share of attempts that start late.
    pub latency_rate: f64,
    /// How late at most, in milliseconds.
    pub latency_ms: u64,
    /// Share of attempts that lose their lock in the middle.
    pub lock_loss_rate: f64,
    /// Share of attempts that settle too late.
    pub late_settle_rate: f64,
    /// Share of the broker's operations that fail.
    pub broker_down_rate: f64,
    /// Share of the broker's operations that are turned away, in bursts of
    /// [`THROTTLED_OPERATIONS`] or [`THROTTLED_UNDER_LOCK`].
    pub broker_throttle_rate: f64,
    /// Share of the broker's operations that are slow.
    pub broker_slow_rate: f64,
    /// How slow at most, in milliseconds.
    pub broker_delay_ms: u64,
    /// Picks which those are.
    pub seed: u64,
}

impl Default for Chaos {
    fn default() -> Self {
        Self {
            failure_rate: 0.0,
            trap_rate: 0.0,
            latency_rate: 0.0,
            latency_ms: 100,
            lock_loss_rate: 0.0,
            late_settle_rate: 0.0,
            broker_down_rate: 0.0,
            broker_throttle_rate: 0.0,
            broker_slow_rate: 0.0,
            broker_delay_ms: 200,
            seed: 0,
        }
    }
}

/// What happens to one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// It fails before the worker starts.
    pub failure: bool,
    /// Its answer is lost.
    pub trap: bool,
    /// The worker starts so much later.
    pub latency: Option<Duration>,
    /// Its lock is lost after so long.
    pub lock_loss: Option<Duration>,
    /// It settles too late.
    pub late_settle: bool,
}

/// What happens to one operation of the broker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BrokerFault {
    /// It fails.
    Down,
    /// It is turned away: there are too many.
    Throttled,
    /// It takes so much longer.
    Slow(Duration),
}

/// After how long a lock is lost, at most: in the middle of most jobs.
const LOCK_LOSS_AFTER_MAX: Duration = Duration::from_millis(50);

impl Chaos {
    /// True if this attempt is to fail.
    pub fn fails(&self, job: &str, attempt: u32) -> bool {
        self.hits(self.failure_rate, "", job, u64::from(attempt))
    }

    /// What happens to this attempt.
    pub fn faults(&self, job: &str, attempt: u32) -> Faults {
        let attempt_number = u64::from(attempt);
        let hits = |rate, fault| self.hits(rate, fault, job, attempt_number);
        let part = |fault| self.draw(fault, job, attempt_number);
        Faults {
            failure: self.fails(job, attempt),
            trap: hits(self.trap_rate, "trap"),
            latency: hits(self.latency_rate, "latency")
                .then(|| Duration::from_millis(self.latency_ms).mul_f64(part("how late"))),
            lock_loss: hits(self.lock_loss_rate, "lock loss")
                .then(|| LOCK_LOSS_AFTER_MAX.mul_f64(part("how soon"))),
            late_settle: hits(self.late_settle_rate, "late settle"),
        }
    }

    /// What happens to the broker's `number`th operation of this kind.
    pub fn broker(&self, kind: Operation, number: u64) -> Option<BrokerFault> {
        let operation = kind.name();
        if self.hits(self.broker_down_rate, "down", operation, number) {
            return Some(BrokerFault::Down);
        }
        let burst = match kind {
            Operation::Send | Operation::Receive => number / THROTTLED_OPERATIONS,
            Operation::Renew | Operation::Settle => number / THROTTLED_UNDER_LOCK,
        };
        if self.hits(self.broker_throttle_rate, "throttled", operation, burst) {
            return Some(BrokerFault::Throttled);
        }
        let is_slow = self.hits(self.broker_slow_rate, "slow", operation, number);
        is_slow.then(|| {
            let part = self.draw("how slow", operation, number);
            BrokerFault::Slow(Duration::from_millis(self.broker_delay_ms).mul_f64(part))
        })
    }

    /// True if the broker has faults at all.
    pub fn troubles_the_broker(&self) -> bool {
        self.broker_down_rate > 0.0
            || self.broker_throttle_rate > 0.0
            || self.broker_slow_rate > 0.0
    }

    fn hits(&self, rate: f64, fault: &str, whose: &str, number: u64) -> bool {
        rate > 0.0 && self.draw(fault, whose, number) < rate
    }

    /// A number in [0, 1) that only these values decide.
    fn draw(&self, fault: &str, whose: &str, number: u64) -> f64 {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_be_bytes());
        hash.update(number.to_be_bytes());
        hash.update(fault);
        hash.update([0]);
        hash.update(whose);
        let hash = hash.finalize();
        let (head, _) = hash.split_first_chunk().expect("a SHA-256 has 32 bytes");
        // 53 bits are what an f64 holds exactly.
        (u64::from_be_bytes(*head) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// What is wrong with it, in a sentence.
    pub fn check(&self) -> Result<(), String> {
        let rates = [
            ("failureRate", self.failure_rate),
            ("trapRate", self.trap_rate),
            ("latencyRate", self.latency_rate),
            ("lockLossRate", self.lock_loss_rate),
            ("lateSettleRate", self.late_settle_rate),
            ("brokerDownRate", self.broker_down_rate),
            ("brokerThrottleRate", self.broker_throttle_rate),
            ("brokerSlowRate", self.broker_slow_rate),
        ];
        for (name, rate) in rates {
            if !(0.0..=1.0).contains(&rate) {
                return Err(format!("`{name}` is {rate}; it may be 0 to 1"));
            }
        }
        for (name, delay) in [
            ("latencyMs", self.latency_ms),
            ("brokerDelayMs", self.broker_delay_ms),
        ] {
            if Duration::from_millis(delay) > DELAY_MAX {
                let most = DELAY_MAX.as_millis();
                return Err(format!("`{name}` is {delay}; it may be 0 to {most}"));
            }
        }
        Ok(())
    }
}

/// The faults of one queue: those of the manifest, or others for a while.
pub struct Switch {
    configured: Chaos,
    live: ArcSwap<Option<(Chaos, SystemTime)>>,
    /// Operations of the broker so far, by kind.
    operations: [AtomicU64; Operation::ALL.len()],
}

/// What a broker is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Accept messages.
    Send,
    /// Hand messages out.
    Receive,
    /// Prolong a lock.
    Renew,
    /// End a delivery.
    Settle,
}

impl Operation {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Send, Self::Receive, Self::Renew, Self::Settle];

    fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Renew => "renew",
            Self::Settle => "settle",
        }
    }
}

impl Switch {
    /// The manifest's faults.
    pub fn new(configured: Chaos) -> Self {
        Self {
            configured,
            live: ArcSwap::default(),
            operations: Default::default(),
        }
    }

    /// The faults now.
    pub fn now(&self) -> Chaos {
        match **self.live.load() {
            Some((chaos, until)) if SystemTime::now() < until => chaos,
            _ => self.configured,
        }
    }

    /// Until when others than the manifest's hold.
    pub fn until(&self) -> Option<SystemTime> {
        let until = (**self.live.load()).map(|(_, until)| until);
        until.filter(|until| SystemTime::now() < *until)
    }

    /// Injects these until then.
    pub fn set(&self, chaos: Chaos, until: SystemTime) {
        self.live.store(std::sync::Arc::new(Some((chaos, until))));
    }

    /// Goes back to the manifest's.
    pub fn reset(&self) {
        self.live.store(std::sync::Arc::default());
    }

    /// Stands before an operation of the broker: passes after a while, or fails.
    pub async fn before(&self, operation: Operation) -> Result<(), String> {
        let chaos = self.now();
        if !chaos.troubles_the_broker() {
            return Ok(());
        }
        let number = self.operations[operation as usize].fetch_add(1, Ordering::Relaxed);
        match chaos.broker(operation, number) {
            None => Ok(()),
            Some(BrokerFault::Down) => Err(SIMULATED_OUTAGE.to_owned()),
            Some(BrokerFault::Throttled) => Err(SIMULATED_THROTTLING.to_owned()),
            Some(BrokerFault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_fails_the_same_attempts() {
        let chaos = Chaos {
            failure_rate: 0.5,
            seed: 7,
            ..Chaos::default()
        };
        let run = || {
            (0..200)
                .map(|n| chaos.fails(&format!("job-{n}"), 1))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
        let other = Chaos { seed: 8, ..chaos };
        assert_ne!(
            run(),
            (0..200)
                .map(|n| other.fails(&format!("job-{n}"), 1))
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_rate_is_met_and_attempts_differ() {
        let chaos = Chaos {
            failure_rate: 0.3,
            seed: 42,
            ..Chaos::default()
        };
        let failed = (0..10_000)
            .filter(|n| chaos.fails(&format!("job-{n}"), 1))
            .count();
        assert!(
            (2_800..3_200).contains(&failed),
            "{failed} of 10,000 failed at a rate of 0.3"
        );
        assert!((1..100).any(|attempt| !chaos.fails("job-1", attempt)));
    }

    #[test]
    fn the_ends_of_the_rate_are_exact() {
        for n in 0..1_000 {
            assert!(
                !Chaos {
                    failure_rate: 0.0,
                    seed: n,
                    ..Chaos::default()
                }
                .fails("job", 1)
            );
            assert!(
                Chaos {
                    failure_rate: 1.0,
                    seed: n,
                    ..Chaos::default()
                }
                .fails("job", 1)
            );
        }
    }

    #[test]
    fn faults_are_drawn_apart_and_only_where_they_are_asked_for() {
        let all = Chaos {
            failure_rate: 0.2,
            trap_rate: 0.2,
            latency_rate: 0.2,
            lock_loss_rate: 0.2,
            late_settle_rate: 0.2,
            broker_down_rate: 0.2,
            broker_slow_rate: 0.2,
            seed: 3,
            ..Chaos::default()
        };
        let faults: Vec<Faults> = (0..5_000)
            .map(|n| all.faults(&format!("j{n}"), 1))
            .collect();
        let share = |is: fn(&Faults) -> bool| {
            let hits = faults.iter().filter(|faults| is(faults)).count();
            assert!((850..1_150).contains(&hits), "{hits} of 5,000");
        };
        share(|faults| faults.failure);
        share(|faults| faults.trap);
        share(|faults| faults.latency.is_some());
        share(|faults| faults.lock_loss.is_some());
        share(|faults| faults.late_settle);
        assert!(faults.iter().any(|faults| faults.failure && !faults.trap));
        assert_eq!(Chaos::default().faults("j", 1), Faults::default());
        let down =
            (0..5_000).filter(|n| all.broker(Operation::Send, *n) == Some(BrokerFault::Down));
        assert!((850..1_150).contains(&down.count()));
        let throttling = Chaos {
            broker_throttle_rate: 0.2,
            seed: 3,
            ..Chaos::default()
        };
        let fate = |n: &u64| throttling.broker(Operation::Send, *n) == Some(BrokerFault::Throttled);
        let throttled: Vec<u64> = (0..50_000).filter(fate).collect();
        assert!((8_500..11_500).contains(&throttled.len()));
        let first = throttled[0];
        assert_eq!(
            first % THROTTLED_OPERATIONS,
            0,
            "a burst, from its beginning"
        );
        assert!((first..first + THROTTLED_OPERATIONS).all(|n| fate(&n)));
        assert_eq!(Chaos::default().broker(Operation::Send, 1), None);
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let wrong = Chaos {
            trap_rate: 1.5,
            ..Chaos::default()
        };
        let told = Err("`trapRate` is 1.5; it may be 0 to 1".to_owned());
        assert_eq!(wrong.check(), told);
        let slow = Chaos {
            latency_ms: 60_000,
            ..Chaos::default()
        };
        assert!(slow.check().is_err() && Chaos::default().check().is_ok());
    }

    #[test]
    fn a_switch_holds_for_its_time_and_goes_back() {
        let switch = Switch::new(Chaos::default());
        let other = Chaos {
            failure_rate: 1.0,
            ..Chaos::default()
        };
        switch.set(other, SystemTime::now() + Duration::from_secs(60));
        assert_eq!(switch.now(), other);
        switch.set(other, SystemTime::now());
        assert_eq!((switch.now(), switch.until()), (Chaos::default(), None));
        switch.set(other, SystemTime::now() + Duration::from_secs(60));
        switch.reset();
        assert_eq!(switch.now(), Chaos::default());
    }
}
