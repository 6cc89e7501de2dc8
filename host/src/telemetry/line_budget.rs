//! How many lines about jobs reach the console.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines about jobs per second: more than a person reads, less than a console
/// and a log collector choke on. The metrics count every job all the same.
const JOB_LINES_PER_SECOND_MAX: u32 = 200;
const WINDOW: Duration = Duration::from_secs(1);

/// Lets a bounded number of lines through in each second and says how many
/// were left out.
#[derive(Default)]
pub struct LineBudget(Mutex<Option<Window>>);

struct Window {
    began: Instant,
    written: u32,
    left_out: u64,
}

impl LineBudget {
    /// True if a line may be written now.
    pub fn take(&self) -> bool {
        let (may_write, left_out) = self.take_at(Instant::now());
        if left_out > 0 {
            tracing::info!(
                lines = left_out,
                "more lines about jobs were left out; the metrics count every job"
            );
        }
        may_write
    }

    /// Whether a line may be written at `now`, and how many lines of the
    /// window that just ended were left out.
    fn take_at(&self, now: Instant) -> (bool, u64) {
        let mut slot = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let ended = slot.take_if(|window| now.duration_since(window.began) >= WINDOW);
        let window = slot.get_or_insert(Window {
            began: now,
            written: 0,
            left_out: 0,
        });
        let may_write = window.written < JOB_LINES_PER_SECOND_MAX;
        if may_write {
            window.written += 1;
        } else {
            window.left_out += 1;
        }
        (may_write, ended.map_or(0, |window| window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_budget_and_the_next_says_what_was_left_out() {
        let budget = LineBudget::default();
        let start = Instant::now();
        let written = (0..JOB_LINES_PER_SECOND_MAX + 7)
            .filter(|_| budget.take_at(start).0)
            .count();
        assert_eq!(written, JOB_LINES_PER_SECOND_MAX as usize);
        assert_eq!(budget.take_at(start + WINDOW), (true, 7));
        assert_eq!(budget.take_at(start + WINDOW), (true, 0));
    }
}
