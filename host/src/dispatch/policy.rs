//! What follows from the end of a delivery: one table, in one place, pure.

use std::time::Duration;

use orchestrator_engine::Outcome;
use orchestrator_queue::{DELAY_MAX, Output, REASON_MAX_DELIVERY_COUNT, Settlement};

use super::chaos::SIMULATED_CRASH;

/// When a failed attempt is repeated: `initial × factor^(attempt − 1)`, never
/// more than `max`; with jitter, a random point in the upper half of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Delay after the first failed attempt.
    pub initial: Duration,
    /// By how much each delay exceeds the one before. At least 1.
    pub factor: f64,
    /// Longest delay.
    pub max: Duration,
    /// Spread the delays, so that jobs that failed together do not come back together.
    pub jitter: bool,
}

impl RetryPolicy {
    /// The delay after failed attempt number `attempt`; `random` is in [0, 1).
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let growth = self.factor.powf(f64::from(attempt.saturating_sub(1)));
        let seconds = (self.initial.as_secs_f64() * growth).min(self.max.as_secs_f64());
        let spread = if self.jitter { 0.5 + random / 2.0 } else { 1.0 };
        Duration::from_secs_f64(seconds * spread)
    }
}

/// How a delivery ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// The attempt ran to an outcome.
    Attempted(Outcome),
    /// Chaos failed the attempt.
    FailedByChaos,
    /// The host is stopping and the attempt was cut short.
    Stopping,
    /// The lock ran out or is no longer ours.
    LockLost,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How to settle; none when nothing may be settled.
    pub settlement: Option<Settlement>,
    /// Name of the outcome: in the job's history, in logs and metrics.
    pub outcome: &'static str,
    /// What went wrong, for people.
    pub error: Option<String>,
    /// True if chaos injected it.
    pub injected: bool,
}

/// Where an attempt stands, and by which rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Which attempt has ended, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts_max: u32,
    /// Backoff.
    pub retry: &'a RetryPolicy,
    /// For jitter, in [0, 1).
    pub random: f64,
}

/// The table.
pub fn decide(ended: Ended, rules: Rules<'_>) -> Verdict {
    use Outcome as O;
    match ended {
        Ended::Attempted(O::Done {
            result,
            content_type,
        }) => Verdict {
            settlement: Some(Settlement::Complete {
                output: Output {
                    body: result,
                    content_type,
                },
            }),
            outcome: "completed",
            error: None,
            injected: false,
        },
        Ended::Attempted(O::Retry { reason, delay }) => failed("retry", reason, delay, rules),
        Ended::Attempted(O::DeadLetter {
            reason,
            description,
        }) => Verdict {
            error: Some(format!("{reason}: {description}")),
            settlement: Some(Settlement::DeadLetter {
                reason,
                description,
            }),
            outcome: "dead-letter",
            injected: false,
        },
        Ended::Attempted(O::BadAnswer { description }) => {
            failed("bad-answer", description, None, rules)
        }
        Ended::Attempted(O::Trapped { kind, backtrace }) => {
            let error = if backtrace.is_empty() {
                kind
            } else {
                format!("{kind}\n{backtrace}")
            };
            failed("trap", error, None, rules)
        }
        Ended::Attempted(O::TimedOut) => failed(
            "timeout",
            "the attempt was still running at its deadline (`timeout`)".to_owned(),
            None,
            rules,
        ),
        Ended::Attempted(O::OutOfMemory) => failed(
            "out-of-memory",
            "the attempt ran into its memory limit (`memory_limit`)".to_owned(),
            None,
            rules,
        ),
        Ended::Attempted(O::NotStarted { description }) => given_back("not-started", description),
        Ended::FailedByChaos => Verdict {
            injected: true,
            ..failed("chaos", SIMULATED_CRASH.to_owned(), None, rules)
        },
        Ended::Stopping => given_back(
            "stopping",
            "the host stopped before the attempt ended".to_owned(),
        ),
        Ended::LockLost => Verdict {
            settlement: None,
            outcome: "lock-lost",
            error: Some("the lock ran out; the job may be running elsewhere".to_owned()),
            injected: false,
        },
    }
}

/// A spent attempt: another one after the guest's delay or the backoff, or the
/// dead letters when none is left.
fn failed(
    outcome: &'static str,
    error: String,
    delay: Option<Duration>,
    rules: Rules<'_>,
) -> Verdict {
    let settlement = if rules.attempt >= rules.attempts_max {
        let first_line = error.lines().next().unwrap_or_default();
        Settlement::DeadLetter {
            reason: REASON_MAX_DELIVERY_COUNT.to_owned(),
            description: format!(
                "attempt {} of {} failed ({outcome}): {first_line}",
                rules.attempt, rules.attempts_max
            ),
        }
    } else {
        let delay = delay.unwrap_or_else(|| rules.retry.delay(rules.attempt, rules.random));
        Settlement::Retry {
            delay: delay.min(DELAY_MAX),
        }
    };
    Verdict {
        settlement: Some(settlement),
        outcome,
        error: Some(error),
        injected: false,
    }
}

fn given_back(outcome: &'static str, error: String) -> Verdict {
    Verdict {
        settlement: Some(Settlement::Release),
        outcome,
        error: Some(error),
        injected: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: RetryPolicy = RetryPolicy {
        initial: Duration::from_secs(1),
        factor: 2.0,
        max: Duration::from_secs(300),
        jitter: true,
    };

    fn decide_at(ended: Ended, attempt: u32) -> Verdict {
        decide(
            ended,
            Rules {
                attempt,
                attempts_max: 3,
                retry: &RETRY,
                random: 0.0,
            },
        )
    }

    fn settlement(ended: Ended, attempt: u32) -> Option<Settlement> {
        decide_at(ended, attempt).settlement
    }

    fn retried_after(seconds: f64) -> Option<Settlement> {
        Some(Settlement::Retry {
            delay: Duration::from_secs_f64(seconds),
        })
    }

    /// On the first attempt: retried by the backoff. On the last: dead-lettered
    /// with the outcome and the error's first line.
    fn assert_spends_attempts(ended: &Ended, outcome: &str, error: &str) {
        assert_eq!(settlement(ended.clone(), 1), retried_after(0.5));
        assert_eq!(settlement(ended.clone(), 2), retried_after(1.0));
        let last = decide_at(ended.clone(), 3);
        assert_eq!(last.outcome, outcome);
        assert_eq!(
            last.settlement,
            Some(Settlement::DeadLetter {
                reason: "MaxDeliveryCountExceeded".to_owned(),
                description: format!("attempt 3 of 3 failed ({outcome}): {error}"),
            })
        );
    }

    #[test]
    fn done_completes_on_any_attempt() {
        let done = Outcome::Done {
            result: b"1".to_vec(),
            content_type: "text/plain".to_owned(),
        };
        let output = Output {
            body: b"1".to_vec(),
            content_type: "text/plain".to_owned(),
        };
        for attempt in 1..=3 {
            let verdict = decide_at(Ended::Attempted(done.clone()), attempt);
            assert_eq!(
                verdict.settlement,
                Some(Settlement::Complete {
                    output: output.clone()
                })
            );
            assert_eq!((verdict.outcome, verdict.error), ("completed", None));
        }
    }

    #[test]
    fn a_guest_that_asks_to_retry_is_retried_by_the_backoff() {
        let retry = Outcome::Retry {
            reason: "busy".to_owned(),
            delay: None,
        };
        assert_spends_attempts(&Ended::Attempted(retry), "retry", "busy");
    }

    #[test]
    fn a_guests_own_delay_is_honoured_until_attempts_run_out() {
        let retry = Outcome::Retry {
            reason: "busy".to_owned(),
            delay: Some(Duration::from_secs(77)),
        };
        assert_eq!(
            settlement(Ended::Attempted(retry.clone()), 1),
            retried_after(77.0)
        );
        assert!(matches!(
            settlement(Ended::Attempted(retry), 3),
            Some(Settlement::DeadLetter { .. })
        ));
    }

    #[test]
    fn a_guest_that_gives_up_is_dead_lettered_at_once_with_its_words() {
        let letter = Outcome::DeadLetter {
            reason: "Invalid".to_owned(),
            description: "no id".to_owned(),
        };
        let verdict = decide_at(Ended::Attempted(letter), 1);
        assert_eq!(
            verdict.settlement,
            Some(Settlement::DeadLetter {
                reason: "Invalid".to_owned(),
                description: "no id".to_owned()
            })
        );
        assert_eq!(verdict.outcome, "dead-letter");
    }

    #[test]
    fn a_bad_answer_spends_an_attempt() {
        let answer = Outcome::BadAnswer {
            description: "too big".to_owned(),
        };
        assert_spends_attempts(&Ended::Attempted(answer), "bad-answer", "too big");
    }

    #[test]
    fn a_trap_spends_an_attempt_and_keeps_its_backtrace() {
        let trap = Outcome::Trapped {
            kind: "unreachable".to_owned(),
            backtrace: "at f".to_owned(),
        };
        assert_spends_attempts(&Ended::Attempted(trap.clone()), "trap", "unreachable");
        assert_eq!(
            decide_at(Ended::Attempted(trap), 1).error.as_deref(),
            Some("unreachable\nat f")
        );
    }

    #[test]
    fn a_passed_deadline_spends_an_attempt() {
        let error = "the attempt was still running at its deadline (`timeout`)";
        assert_spends_attempts(&Ended::Attempted(Outcome::TimedOut), "timeout", error);
    }

    #[test]
    fn a_spent_memory_limit_spends_an_attempt() {
        let error = "the attempt ran into its memory limit (`memory_limit`)";
        assert_spends_attempts(
            &Ended::Attempted(Outcome::OutOfMemory),
            "out-of-memory",
            error,
        );
    }

    #[test]
    fn chaos_spends_an_attempt_and_is_marked() {
        assert_spends_attempts(&Ended::FailedByChaos, "chaos", "Simulated Crash");
        let verdict = decide_at(Ended::FailedByChaos, 1);
        assert_eq!(
            (verdict.error.as_deref(), verdict.injected),
            (Some("Simulated Crash"), true)
        );
    }

    #[test]
    fn an_instance_that_could_not_start_spends_no_attempt_even_the_last() {
        let not_started = Ended::Attempted(Outcome::NotStarted {
            description: "pool".to_owned(),
        });
        for attempt in 1..=3 {
            assert_eq!(
                settlement(not_started.clone(), attempt),
                Some(Settlement::Release)
            );
        }
    }

    #[test]
    fn stopping_spends_no_attempt_even_the_last() {
        for attempt in 1..=3 {
            assert_eq!(
                settlement(Ended::Stopping, attempt),
                Some(Settlement::Release)
            );
        }
    }

    #[test]
    fn a_lost_lock_settles_nothing() {
        for attempt in 1..=3 {
            assert_eq!(settlement(Ended::LockLost, attempt), None);
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_jitter_stays_in_the_upper_half() {
        let plain = RetryPolicy {
            jitter: false,
            ..RETRY
        };
        let delays: Vec<u64> = (1..=10).map(|n| plain.delay(n, 0.9).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(plain.delay(u32::MAX, 0.0), plain.max);
        assert_eq!(RETRY.delay(3, 0.0), Duration::from_secs(2));
        assert!(RETRY.delay(3, 0.999) < Duration::from_secs(4));
    }
}
