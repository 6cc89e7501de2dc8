//! When a canary has shown enough: the statistics, and nothing else.
//!
//! A share `s` of the jobs, picked at random, runs on the candidate. If both
//! versions fail equally often, each failure lies on the candidate's side with
//! probability `s`, whatever the rate of failures is and however it changes
//! during the day. Every question below is a likelihood ratio against such a
//! known share, averaged over a few alternatives: an e-value. Its expectation
//! under the hypothesis is at most 1 at every moment, so that looking after
//! every job costs nothing: the chance that it *ever* exceeds `1/α` is at most
//! `α` (Ville's inequality).
//!
//! | question | hypothesis to be rejected | when rejected |
//! | --- | --- | --- |
//! | worse? | the candidate fails at most as often as the current version | rolled back, α = 1% |
//! | slower? | of two runs, one of each, the candidate's is over 1.25 × as long (and 1 ms) at most half the time | rolled back, α = 1% |
//! | not worse? | it fails at least twice as often **or** at least 1 job in 100 fails on it alone | may be promoted, α = 2.5% each |
//! | not slower? | its run is the longer one, by the same measure, at least 3 times out of 4 | may be promoted, α = 5% |
//!
//! So a candidate that is as good is rolled back in at most 2% of all canaries,
//! and one that fails at least twice as often and in at least 1% more of its
//! jobs, or is that much slower, is promoted in at most 5%. In between both can
//! happen. Promotion needs both of the last two rejected, and
//! [`CANDIDATE_JOBS_MIN`] jobs. What is not seen: failures rarer than that, a
//! slow tail with a usual median, results that are wrong, load that the share
//! does not show.
//!
//! A failure counts when the other version did the same job; a job that fails
//! on both is poison and counts for neither. On the current version's side that
//! is known only after the job's next attempt (which is made at once on the
//! candidate where there would be none): until then its failure speaks for the
//! candidate where that avoids a false rollback, and not where it would hasten
//! a promotion.
//!
//! Successes come fast and failures can be slow, a run that hangs above all. So
//! runs of the candidate that have been going for longer than its longest
//! success count as failures when it is to be promoted, until they end.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Jobs that the candidate must have done before it is promoted.
pub const CANDIDATE_JOBS_MIN: u64 = 50;
/// Chance that a candidate which is as good is rolled back for its failures,
/// and the same for its slowness.
pub const FALSE_ROLLBACK_MAX: f64 = 0.01;
/// Chance that a candidate which is bad by one of the measures is promoted.
pub const FALSE_PROMOTION_MAX: f64 = 0.05;
/// Share of jobs that may fail on the candidate alone.
pub const EXCESS_MAX: f64 = 0.01;
/// How many times as often a bad candidate fails.
pub const FAILURE_RATIO_BAD: f64 = 2.0;
/// How many times as long a slow run takes, and by how much at least.
pub const SLOW_FACTOR: f64 = 1.25;
/// See [`SLOW_FACTOR`].
pub const SLOW_BY: Duration = Duration::from_millis(1);
/// Share of comparisons that a slow candidate loses.
const SLOW_SHARE_BAD: f64 = 0.75;
/// Runs of one side that wait for one of the other to be compared with.
const UNPAIRED_MAX: usize = 64;
/// Successes between two looks: a look costs a microsecond, a job's share of it nothing.
const SUCCESSES_BETWEEN_LOOKS: u64 = 8;

/// What a canary has shown so far.
#[derive(Clone, Debug)]
pub struct Tally {
    share: f64,
    candidate_done: u64,
    candidate_failed: u64,
    current_done: u64,
    /// Failed on the current version, and the other one did the job.
    current_failed: u64,
    /// Failed on the current version; the other has not tried yet.
    current_pending: u64,
    poison: u64,
    slower: u64,
    compared: u64,
    candidate_unpaired: VecDeque<Duration>,
    current_unpaired: VecDeque<Duration>,
}

/// What a tally says.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// Nothing yet.
    Undecided,
    /// The candidate is good enough, because of this.
    Promote(String),
    /// The candidate is worse, because of this.
    RollBack(String),
}

impl Tally {
    /// Of a canary with this share of the jobs, above 0 and at most one half.
    pub fn new(share: f64) -> Self {
        Self {
            share,
            candidate_done: 0,
            candidate_failed: 0,
            current_done: 0,
            current_failed: 0,
            current_pending: 0,
            poison: 0,
            slower: 0,
            compared: 0,
            candidate_unpaired: VecDeque::new(),
            current_unpaired: VecDeque::new(),
        }
    }

    /// The candidate did a job of its share.
    pub fn candidate_did(&mut self, took: Duration) {
        self.candidate_done += 1;
        match self.current_unpaired.pop_front() {
            Some(other) => self.compare(took, other),
            None => keep(&mut self.candidate_unpaired, took),
        }
    }

    /// The current version did a job of its share.
    pub fn current_did(&mut self, took: Duration) {
        self.current_done += 1;
        match self.candidate_unpaired.pop_front() {
            Some(other) => self.compare(other, took),
            None => keep(&mut self.current_unpaired, took),
        }
    }

    fn compare(&mut self, candidate: Duration, current: Duration) {
        self.compared += 1;
        let limit = current.mul_f64(SLOW_FACTOR) + SLOW_BY;
        self.slower += u64::from(candidate > limit);
    }

    /// A job of the candidate's share failed on it, and the current version did it.
    pub fn candidate_failed(&mut self) {
        self.candidate_failed += 1;
    }

    /// A job of the candidate's share failed on both.
    pub fn poisoned(&mut self) {
        self.poison += 1;
    }

    /// A job of the current version's share failed there.
    pub fn current_failed(&mut self) {
        self.current_pending += 1;
    }

    /// One of those was tried on both since: `is_poison` if both failed.
    pub fn current_failure_explained(&mut self, is_poison: bool) {
        self.current_pending = self.current_pending.saturating_sub(1);
        if is_poison {
            self.poison += 1;
        } else {
            self.current_failed += 1;
        }
    }

    /// Jobs that count on the candidate's side.
    pub fn candidate_jobs(&self) -> u64 {
        self.candidate_done + self.candidate_failed
    }

    /// True when a look is due: after each failure, and some successes.
    pub fn is_look_due(&self, failed: bool) -> bool {
        failed || (self.candidate_done + self.current_done).is_multiple_of(SUCCESSES_BETWEEN_LOOKS)
    }

    /// What all of it says now. `overdue`: runs of the candidate that have been
    /// going for longer than any that succeeded.
    pub fn judge(&self, overdue: u64) -> Judgement {
        let worse = self.evidence_worse();
        if worse >= -FALSE_ROLLBACK_MAX.ln() {
            return Judgement::RollBack(format!(
                "it fails more often: {self}; odds of {} that this is no chance",
                odds(worse)
            ));
        }
        let slower = evidence(self.slower, self.compared, 0.5, &[0.6, 0.7, 0.8, 0.9, 0.99]);
        if slower >= -FALSE_ROLLBACK_MAX.ln() {
            return Judgement::RollBack(format!(
                "it is slower: of {} runs compared, {} took over {SLOW_FACTOR} times as long; {self}; odds of {} that this is no chance",
                self.compared,
                self.slower,
                odds(slower)
            ));
        }
        let (not_worse, not_slower) =
            (self.evidence_not_worse(overdue), self.evidence_not_slower());
        if self.candidate_jobs() >= CANDIDATE_JOBS_MIN
            && not_worse >= -(FALSE_PROMOTION_MAX / 2.0).ln()
            && (not_slower >= -FALSE_PROMOTION_MAX.ln() || self.current_is_broken())
        {
            return Judgement::Promote(format!(
                "it is no worse: {self}; of {} runs compared, {} took over {SLOW_FACTOR} times as long",
                self.compared, self.slower
            ));
        }
        Judgement::Undecided
    }

    /// Against "at most as often".
    fn evidence_worse(&self) -> f64 {
        let failures = self.candidate_failed + self.current_failed + self.current_pending;
        let alternatives = [1.5, 2.0, 4.0, 10.0, 100.0].map(|ratio| self.side(ratio));
        evidence(self.candidate_failed, failures, self.share, &alternatives)
    }

    /// Against "at least twice as often", and against "one job in a hundred on
    /// it alone": the stronger.
    fn evidence_not_worse(&self, overdue: u64) -> f64 {
        let failed = self.candidate_failed + overdue;
        let by_ratio = evidence(
            failed,
            failed + self.current_failed,
            self.side(FAILURE_RATIO_BAD),
            &[0.1, 0.5, 1.0].map(|ratio| self.side(ratio)),
        );
        let by_rate = evidence(
            failed,
            self.candidate_jobs() + overdue,
            EXCESS_MAX,
            &[0.0, 0.1, 0.25, 0.5].map(|part| part * EXCESS_MAX),
        );
        by_ratio.max(by_rate)
    }

    /// A current version that does less than one job in ten has hardly any
    /// times to compare with: then failures alone decide.
    fn current_is_broken(&self) -> bool {
        self.current_done < self.current_failed / 10
    }

    fn evidence_not_slower(&self) -> f64 {
        evidence(self.slower, self.compared, SLOW_SHARE_BAD, &[0.5, 0.3, 0.1])
    }

    /// On which share of failures the candidate's side is when it fails
    /// `ratio` times as often.
    fn side(&self, ratio: f64) -> f64 {
        let candidate = self.share * ratio;
        candidate / (candidate + 1.0 - self.share)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current_failed = self.current_failed + self.current_pending;
        write!(
            f,
            "the candidate failed {} of {} jobs, the current version {} of {}",
            self.candidate_failed,
            self.candidate_jobs(),
            current_failed,
            self.current_done + current_failed
        )?;
        if self.poison > 0 {
            write!(f, ", and {} failed on both", self.poison)?;
        }
        Ok(())
    }
}

fn keep(unpaired: &mut VecDeque<Duration>, took: Duration) {
    if unpaired.len() == UNPAIRED_MAX {
        unpaired.pop_front();
    }
    unpaired.push_back(took);
}

/// The logarithm of the e-value of `hits` in `trials` against a chance of
/// `null` for each, averaged over these alternatives.
fn evidence(hits: u64, trials: u64, null: f64, alternatives: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let (hits, misses) = (hits as f64, (trials - hits) as f64);
    // 0 × ln 0 is 0 here: what did not happen tells nothing.
    let weigh = |count: f64, chance: f64, null: f64| match count {
        0.0 => 0.0,
        count => count * (chance.ln() - null.ln()),
    };
    let ratios = alternatives
        .iter()
        .map(|chance| weigh(hits, *chance, null) + weigh(misses, 1.0 - chance, 1.0 - null));
    let ratios: Vec<f64> = ratios.collect();
    let most = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    let sum: f64 = ratios.iter().map(|ratio| (ratio - most).exp()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of alternatives")]
    let mean = sum / ratios.len() as f64;
    most + mean.ln()
}

/// `1,234 to 1`; beyond a million nobody counts.
fn odds(evidence: f64) -> String {
    match evidence.exp() {
        odds if odds < 1e6 => format!("{odds:.0} to 1"),
        _ => "over a million to 1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// What is really so.
    #[derive(Clone, Copy)]
    struct Truth {
        share: f64,
        current_fails: f64,
        candidate_fails: f64,
        poison: f64,
        /// The candidate's times are this much longer.
        slowdown: f64,
        /// Jobs that come while a failing run of the candidate hangs.
        hangs: usize,
    }

    const GOOD: Truth = Truth {
        share: 0.1,
        current_fails: 0.01,
        candidate_fails: 0.01,
        poison: 0.01,
        slowdown: 1.0,
        hangs: 0,
    };

    /// Jobs between a failure on the current version and the next attempt.
    const RETRY_AFTER: usize = 200;
    const JOBS_MAX: usize = 60_000;

    /// One canary: the judgement, and how many jobs the candidate had.
    fn canary(truth: Truth, random: &mut StdRng) -> (Judgement, u64) {
        let mut tally = Tally::new(truth.share);
        // When a failure on the current version is explained, and how.
        let mut retries: VecDeque<(usize, bool)> = VecDeque::new();
        // When a run of the candidate that fails comes to its end.
        let mut hanging: VecDeque<(usize, bool)> = VecDeque::new();
        for job in 0..JOBS_MAX {
            while let Some((due, is_poison)) = retries.front().copied()
                && due <= job
            {
                retries.pop_front();
                tally.current_failure_explained(is_poison);
            }
            let mut failed = false;
            while let Some((due, is_poison)) = hanging.front().copied()
                && due <= job
            {
                hanging.pop_front();
                failed = true;
                match is_poison {
                    true => tally.poisoned(),
                    false => tally.candidate_failed(),
                }
            }
            let is_poison = random.random_bool(truth.poison);
            // Times of a mixed load: over two orders of magnitude.
            let took = 0.005 * (random.random::<f64>() * 5.0).exp();
            if random.random_bool(truth.share) {
                if is_poison {
                    tally.poisoned();
                } else if random.random_bool(truth.candidate_fails) {
                    // The current version does it then; should that fail by
                    // chance, the job is taken for poison.
                    hanging.push_back((job + truth.hangs, random.random_bool(truth.current_fails)));
                } else {
                    tally.candidate_did(Duration::from_secs_f64(took * truth.slowdown));
                }
            } else if is_poison || random.random_bool(truth.current_fails) {
                tally.current_failed();
                failed = true;
                let fails_again = is_poison
                    || (random.random_bool(truth.candidate_fails)
                        && random.random_bool(truth.current_fails));
                retries.push_back((job + RETRY_AFTER, fails_again));
            } else {
                tally.current_did(Duration::from_secs_f64(took));
            }
            if tally.is_look_due(failed) {
                let judgement = tally.judge(hanging.len() as u64);
                if judgement != Judgement::Undecided {
                    return (judgement, tally.candidate_jobs() + tally.poison);
                }
            }
        }
        (Judgement::Undecided, tally.candidate_jobs())
    }

    /// Shares of promotions and of rollbacks, and the median of the
    /// candidate's jobs, over many seeded canaries.
    fn simulate(name: &str, truth: Truth, runs: u64) -> (f64, f64) {
        let (mut promoted, mut rolled_back, mut jobs) = (0_u32, 0_u32, Vec::new());
        for seed in 0..runs {
            let (judgement, candidate_jobs) = canary(truth, &mut StdRng::seed_from_u64(seed));
            match judgement {
                Judgement::Promote(_) => promoted += 1,
                Judgement::RollBack(_) => rolled_back += 1,
                Judgement::Undecided => {}
            }
            jobs.push(candidate_jobs);
        }
        jobs.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let share = |count: u32| f64::from(count) / runs as f64;
        let (promoted, rolled_back) = (share(promoted), share(rolled_back));
        println!(
            "{name:<44} promoted {:>6.2}%  rolled back {:>6.2}%  median {} jobs on the candidate",
            promoted * 100.0,
            rolled_back * 100.0,
            jobs[jobs.len() / 2]
        );
        (promoted, rolled_back)
    }

    /// Chance makes a rate over `runs` exceed its bound by this much once in
    /// thousands of changes to this code; the seeds are fixed, so not at random.
    fn slack(bound: f64, runs: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let runs = runs as f64;
        bound + 3.0 * (bound * (1.0 - bound) / runs).sqrt()
    }

    #[test]
    fn candidates_that_are_as_good_are_hardly_ever_rolled_back() {
        let runs = 1_000;
        let cases = [
            ("as good, 1% fail", GOOD),
            (
                "as good, none fails",
                Truth {
                    current_fails: 0.0,
                    candidate_fails: 0.0,
                    poison: 0.0,
                    ..GOOD
                },
            ),
            (
                "as good, 20% fail, 5% poison",
                Truth {
                    current_fails: 0.2,
                    candidate_fails: 0.2,
                    poison: 0.05,
                    ..GOOD
                },
            ),
            ("as good, half of the jobs", Truth { share: 0.5, ..GOOD }),
            (
                "better: 5% fail, now 1%",
                Truth {
                    current_fails: 0.05,
                    ..GOOD
                },
            ),
            (
                "20% slower",
                Truth {
                    slowdown: 1.2,
                    ..GOOD
                },
            ),
        ];
        for (name, truth) in cases {
            let (promoted, rolled_back) = simulate(name, truth, runs);
            assert!(
                rolled_back <= slack(2.0 * FALSE_ROLLBACK_MAX, runs),
                "{name}"
            );
            assert!(promoted > 0.9, "{name}: {promoted}");
        }
    }

    #[test]
    fn candidates_that_are_bad_are_hardly_ever_promoted() {
        let runs = 1_000;
        let bad = |candidate_fails| Truth {
            candidate_fails,
            ..GOOD
        };
        let cases = [
            ("3 times as often: 3% for 1%", bad(0.03)),
            ("10 times as often: 10% for 1%", bad(0.1)),
            (
                "2% fail, none did",
                Truth {
                    current_fails: 0.0,
                    ..bad(0.02)
                },
            ),
            (
                "2% fail, none did, half of the jobs",
                Truth {
                    current_fails: 0.0,
                    share: 0.5,
                    ..bad(0.02)
                },
            ),
            (
                "40% for 20%, 5% poison",
                Truth {
                    current_fails: 0.2,
                    candidate_fails: 0.4,
                    poison: 0.05,
                    ..GOOD
                },
            ),
            (
                "4 times as slow",
                Truth {
                    slowdown: 4.0,
                    ..GOOD
                },
            ),
            (
                "5% hang for 5,000 jobs, none did",
                Truth {
                    current_fails: 0.0,
                    hangs: 5_000,
                    ..bad(0.05)
                },
            ),
            ("traps always", bad(1.0)),
        ];
        for (name, truth) in cases {
            let (promoted, rolled_back) = simulate(name, truth, runs);
            assert!(promoted <= slack(FALSE_PROMOTION_MAX, runs), "{name}");
            assert!(rolled_back > 0.9, "{name}: {rolled_back}");
        }
    }

    #[test]
    fn a_candidate_that_traps_at_once_is_out_within_a_handful_of_jobs() {
        for (share, handful) in [(0.01, 3), (0.1, 4), (0.25, 6), (0.5, 10)] {
            let mut tally = Tally::new(share);
            while tally.judge(0) == Judgement::Undecided {
                tally.candidate_failed();
            }
            assert!(matches!(tally.judge(0), Judgement::RollBack(_)));
            assert!(tally.candidate_failed <= handful, "{share}: {tally}");
        }
    }

    #[test]
    fn a_current_version_that_does_nothing_is_replaced_without_times_to_compare() {
        let mut tally = Tally::new(0.5);
        while tally.judge(0) == Judgement::Undecided {
            tally.candidate_did(Duration::from_millis(1));
            tally.current_failed();
            tally.current_failure_explained(false);
        }
        assert!(matches!(tally.judge(0), Judgement::Promote(_)), "{tally}");
        assert!(tally.candidate_jobs() < 100, "{tally}");
    }

    #[test]
    fn poison_counts_for_neither() {
        let mut tally = Tally::new(0.1);
        for _ in 0..1_000 {
            tally.poisoned();
            tally.current_failed();
            tally.current_failure_explained(true);
        }
        assert_eq!(tally.judge(0), Judgement::Undecided);
        assert_eq!(tally.candidate_jobs(), 0);
    }

    #[test]
    fn a_verdict_is_a_sentence_with_its_numbers() {
        let mut tally = Tally::new(0.1);
        for _ in 0..90 {
            tally.current_did(Duration::from_millis(5));
        }
        for _ in 0..4 {
            tally.candidate_failed();
        }
        let Judgement::RollBack(why) = tally.judge(0) else {
            panic!("{tally}")
        };
        assert!(
            why.starts_with("it fails more often: the candidate failed 4 of 4 jobs, the current version 0 of 90; odds of "),
            "{why}"
        );
    }
}
