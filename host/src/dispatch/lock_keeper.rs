//! When to renew a lock, and when it is lost. Pure: times come in as values.

use std::time::Duration;

use orchestrator_queue::Millis;

/// Shortest wait between two tries to renew after one failed.
const RETRY_MIN: Duration = Duration::from_millis(50);

/// What the keeper of a lock does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait this long, then renew.
    RenewAfter(Duration),
    /// The lock has run out.
    Lost,
}

/// After a renewal (or the delivery itself): renew at half of what is left.
pub fn after_renewal(now: Millis, locked_until: Millis) -> Step {
    match locked_until.saturating_sub(now) {
        0 => Step::Lost,
        left => Step::RenewAfter(Duration::from_millis(left / 2)),
    }
}

/// After a renewal that failed for want of an answer: again at half of what is
/// left, so that a few tries fit in before the lock runs out.
pub fn after_failure(now: Millis, locked_until: Millis) -> Step {
    match after_renewal(now, locked_until) {
        Step::RenewAfter(wait) => Step::RenewAfter(wait.max(RETRY_MIN)),
        Step::Lost => Step::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_renewed_at_half_its_length() {
        assert_eq!(
            after_renewal(1_000, 31_000),
            Step::RenewAfter(Duration::from_secs(15))
        );
    }

    #[test]
    fn a_lock_that_ran_out_is_lost() {
        assert_eq!(after_renewal(31_000, 31_000), Step::Lost);
        assert_eq!(after_failure(31_001, 31_000), Step::Lost);
    }

    #[test]
    fn failed_renewals_come_closer_together_but_never_spin() {
        assert_eq!(
            after_failure(16_000, 31_000),
            Step::RenewAfter(Duration::from_millis(7_500))
        );
        assert_eq!(after_failure(30_990, 31_000), Step::RenewAfter(RETRY_MIN));
    }
}
