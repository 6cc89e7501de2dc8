//! Bugs that tests can switch on, to see that what must find them does.
//!
//! In a build without the feature `simulation`, which is every build but those
//! of tests and benches, none of them is there: [`is`] is the constant `false`.

/// Names the bug of a whole process.
#[cfg(feature = "simulation")]
pub const VARIABLE: &str = "ORCHESTRATOR_PLANTED_BUG";

/// A bug, and the promise that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Ids are not compared: a repeated job runs twice.
    ForgetDuplicates,
    /// A batch is answered without its fsync: a power failure loses accepted jobs.
    AnswerBeforeDurable,
    /// A settlement counts whoever holds the lock now.
    AcceptStaleSettlement,
    /// What is given back is not looked for again: its job never ends.
    ForgetReady,
    /// A job is completed when it begins: a crash loses it.
    SettleBeforeDone,
    /// Locks are not renewed: a long job runs on several hands at once.
    ForgetRenewal,
    /// A retry does not wait for its backoff.
    RetryAtOnce,
    /// A delivery that is given back stays counted: a stop spends attempts.
    CountReleased,
}

impl Planted {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::ForgetDuplicates,
        Self::AnswerBeforeDurable,
        Self::AcceptStaleSettlement,
        Self::ForgetReady,
        Self::SettleBeforeDone,
        Self::ForgetRenewal,
        Self::RetryAtOnce,
        Self::CountReleased,
    ];
}

/// Whether this bug is in here: never.
#[cfg(not(feature = "simulation"))]
pub const fn is(_bug: Planted) -> bool {
    false
}

#[cfg(feature = "simulation")]
pub use switch::{is, plant};

#[cfg(feature = "simulation")]
mod switch {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::{Planted, VARIABLE};

    thread_local! {
        static HERE: Cell<Option<Planted>> = const { Cell::new(None) };
    }

    /// Plants a bug in what runs on this thread, or takes it out again.
    pub fn plant(bug: Option<Planted>) {
        HERE.set(bug);
    }

    /// Whether this bug is planted here, or by [`VARIABLE`] in the whole process.
    pub fn is(bug: Planted) -> bool {
        static PROCESS: OnceLock<Option<Planted>> = OnceLock::new();
        let process = PROCESS.get_or_init(|| {
            let name = std::env::var(VARIABLE).ok()?;
            let named = Planted::ALL
                .into_iter()
                .find(|bug| format!("{bug:?}") == name);
            // A test that misspells its bug would find nothing, and pass.
            let bug = named.unwrap_or_else(|| panic!("{VARIABLE} is `{name}`, which is no bug"));
            eprintln!("this build has a bug on purpose: {VARIABLE} is {bug:?}");
            Some(bug)
        });
        HERE.get() == Some(bug) || *process == Some(bug)
    }
}
