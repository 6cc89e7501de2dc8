//! Faults injected on purpose.
//!
//! Each decision is a pure function of the seed, the job's id and the attempt,
//! so that a run can be repeated and two hosts agree.

use sha2::{Digest, Sha256};

/// The error of an attempt that chaos failed.
pub const SIMULATED_CRASH: &str = "Simulated Crash";

/// Which faults to inject into the jobs of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Chaos {
    /// Share of attempts that fail before the worker starts, from 0 to 1.
    pub failure_rate: f64,
    /// Picks which attempts those are.
    pub seed: u64,
}

impl Chaos {
    /// True if this attempt is to fail.
    pub fn fails(&self, job: &str, attempt: u32) -> bool {
        self.failure_rate > 0.0 && self.draw(job, attempt) < self.failure_rate
    }

    /// A number in [0, 1) that only these three values decide.
    fn draw(&self, job: &str, attempt: u32) -> f64 {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_be_bytes());
        hash.update(attempt.to_be_bytes());
        hash.update(job);
        let hash = hash.finalize();
        let (head, _) = hash.split_first_chunk().expect("a SHA-256 has 32 bytes");
        // 53 bits are what an f64 holds exactly.
        (u64::from_be_bytes(*head) >> 11) as f64 / (1_u64 << 53) as f64
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
                    seed: n
                }
                .fails("job", 1)
            );
            assert!(
                Chaos {
                    failure_rate: 1.0,
                    seed: n
                }
                .fails("job", 1)
            );
        }
    }
}
