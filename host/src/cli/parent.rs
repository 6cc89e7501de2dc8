//! Notices the end of the process that started this one.
//!
//! Spin kills the process between itself and a trigger when the application
//! ends, and the trigger gets no signal of that. The kernel's own one
//! (`PR_SET_PDEATHSIG`) is tied to the thread that started this process, and
//! such a thread of a runtime can end while its process goes on. So it looks
//! whose child it is: that works on every Unix, and a look costs nothing.

use std::time::Duration;

use rustix::process::{Pid, getppid};

/// Between two looks: a run that follows this one waits no longer than that.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The process that started this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent(Option<Pid>);

impl Parent {
    /// To be called first thing: a parent that has ended by then is not known.
    pub fn now() -> Self {
        Self(getppid())
    }

    /// Ends when the parent has.
    pub async fn gone(self) {
        while getppid() == self.0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
