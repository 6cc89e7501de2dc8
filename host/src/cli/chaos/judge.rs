//! Holds what became of each job against what is promised. Pure: a job's page
//! comes in, violations come out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use orchestrator_queue::{ATTEMPTS_KEPT_MAX, REASON_TTL_EXPIRED};
use serde::Serialize;
use serde_json::Value;

use crate::dispatch::chaos::Chaos;
use crate::dispatch::policy::RetryPolicy;

/// Violations that are shown whole.
const SHOWN_MAX: usize = 5;
/// How much two starts of a host may differ in what they take the time to be.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_millis(20);
/// Outcomes after which the host's own backoff decides when to try again.
const BACKED_OFF: [&str; 5] = ["chaos", "trap", "timeout", "out-of-memory", "bad-answer"];

/// What a run came to.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verdict {
    pub seed: u64,
    pub is_sound: bool,
    pub accepted: usize,
    pub completed: usize,
    pub dead: usize,
    /// Sends that were answered otherwise, or not at all, and were repeated.
    pub refused: u64,
    pub kills: usize,
    pub attempts: u64,
    /// Jobs that wait for a time that has not come: nothing is known of their end.
    pub not_due: usize,
    /// Jobs that were sent once more after they had ended.
    pub repeated: usize,
    /// Attempts by how they ended, injected ones apart.
    pub outcomes: BTreeMap<String, u64>,
    pub seconds: f64,
    pub violations: Vec<Violation>,
}

/// A promise that was broken, and what is known of the job.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Violation {
    pub promise: &'static str,
    pub job: String,
    pub history: Value,
}

/// What a job is held against.
pub(super) struct Rules<'a> {
    pub attempts_max: u32,
    pub retry: &'a RetryPolicy,
    /// Faults that were injected; which, a job's id and an attempt decide.
    pub faults: &'a Chaos,
    /// When the host was killed.
    pub kills: &'a [Timestamp],
    /// What every completed job must answer.
    pub expected: Option<&'a Value>,
}

/// One ended attempt, as the job's page has it.
struct Attempt<'a> {
    number: u32,
    outcome: &'a str,
    is_injected: bool,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
}

impl<'a> Attempt<'a> {
    fn of(attempt: &'a Value) -> Self {
        let time = |name: &str| attempt[name].as_str()?.parse().ok();
        Self {
            number: u32::try_from(attempt["number"].as_u64().unwrap_or(0)).unwrap_or(u32::MAX),
            outcome: attempt["outcome"].as_str().unwrap_or("unknown"),
            is_injected: attempt["injected"] == true,
            started_at: time("startedAt"),
            ended_at: time("endedAt"),
        }
    }
}

impl Rules<'_> {
    /// Whether an attempt was to lose its lock.
    fn takes_the_lock(&self, job: &str, attempt: u32) -> bool {
        let faults = self.faults.faults(job, attempt);
        faults.late_settle || faults.lock_loss.is_some()
    }

    /// How many hosts died while a job was not over: each may have had it in hand.
    fn kills_of(&self, job: &Value) -> usize {
        let time = |name: &str| job[name].as_str()?.parse::<Timestamp>().ok();
        let (began, ended) = (time("enqueuedAt"), time("finishedAt"));
        let met = |kill: &&Timestamp| {
            began.is_none_or(|began| began <= **kill) && ended.is_none_or(|ended| **kill <= ended)
        };
        self.kills.iter().filter(met).count()
    }

    /// Whether an attempt had lost its lock before its worker began.
    fn settles_late(&self, job: &str, attempt: &Attempt<'_>) -> bool {
        let faults = self.faults.faults(job, attempt.number);
        attempt.is_injected && faults.late_settle && !faults.failure
    }
}

impl Verdict {
    /// Counts an accepted job, and holds it against what is promised.
    pub fn judge(&mut self, id: &str, job: Option<Value>, rules: &Rules<'_>) {
        let Some(job) = job else {
            self.broken("an accepted job is never lost", id, Value::Null);
            return;
        };
        let attempts = job["attempts"].as_array().cloned().unwrap_or_default();
        let attempts: Vec<Attempt<'_>> = attempts.iter().map(Attempt::of).collect();
        let deliveries = job["deliveryCount"].as_u64().unwrap_or(0);
        self.attempts += deliveries;
        for attempt in &attempts {
            let injected = if attempt.is_injected {
                " (injected)"
            } else {
                ""
            };
            let name = format!("{}{injected}", attempt.outcome);
            *self.outcomes.entry(name).or_default() += 1;
        }
        let mut broken = BTreeSet::new();
        broken.extend(self.end(&job, &attempts, rules));
        let expired = job["deadLetter"]["reason"] == REASON_TTL_EXPIRED;
        if deliveries > u64::from(rules.attempts_max) || (deliveries == 0 && !expired) {
            broken.insert("no job has more attempts than it may");
        }
        broken.extend(history(id, &job, &attempts, deliveries, rules));
        for promise in broken {
            self.broken(promise, id, job.clone());
        }
    }

    pub fn broken(&mut self, promise: &'static str, job: &str, history: Value) {
        self.violations.push(Violation {
            promise,
            job: job.to_owned(),
            history,
        });
    }

    /// How it ended: once, with what it must have.
    fn end(
        &mut self,
        job: &Value,
        attempts: &[Attempt<'_>],
        rules: &Rules<'_>,
    ) -> Vec<&'static str> {
        let mut broken = Vec::new();
        let completions = attempts
            .iter()
            .filter(|attempt| attempt.outcome == "completed");
        let completions = completions.count();
        match job["state"].as_str() {
            Some("completed") => {
                self.completed += 1;
                if completions != 1 {
                    broken.push("a completed job was completed once");
                }
                if rules
                    .expected
                    .is_some_and(|expected| *expected != job["result"])
                {
                    broken.push("a completed job has the result that was expected");
                }
            }
            Some("dead") => {
                self.dead += 1;
                if completions > 0 {
                    broken.push("a dead job was not completed");
                }
                let reason = job["deadLetter"]["reason"].as_str();
                if reason.is_none_or(str::is_empty) {
                    broken.push("a dead letter has a reason");
                }
            }
            // It may still end: its worker, or its backoff, chose a time to come.
            _ if is_not_due(job) => self.not_due += 1,
            _ => broken.push("an accepted job ends"),
        }
        broken
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "seed {}: {} jobs accepted, {} completed, {} dead-lettered; {} attempts, {} sends refused and repeated, {} kills; {:.1} s\n",
            self.seed,
            self.accepted,
            self.completed,
            self.dead,
            self.attempts,
            self.refused,
            self.kills,
            self.seconds
        );
        for (outcome, count) in &self.outcomes {
            text += &format!("  {count:>6}  {outcome}\n");
        }
        if self.is_sound {
            text += "SOUND: every accepted job ended once, within its attempts and after its backoffs; no lock was lost without a cause; no dead letter without a reason; nothing left locked";
            if self.repeated > 0 {
                text += &format!("; {} ids sent again ran nothing twice", self.repeated);
            }
            text += "\n";
        }
        if self.not_due > 0 {
            text += &format!(
                "UNDECIDED: {} jobs wait for a time that has not come; raise `--patience`\n",
                self.not_due
            );
        }
        // The shortest histories say most.
        let mut shown: Vec<&Violation> = self.violations.iter().collect();
        shown.sort_by_key(|violation| violation.history.to_string().len());
        for violation in shown.iter().take(SHOWN_MAX) {
            text += &format!(
                "BROKEN: {}: job {}\n{:#}\n",
                violation.promise, violation.job, violation.history
            );
        }
        text
    }
}

fn is_not_due(job: &Value) -> bool {
    let due: Option<Timestamp> = job["dueAt"].as_str().and_then(|due| due.parse().ok());
    due.is_some_and(|due| due > Timestamp::now())
}

/// What lies between the first attempt and the last.
fn history(
    id: &str,
    job: &Value,
    attempts: &[Attempt<'_>],
    deliveries: u64,
    rules: &Rules<'_>,
) -> Vec<&'static str> {
    let mut broken = Vec::new();
    if attempts
        .iter()
        .any(|attempt| rules.settles_late(id, attempt))
    {
        broken.push("what is settled under a lost lock changes nothing");
    }
    for pair in attempts.windows(2) {
        let [failed, next] = pair else { continue };
        let (Some(ended), Some(started)) = (failed.ended_at, next.started_at) else {
            continue;
        };
        let decided = BACKED_OFF.contains(&failed.outcome) && next.number == failed.number + 1;
        // The shortest that jitter allows.
        let wait = rules.retry.delay(failed.number, 0.0);
        let waited = Duration::try_from(started.duration_since(ended)).unwrap_or_default();
        if decided && waited + CLOCKS_DIFFER_MAX < wait {
            broken.push("a failed attempt is repeated after its backoff");
        }
    }
    // A delivery that left nothing behind lost its lock: to a fault, or with its host.
    if attempts.len() < ATTEMPTS_KEPT_MAX {
        let unrecorded = deliveries.saturating_sub(attempts.len() as u64);
        let last = u32::try_from(deliveries.min(u64::from(rules.attempts_max))).unwrap_or(0);
        let taken = (1..=last).filter(|attempt| rules.takes_the_lock(id, *attempt));
        if unrecorded > (taken.count() + rules.kills_of(job)) as u64 {
            broken.push("a job that runs keeps its lock");
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RETRY: RetryPolicy = RetryPolicy {
        initial: Duration::from_secs(1),
        factor: 1.0,
        max: Duration::from_secs(1),
        jitter: true,
    };

    fn rules<'a>(faults: &'a Chaos, expected: Option<&'a Value>) -> Rules<'a> {
        Rules {
            attempts_max: 3,
            retry: &RETRY,
            faults,
            kills: &[],
            expected,
        }
    }

    fn judged(job: Option<Value>, rules: &Rules<'_>) -> Vec<&'static str> {
        let mut verdict = Verdict::default();
        verdict.judge("j", job, rules);
        let promises = verdict.violations.iter();
        promises.map(|violation| violation.promise).collect()
    }

    fn broken(job: Option<Value>) -> Vec<&'static str> {
        judged(job, &rules(&Chaos::default(), None))
    }

    fn completed(attempts: Value, count: u32) -> Option<Value> {
        Some(
            json!({ "state": "completed", "deliveryCount": count, "attempts": attempts, "result": 7 }),
        )
    }

    #[test]
    fn the_judge_knows_every_way_to_end_wrongly() {
        let done = json!({ "number": 2, "outcome": "completed" });
        let failed = json!({ "number": 1, "outcome": "trap" });
        assert_eq!(broken(completed(json!([failed, done]), 2)), [""; 0]);
        assert_eq!(broken(None), ["an accepted job is never lost"]);
        assert_eq!(
            broken(completed(json!([done, done]), 2)),
            ["a completed job was completed once"]
        );
        assert_eq!(
            broken(completed(json!([failed]), 1)),
            ["a completed job was completed once"]
        );
        let four = json!([failed, failed, failed, done]);
        assert_eq!(
            broken(completed(four, 4)),
            ["no job has more attempts than it may"]
        );
        let dead = |reason: &str, attempts: Value| {
            Some(
                json!({ "state": "dead", "deliveryCount": 1, "attempts": attempts, "deadLetter": { "reason": reason } }),
            )
        };
        assert_eq!(broken(dead("Why", json!([failed]))), [""; 0]);
        assert_eq!(
            broken(dead("", json!([failed]))),
            ["a dead letter has a reason"]
        );
        assert_eq!(
            broken(dead("Why", json!([done]))),
            ["a dead job was not completed"]
        );
        let running =
            json!({ "state": "running", "deliveryCount": 1, "attempts": [{ "number": 1 }] });
        assert_eq!(broken(Some(running)), ["an accepted job ends"]);
        let expired = json!({ "state": "dead", "deliveryCount": 0, "deadLetter": { "reason": REASON_TTL_EXPIRED } });
        assert_eq!(broken(Some(expired)), [""; 0]);
        let later = json!({ "state": "retrying", "deliveryCount": 1, "attempts": [{ "number": 1 }], "dueAt": "9000-01-01T00:00:00Z" });
        let mut verdict = Verdict::default();
        verdict.judge("j", Some(later), &rules(&Chaos::default(), None));
        assert_eq!((verdict.not_due, verdict.violations.len()), (1, 0));
    }

    #[test]
    fn a_result_is_compared_where_one_is_expected() {
        let faults = Chaos::default();
        let job = || completed(json!([{ "number": 1, "outcome": "completed" }]), 1);
        assert_eq!(judged(job(), &rules(&faults, Some(&json!(7)))), [""; 0]);
        assert_eq!(
            judged(job(), &rules(&faults, Some(&json!(8)))),
            ["a completed job has the result that was expected"]
        );
    }

    #[test]
    fn a_retry_that_comes_too_early_is_noticed() {
        let at = |ended: &str, started: &str| {
            let attempts = json!([
                { "number": 1, "outcome": "trap", "endedAt": ended },
                { "number": 2, "outcome": "completed", "startedAt": started },
            ]);
            broken(completed(attempts, 2))
        };
        let ended = "2026-01-01T00:00:00.000Z";
        // With jitter, half of a second is the least.
        assert_eq!(at(ended, "2026-01-01T00:00:00.500Z"), [""; 0]);
        assert_eq!(
            at(ended, "2026-01-01T00:00:00.400Z"),
            ["a failed attempt is repeated after its backoff"]
        );
    }

    #[test]
    fn a_delivery_without_a_trace_needs_a_cause() {
        let job = || {
            let mut job = completed(json!([{ "number": 2, "outcome": "completed" }]), 2)?;
            job["enqueuedAt"] = json!("2026-01-01T00:00:00Z");
            job["finishedAt"] = json!("2026-01-01T00:00:02Z");
            Some(job)
        };
        assert_eq!(broken(job()), ["a job that runs keeps its lock"]);
        let calm = Chaos::default();
        let killed = |at: &str| {
            let kills = [at.parse().unwrap()];
            let rules = Rules {
                kills: &kills,
                ..rules(&calm, None)
            };
            judged(job(), &rules)
        };
        assert_eq!(killed("2026-01-01T00:00:01Z"), [""; 0]);
        // It was over by then.
        assert_eq!(
            killed("2026-01-01T00:00:03Z"),
            ["a job that runs keeps its lock"]
        );
        let taken = Chaos {
            lock_loss_rate: 1.0,
            ..Chaos::default()
        };
        assert_eq!(judged(job(), &rules(&taken, None)), [""; 0]);
    }

    #[test]
    fn a_settlement_that_came_too_late_must_not_be_in_the_history() {
        let late = Chaos {
            late_settle_rate: 1.0,
            ..Chaos::default()
        };
        let job = |injected: bool| {
            let attempt = json!({ "number": 1, "outcome": "completed", "injected": injected });
            completed(json!([attempt]), 1)
        };
        assert_eq!(
            judged(job(true), &rules(&late, None)),
            ["what is settled under a lost lock changes nothing"]
        );
        // It ran while nothing was injected.
        assert_eq!(judged(job(false), &rules(&late, None)), [""; 0]);
    }
}
