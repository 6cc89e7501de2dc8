//! How much processor time a guest takes: that of the thread, while it is polled.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Adds up the processor time of every poll of a future.
pub(crate) struct CpuTime<'a, F> {
    future: Pin<&'a mut F>,
    spent: &'a mut Duration,
}

impl<'a, F> CpuTime<'a, F> {
    pub fn of(future: Pin<&'a mut F>, spent: &'a mut Duration) -> Self {
        Self { future, spent }
    }
}

impl<F: Future> Future for CpuTime<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let before = now();
        let polled = self.future.as_mut().poll(cx);
        *self.spent += now().saturating_sub(before);
        polled
    }
}

/// Processor time of this thread since it began.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
