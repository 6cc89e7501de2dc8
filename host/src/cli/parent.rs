//! Notices the end of the process that started this one.
//!
//! Spin kills the process between itself and a trigger when the application
//! ends, and the trigger gets no signal of that. The kernel's own one
//! (`PR_SET_PDEATHSIG`) is tied to the thread that started this process, and
//! such a thread of a runtime can end while its process goes on; so the
//! process itself is watched.

use std::time::Duration;

use rustix::process::{Pid, getppid};

/// Between two looks, where the system does not tell.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The process that started this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parent(Option<Pid>);

impl Parent {
    /// To be called first thing: a parent that has ended by then is not known.
    pub fn now() -> Self {
        Self(getppid())
    }

    fn is_gone(self) -> bool {
        getppid() != self.0
    }

    /// Ends when the parent has.
    pub async fn gone(self) {
        #[cfg(target_os = "linux")]
        if let Some(parent) = self.0
            && let Some(handle) = handle(parent)
        {
            // The handle may be another's if the parent ended before: then it
            // is not the parent any more.
            if !self.is_gone() {
                // Readable at its end; an error leaves the looking.
                let _ = handle.readable().await;
            }
        }
        while !self.is_gone() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(target_os = "linux")]
fn handle(process: Pid) -> Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    use rustix::process::{PidfdFlags, pidfd_open};
    use tokio::io::Interest;
    let handle = pidfd_open(process, PidfdFlags::NONBLOCK).ok()?;
    tokio::io::unix::AsyncFd::register_with_interest(handle, Interest::READABLE).ok()
}
