//! Whether and when to try again, and what a sender is told in the end.

use std::time::Duration;

use orchestrator_queue::SendError;
use orchestrator_servicebus::refusal::ApiError;

/// How long one call may take with all its tries: a client of ingest is
/// answered within ten seconds, also while the service is away.
pub const DEADLINE: Duration = Duration::from_secs(9);
/// Time for one try: a namespace that is there answers within a second.
pub const TRY_MAX: Duration = Duration::from_secs(4);
/// First and longest wait between two tries.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Why a try failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What the service said, or that it did not.
    Service(ApiError),
    /// The host lets no request out; the text says to where.
    Forbidden(String),
    /// The request cannot even be written: the message's fault.
    Unwritable(String),
}

/// The waits between the tries of one request.
#[derive(Clone, Debug)]
pub struct Tries {
    wait: Duration,
}

impl Default for Tries {
    fn default() -> Self {
        Self { wait: RETRY_MIN }
    }
}

impl Tries {
    /// How long to wait before the next try, if it can help and there is time
    /// `left` for it. `random`, all bits of it, spreads those who wait together.
    pub fn next(&mut self, failure: &Failure, left: Duration, random: u64) -> Option<Duration> {
        let Failure::Service(error) = failure else {
            return None;
        };
        let pause = error.pause(self.wait)?;
        // Up to a quarter longer.
        let share = (random >> 32) as f64 / f64::from(u32::MAX) / 4.0;
        let pause = pause.mul_f64(1.0 + share);
        self.wait = (self.wait * 2).min(RETRY_MAX);
        (pause < left).then_some(pause)
    }
}

impl Failure {
    /// True if one message of a batch can be what is wrong with all of it.
    pub fn spoils_batch(&self) -> bool {
        match self {
            Self::Service(error) => error.spoils_batch(),
            Self::Forbidden(_) => false,
            Self::Unwritable(_) => true,
        }
    }

    /// What the sender of a message is told; `is_named`: by the message itself
    /// `queue` was chosen.
    pub fn told(self, queue: &str, is_named: bool) -> SendError {
        match self {
            Self::Service(ApiError::NotFound { .. }) if is_named => SendError::Invalid(format!(
                "no queue `{queue}`: the namespace does not have it"
            )),
            Self::Service(ApiError::NotFound { .. }) => SendError::Unavailable(format!(
                "the namespace has no queue `{queue}`: create it, or correct the variable `{}`",
                crate::settings::QUEUE
            )),
            Self::Service(error) => error.of_send(queue),
            Self::Forbidden(why) => SendError::Unavailable(why),
            Self::Unwritable(why) => SendError::Invalid(why),
        }
    }
}

/// The sentence on a host that lets no request out to `origin`.
pub fn forbidden(origin: &str) -> String {
    format!(
        "the component may not call {origin}: add it to its `allowed_outbound_hosts`, and that to `inherit_configuration` of the dependency that sends"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, retry_after: Option<&str>) -> Failure {
        Failure::Service(ApiError::of(status, retry_after, b"no"))
    }

    #[test]
    fn waits_grow_within_their_bound_and_end_with_the_time() {
        let mut tries = Tries::default();
        let gone = Failure::Service(ApiError::Unreachable("refused".to_owned()));
        let mut total = Duration::ZERO;
        let mut waits = Vec::new();
        while let Some(wait) = tries.next(&gone, DEADLINE - total, 0) {
            waits.push(wait.as_millis());
            total += wait;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 2_000, 2_000]);
        let later = Tries::default().next(&gone, DEADLINE, u64::MAX);
        assert_eq!(later, Some(Duration::from_millis(125)));
    }

    #[test]
    fn the_service_says_when_and_a_retry_that_cannot_help_is_not_made() {
        let next = |failure: Failure| Tries::default().next(&failure, DEADLINE, 0);
        assert_eq!(next(of(503, Some("3"))), Some(Duration::from_secs(3)));
        assert_eq!(next(of(429, Some("30"))), None);
        for failure in [
            of(400, None),
            of(401, None),
            of(403, None),
            of(404, None),
            Failure::Forbidden(String::new()),
            Failure::Unwritable(String::new()),
        ] {
            assert_eq!(next(failure.clone()), None, "{failure:?}");
        }
    }

    #[test]
    fn each_end_is_told_in_the_contracts_words() {
        let told = |failure: Failure, is_named| failure.told("q", is_named);
        assert!(matches!(told(of(400, None), false), SendError::Invalid(_)));
        assert!(matches!(told(of(403, None), false), SendError::Full { .. }));
        for status in [401, 410, 429, 500, 503] {
            let end = told(of(status, None), false);
            assert!(matches!(end, SendError::Unavailable(_)), "{status}: {end}");
        }
        assert!(matches!(told(of(404, None), true), SendError::Invalid(_)));
        let denied = told(Failure::Forbidden(forbidden("https://x")), true);
        assert!(
            matches!(denied, SendError::Unavailable(why) if why.contains("allowed_outbound_hosts"))
        );
        let unwritable = Failure::Unwritable("a name".to_owned());
        assert!(unwritable.spoils_batch());
        assert!(matches!(told(unwritable, false), SendError::Invalid(_)));
    }
}
