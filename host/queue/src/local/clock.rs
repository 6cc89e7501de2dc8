//! The time that locks, delays and retention go by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::Millis;

/// Where a broker takes the time from.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// Wall time at start plus what has passed since, a suspended machine's
    /// sleep included: setting the machine's clock neither breaks nor prolongs
    /// a lock, and shows in times from the next start on.
    Machine {
        wall_at_start: Millis,
        start: Duration,
    },
    Manual(watch::Receiver<Millis>),
    /// The runtime's, which a simulation pauses.
    #[cfg(feature = "simulation")]
    Runtime {
        wall_at_start: Millis,
        start: tokio::time::Instant,
    },
}

/// Moves a manual clock.
#[derive(Debug)]
pub struct ManualClock(watch::Sender<Millis>);

impl Clock {
    /// The machine's clock.
    pub fn machine() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(Source::Machine {
            wall_at_start: millis(since),
            start: since_boot(),
        })
    }

    /// A clock that stands still until it is moved.
    pub fn manual(start: Millis) -> (Self, ManualClock) {
        let (sender, receiver) = watch::channel(start);
        (Self(Source::Manual(receiver)), ManualClock(sender))
    }

    /// The clock of the runtime that this is called on, beginning at `start`.
    #[cfg(feature = "simulation")]
    pub fn of_runtime(start: Millis) -> Self {
        Self(Source::Runtime {
            wall_at_start: start,
            start: tokio::time::Instant::now(),
        })
    }

    /// The time now.
    pub fn now(&self) -> Millis {
        match &self.0 {
            Source::Machine {
                wall_at_start,
                start,
            } => wall_at_start + millis(since_boot().saturating_sub(*start)),
            Source::Manual(time) => *time.borrow(),
            #[cfg(feature = "simulation")]
            Source::Runtime {
                wall_at_start,
                start,
            } => wall_at_start + millis(start.elapsed()),
        }
    }

    /// Waits until the clock shows at least `at`.
    pub(crate) async fn sleep_until(&self, at: Millis) {
        match &self.0 {
            Source::Machine { .. } => {
                tokio::time::sleep(Duration::from_millis(at.saturating_sub(self.now()))).await;
            }
            Source::Manual(time) => {
                // Without anyone left to move it, the clock stands for ever.
                if time.clone().wait_for(|now| *now >= at).await.is_err() {
                    std::future::pending().await
                }
            }
            #[cfg(feature = "simulation")]
            Source::Runtime { .. } => {
                tokio::time::sleep(Duration::from_millis(at.saturating_sub(self.now()))).await;
            }
        }
    }
}

/// Time that goes on evenly, and through suspension where the system has such a clock.
fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    Duration::try_from(rustix::time::clock_gettime(clock)).unwrap_or_default()
}

impl ManualClock {
    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += millis(by));
    }
}

pub(crate) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
