//! What a component's name stands for right now, and how that changes: by one
//! atomic store. Whoever read it keeps what it read, to the end of its job or
//! request.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};

use super::Version;
use super::verdict::{Judgement, Tally};

/// Jobs that failed on the current version and are to be tried on the
/// candidate: beyond that, the next ones are not explained.
const UNEXPLAINED_MAX: usize = 10_000;

/// One version, ready to run, and what is known of it.
pub struct Loaded<T> {
    /// The component.
    pub component: Arc<T>,
    /// Facts about it.
    pub version: Version,
}

/// A component's place.
pub struct Slot<T> {
    id: String,
    state: ArcSwap<State<T>>,
    /// Versions that were replaced, until their last job or request ends.
    replaced: Mutex<Vec<Weak<Loaded<T>>>>,
}

/// What runs: all of it changes at once.
pub struct State<T> {
    /// The version that does the jobs.
    pub current: Arc<Loaded<T>>,
    /// A candidate that does a share of them.
    pub canary: Option<Arc<Canary<T>>>,
}

/// Which version is to do a job.
pub enum Chosen<T> {
    /// The current one.
    Current {
        /// It.
        current: Arc<Loaded<T>>,
        /// The canary whose other side this is, if there is one.
        canary: Option<Arc<Canary<T>>>,
    },
    /// The candidate, and the current one should it fail.
    Candidate {
        /// The canary.
        canary: Arc<Canary<T>>,
        /// The current version.
        current: Arc<Loaded<T>>,
        /// True if the job is not of the candidate's share, and is tried on it
        /// because it failed on the current version.
        explains: bool,
    },
}

impl<T> Slot<T> {
    /// A place with its first version.
    pub fn new(id: &str, first: Loaded<T>) -> Self {
        Self {
            id: id.to_owned(),
            state: ArcSwap::from_pointee(State {
                current: Arc::new(first),
                canary: None,
            }),
            replaced: Mutex::default(),
        }
    }

    /// The component's name in the manifest.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The current version. Hold it for the whole of a job or request.
    pub fn current(&self) -> Arc<Loaded<T>> {
        self.state.load().current.clone()
    }

    /// All that runs.
    pub fn state(&self) -> Arc<State<T>> {
        self.state.load_full()
    }

    /// The version for this job. A job of the candidate's share stays there
    /// with all its attempts.
    pub fn choose(&self, job: &str) -> Chosen<T> {
        let state = self.state.load();
        let current = state.current.clone();
        let Some(canary) = state.canary.clone().filter(|canary| canary.is_open()) else {
            return Chosen::Current {
                current,
                canary: None,
            };
        };
        let (is_in_share, explains) = (canary.is_in_share(job), canary.is_unexplained(job));
        if is_in_share || explains {
            Chosen::Candidate {
                canary,
                current,
                explains,
            }
        } else {
            let canary = Some(canary);
            Chosen::Current { current, canary }
        }
    }

    /// Puts a version in place; ends a canary.
    pub fn publish(&self, current: Arc<Loaded<T>>) {
        self.replace(State {
            current,
            canary: None,
        });
    }

    /// Begins a canary beside the current version.
    pub fn begin(&self, canary: Arc<Canary<T>>) {
        let current = self.current();
        self.replace(State {
            current,
            canary: Some(canary),
        });
    }

    /// Ends a canary; the current version stays.
    pub fn end_canary(&self) {
        self.publish(self.current());
    }

    fn replace(&self, state: State<T>) {
        let before = self.state.swap(Arc::new(state));
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        let canary = before.canary.as_ref().map(|canary| &canary.candidate);
        for version in canary.into_iter().chain([&before.current]) {
            replaced.push(Arc::downgrade(version));
        }
    }

    /// How many versions that were replaced still have a job or request to end.
    pub fn draining(&self) -> usize {
        let state = self.state.load();
        let in_place = |version: &Arc<Loaded<T>>| {
            Arc::ptr_eq(version, &state.current)
                || (state.canary.as_ref())
                    .is_some_and(|canary| Arc::ptr_eq(version, &canary.candidate))
        };
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.retain(|version| version.upgrade().is_some_and(|version| !in_place(&version)));
        replaced.dedup_by(|one, other| Weak::ptr_eq(one, other));
        replaced.len()
    }
}

/// A candidate that does a share of the jobs, and what that has shown.
pub struct Canary<T> {
    /// The candidate.
    pub candidate: Arc<Loaded<T>>,
    /// Its share of the jobs.
    pub share: f64,
    /// When it began: milliseconds since 1970-01-01 UTC.
    pub since: u64,
    is_open: AtomicBool,
    watched: Mutex<Watched>,
    judged: Box<dyn Fn(Judgement) + Send + Sync>,
}

struct Watched {
    tally: Tally,
    /// Runs of the candidate under way: when each began.
    under_way: BTreeMap<u64, Instant>,
    next_run: u64,
    longest_success: Duration,
    /// Jobs that failed on the current version.
    unexplained: HashSet<String>,
}

/// A run of a candidate, for as long as it is under way.
pub struct UnderWay<'a, T> {
    canary: &'a Canary<T>,
    run: u64,
}

impl<T> Drop for UnderWay<'_, T> {
    fn drop(&mut self) {
        self.canary.watched().under_way.remove(&self.run);
    }
}

/// How a job of a canary went, on the side that it was first run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Went {
    /// The candidate did it, in this time.
    CandidateDid(Duration),
    /// It failed on the candidate, and the current version did it.
    CandidateFailed,
    /// It failed on both.
    Poison,
    /// The current version did it, in this time.
    CurrentDid(Duration),
    /// It failed on the current version.
    CurrentFailed,
}

impl<T> Canary<T> {
    /// A canary that begins now. `judged` is told the judgement, once.
    pub fn new(
        candidate: Arc<Loaded<T>>,
        share: f64,
        since: u64,
        judged: impl Fn(Judgement) + Send + Sync + 'static,
    ) -> Self {
        Self {
            candidate,
            share,
            since,
            is_open: AtomicBool::new(true),
            watched: Mutex::new(Watched {
                tally: Tally::new(share),
                under_way: BTreeMap::new(),
                next_run: 0,
                longest_success: Duration::ZERO,
                unexplained: HashSet::new(),
            }),
            judged: Box::new(judged),
        }
    }

    /// False once it is judged: no job goes to the candidate any more.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// What it has shown so far.
    pub fn tally(&self) -> Tally {
        self.watched().tally.clone()
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By the job's id and the candidate alone, so that no attempt changes sides.
    fn is_in_share(&self, job: &str) -> bool {
        let mut hash = Sha256::new();
        hash.update(&self.candidate.version.digest);
        hash.update(self.since.to_be_bytes());
        hash.update(job);
        let hash = hash.finalize();
        let head = hash
            .first_chunk()
            .map_or(0, |head| u64::from_be_bytes(*head));
        // 53 bits are what an f64 holds exactly.
        ((head >> 11) as f64 / (1_u64 << 53) as f64) < self.share
    }

    fn is_unexplained(&self, job: &str) -> bool {
        self.watched().unexplained.contains(job)
    }

    /// Notes that the candidate begins a job, until the guard is dropped.
    pub fn begin_run(&self) -> UnderWay<'_, T> {
        let mut watched = self.watched();
        let run = watched.next_run;
        watched.next_run += 1;
        watched.under_way.insert(run, Instant::now());
        UnderWay { canary: self, run }
    }

    /// A job failed on the current version for the last time, and was tried on
    /// the candidate at once: `is_poison` if it failed there, too.
    pub fn saw_last_failure(&self, is_poison: bool) {
        let mut watched = self.watched();
        watched.tally.current_failed();
        watched.tally.current_failure_explained(is_poison);
        self.look(watched, true);
    }

    /// Counts how a job went.
    pub fn saw(&self, job: &str, went: Went, explains: bool) {
        let mut watched = self.watched();
        if let Went::CandidateDid(took) = went {
            watched.longest_success = watched.longest_success.max(took);
        }
        if explains {
            // It was not picked at random: it only says what its failure was.
            if watched.unexplained.remove(job) {
                let is_poison = !matches!(went, Went::CandidateDid(_));
                watched.tally.current_failure_explained(is_poison);
            }
        } else {
            let tally = &mut watched.tally;
            match went {
                Went::CandidateDid(took) => tally.candidate_did(took),
                Went::CandidateFailed => tally.candidate_failed(),
                Went::Poison => tally.poisoned(),
                Went::CurrentDid(took) => tally.current_did(took),
                Went::CurrentFailed => {
                    tally.current_failed();
                    if watched.unexplained.len() < UNEXPLAINED_MAX {
                        watched.unexplained.insert(job.to_owned());
                    }
                }
            }
        }
        let failed = !matches!(went, Went::CandidateDid(_) | Went::CurrentDid(_));
        self.look(watched, failed);
    }

    fn look(&self, watched: std::sync::MutexGuard<'_, Watched>, failed: bool) {
        if !watched.tally.is_look_due(failed) {
            return;
        }
        let longest = watched.longest_success;
        let runs = watched.under_way.values();
        let overdue = runs.filter(|began| began.elapsed() > longest).count();
        let judgement = watched.tally.judge(overdue as u64);
        drop(watched);
        // Jobs that end at the same moment come to the same judgement.
        if judgement != Judgement::Undecided && self.close() {
            (self.judged)(judgement);
        }
    }

    /// Sends no more jobs to the candidate; true if it did until now.
    pub fn close(&self) -> bool {
        self.is_open.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(digest: &str) -> Arc<Loaded<()>> {
        Arc::new(Loaded {
            component: Arc::new(()),
            version: Version {
                digest: digest.to_owned(),
                ..Version::default()
            },
        })
    }

    fn slot() -> Slot<()> {
        let first = Arc::into_inner(loaded("a"));
        Slot::new("worker", first.expect("just made"))
    }

    #[test]
    fn what_was_read_stays_and_is_freed_when_its_last_holder_lets_go() {
        let slot = slot();
        let held = slot.current();
        slot.publish(loaded("b"));
        assert_eq!(slot.current().version.digest, "b");
        assert_eq!((held.version.digest.as_str(), slot.draining()), ("a", 1));
        drop(held);
        assert_eq!(slot.draining(), 0);
    }

    #[test]
    fn a_canary_gets_its_share_and_no_attempt_changes_sides() {
        let slot = slot();
        slot.begin(Arc::new(Canary::new(loaded("b"), 0.1, 7, |_| {})));
        let is_candidate = |job: &str| matches!(slot.choose(job), Chosen::Candidate { .. });
        let jobs: Vec<String> = (0..20_000).map(|n| format!("job-{n}")).collect();
        let share = jobs.iter().filter(|job| is_candidate(job)).count();
        assert!((1_850..2_150).contains(&share), "{share} of 20,000");
        assert!(
            jobs.iter()
                .take(100)
                .all(|job| is_candidate(job) == is_candidate(job))
        );
    }

    #[test]
    fn a_canary_is_judged_once_and_gets_no_job_after() {
        let slot = slot();
        let judged = Arc::new(Mutex::new(Vec::new()));
        let told = judged.clone();
        let canary = Arc::new(Canary::new(loaded("b"), 0.5, 7, move |judgement| {
            told.lock().expect("no panic").push(judgement);
        }));
        slot.begin(canary.clone());
        for n in 0..50 {
            canary.saw(&n.to_string(), Went::CandidateFailed, false);
        }
        assert_eq!(judged.lock().expect("no panic").len(), 1);
        assert!((0..100).all(|n| matches!(
            slot.choose(&n.to_string()),
            Chosen::Current { canary: None, .. }
        )));
    }

    #[test]
    fn runs_that_hang_hold_a_promotion_up() {
        let judged = Arc::new(Mutex::new(Vec::new()));
        let told = judged.clone();
        let canary = Canary::new(loaded("b"), 0.5, 7, move |judgement| {
            told.lock().expect("no panic").push(judgement);
        });
        let hanging: Vec<_> = (0..40).map(|_| canary.begin_run()).collect();
        std::thread::sleep(Duration::from_millis(2));
        for n in 0..1_000 {
            canary.saw(
                &n.to_string(),
                Went::CandidateDid(Duration::from_micros(1)),
                false,
            );
            canary.saw(
                &n.to_string(),
                Went::CurrentDid(Duration::from_micros(1)),
                false,
            );
        }
        assert!(canary.is_open(), "{}", canary.tally());
        drop(hanging);
        for n in 0..16 {
            canary.saw(
                &n.to_string(),
                Went::CandidateDid(Duration::from_micros(1)),
                false,
            );
        }
        let judged = judged.lock().expect("no panic");
        assert!(
            matches!(judged.as_slice(), [Judgement::Promote(_)]),
            "{judged:?}"
        );
    }

    #[test]
    fn a_failure_on_the_current_version_is_tried_on_the_candidate() {
        let slot = slot();
        let canary = Arc::new(Canary::new(loaded("b"), 0.1, 7, |_| {}));
        slot.begin(canary.clone());
        let job = (0..)
            .map(|n| n.to_string())
            .find(|job| matches!(slot.choose(job), Chosen::Current { .. }))
            .expect("most are");
        canary.saw(&job, Went::CurrentFailed, false);
        assert!(matches!(
            slot.choose(&job),
            Chosen::Candidate { explains: true, .. }
        ));
        canary.saw(&job, Went::Poison, true);
        assert!(matches!(slot.choose(&job), Chosen::Current { .. }));
        assert!(canary.tally().to_string().contains("1 failed on both"));
        assert_eq!(canary.tally().candidate_jobs(), 0);
    }
}
