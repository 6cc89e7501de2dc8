//! Holds what was seen against what is promised.

use orchestrator_engine::Outcome;
use orchestrator_queue::{Job, JobState, REASON_MAX_DELIVERY_COUNT};

use crate::plan::{End, Plan};
use crate::world::{Run, Seen};

/// Every promise that was broken, in words.
pub fn judge(plan: &Plan, seen: &Seen) -> Vec<String> {
    let mut broken = Vec::new();
    let mut hold = |holds: bool, promise: &str, of: &str| {
        if !holds {
            broken.push(format!("BROKEN: {promise}: {of}"));
        }
    };
    hold(seen.rested, "everything comes to rest", "the queue");
    let stats = &seen.stats;
    hold(
        !seen.rested || (stats.locked, stats.ready, stats.scheduled) == (0, 0, 0),
        "nothing is locked when nothing runs",
        &format!("{stats:?}"),
    );
    hold(
        stats.dead > 0 || stats.bytes == 0 || !seen.rested,
        "an empty queue holds nothing",
        &format!("{stats:?}"),
    );
    for (id, told) in &seen.accepted {
        let job = seen.jobs.get(id).and_then(Option::as_ref);
        hold(job.is_some(), "an accepted job is never lost", id);
        hold(
            told.iter().all(|(_, sequence)| *sequence == told[0].1),
            "an id that is sent again is the same message",
            id,
        );
        let ended =
            job.is_some_and(|job| matches!(job.state, JobState::Completed | JobState::Dead));
        hold(ended, "an accepted job ends", id);
        if let Some(job) = job {
            one_job(plan, seen, job, &mut hold);
        }
    }
    for job in &seen.listed {
        let times = seen
            .listed
            .iter()
            .filter(|other| other.id == job.id)
            .count();
        hold(times == 1, "an id is one job", &job.id);
        let known = seen.jobs.contains_key(&job.id);
        hold(known, "only what was sent is there", &job.id);
    }
    broken
}

fn one_job(plan: &Plan, seen: &Seen, job: &Job, hold: &mut impl FnMut(bool, &str, &str)) {
    let id = &job.id;
    let runs: Vec<(usize, &Run)> = (seen.runs.iter().enumerate())
        .filter(|(_, run)| run.job == *id)
        .collect();
    let planned = plan.jobs.iter().find(|planned| planned.id == *id);
    let delay = planned.map_or(0, |planned| planned.delay.as_millis() as u64);
    hold(
        runs.iter()
            .all(|(_, run)| run.began >= job.enqueued_at + delay),
        "a job does not run before it is due",
        id,
    );
    hold(
        job.delivery_count <= plan.attempts_max
            && runs
                .iter()
                .all(|(_, run)| (1..=plan.attempts_max).contains(&run.attempt)),
        "no job has more attempts than it may",
        id,
    );
    let completed = |attempt: &&orchestrator_queue::Attempt| attempt.outcome == "completed";
    let completions = job.attempts.iter().filter(completed).count();
    match job.state {
        JobState::Completed => {
            hold(completions == 1, "a completed job was completed once", id);
            let result = job.output.as_ref().map_or(&[][..], |output| &output.body);
            let is_its_own = |(n, run): &(usize, &Run)| {
                let is_done = matches!(
                    &run.ended,
                    Some((at, Some(Outcome::Done { .. }))) if Some(*at) <= job.finished_at
                );
                is_done && format!("{id} run {n}").as_bytes() == result
            };
            hold(
                runs.iter().any(is_its_own),
                "a completed job was done, and its result is of a run that ended before",
                id,
            );
        }
        JobState::Dead => {
            hold(completions == 0, "a dead job was not completed", id);
            let reason = job.dead_letter.as_ref().map_or("", |letter| &letter.reason);
            let is_given_up =
                |run: &Run| matches!(&run.ended, Some((_, Some(Outcome::DeadLetter { .. }))));
            let is_right = match reason {
                REASON_MAX_DELIVERY_COUNT => job.delivery_count == plan.attempts_max,
                "GivenUp" => runs.iter().any(|(_, run)| is_given_up(run)),
                _ => false,
            };
            hold(is_right, "a dead letter has the right reason", id);
        }
        JobState::Scheduled | JobState::Queued | JobState::Running | JobState::Retrying => {}
    }
    if let Some(finished_at) = job.finished_at {
        hold(
            runs.iter().all(|(_, run)| run.began <= finished_at),
            "a job that ended is not run again",
            id,
        );
    }
    one_holder(plan, seen, &runs, id, hold);
    backoff(plan, job, hold);
    spent(plan, seen, job, &runs, hold);
}

/// Two runs at one time need a lock that was lost: on purpose, with its host,
/// or because nobody could renew it.
fn one_holder(
    plan: &Plan,
    seen: &Seen,
    runs: &[(usize, &Run)],
    id: &str,
    hold: &mut impl FnMut(bool, &str, &str),
) {
    for (_, run) in runs {
        let ended = run.ended.as_ref().map_or(u64::MAX, |(at, _)| *at);
        let other = runs.iter().find(|(_, other)| {
            other.began > run.began && other.began < ended && other.host == run.host
        });
        if other.is_none() {
            continue;
        }
        let faults = plan.chaos.faults(id, run.attempt);
        let was_lost = faults.late_settle || faults.lock_loss.is_some();
        // A slow broker is still in time for locks of a second and more.
        let hindered = plan.chaos.broker_down_rate > 0.0
            || plan.chaos.broker_throttle_rate > 0.0
            || (seen.storage_faults.iter()).any(|at| (run.began..=ended).contains(at));
        hold(was_lost || hindered, "a job has one holder at a time", id);
    }
}

/// Between a failed attempt and the next one lies the delay that was decided.
fn backoff(plan: &Plan, job: &Job, hold: &mut impl FnMut(bool, &str, &str)) {
    for pair in job.attempts.windows(2) {
        let (failed, next) = (&pair[0], &pair[1]);
        let is_hosts = matches!(
            failed.outcome.as_str(),
            "chaos" | "trap" | "timeout" | "out-of-memory" | "bad-answer"
        );
        if !is_hosts || next.number != failed.number + 1 {
            continue;
        }
        let wait = plan.retry.delay(failed.number, 0.0).as_millis() as u64;
        hold(
            next.started_at >= failed.ended_at + wait,
            "a failed attempt is repeated after its backoff",
            &job.id,
        );
    }
}

/// Where nothing takes locks, kills hosts or hinders brokers and disks, each
/// attempt that was spent is a run that came to an end, or a failure that was
/// injected in its place: stops and instances that do not start spend none.
fn spent(
    plan: &Plan,
    seen: &Seen,
    job: &Job,
    runs: &[(usize, &Run)],
    hold: &mut impl FnMut(bool, &str, &str),
) {
    let calm = plan.chaos.lock_loss_rate == 0.0
        && plan.chaos.late_settle_rate == 0.0
        && !plan.chaos.troubles_the_broker()
        && seen.storage_faults.is_empty()
        && (plan.ends.iter()).all(|(_, end)| matches!(end, End::Stop { .. }));
    if !calm {
        return;
    }
    let ran = runs.iter().filter(|(_, run)| match &run.ended {
        Some((at, None)) => *at >= run.began + plan.timeout.as_millis() as u64,
        Some((_, Some(Outcome::NotStarted { .. }))) | None => false,
        Some((_, Some(_))) => true,
    });
    let injected = (1..=job.delivery_count)
        .filter(|attempt| plan.chaos.faults(&job.id, *attempt).failure)
        .count();
    hold(
        job.delivery_count as usize == ran.count() + injected,
        "only an attempt that ends is spent",
        &job.id,
    );
}
