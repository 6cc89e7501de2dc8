//! The components of this application: which version of each runs, and how
//! another one comes in.
//!
//! A version comes as a changed file ([`watch`]), an upload or a command. It
//! is compiled and checked beside the running one ([`swapper`]), written down
//! ([`store`]) and put in place by one atomic store ([`slot`]); or it first
//! does a share of the jobs, until statistics ([`verdict`]) decide.
//!
//! | step | a crash there leaves |
//! | --- | --- |
//! | read, compile, check, start once | the old version; the candidate is forgotten |
//! | bytes written | the old version, and bytes that the next start removes |
//! | record written | the new version, from the next start on |
//! | published | the new version |

pub mod dependencies;
mod signature;
pub mod slot;
pub mod store;
pub mod swapper;
pub mod verdict;
mod watch;

use orchestrator_engine::WorkerComponent;
use orchestrator_engine::http::HttpComponent;

pub use signature::{KeysError, TrustedKeys, beside as signature_beside};
pub use slot::{Canary, Chosen, Loaded, Slot, Went};
pub use swapper::{Candidate, Change, Place, SwapError, Swapper};
pub use watch::watch;

/// Largest component, in bytes: interpreters of other languages take tens of megabytes.
pub const COMPONENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest share of jobs that a canary may have: the other side must be no smaller.
pub const CANARY_SHARE_MAX: f64 = 0.5;

/// Facts about the version of a component.
#[derive(Clone, Debug, Default)]
pub struct Version {
    /// Counts the component's versions, from 1, restarts included.
    pub generation: u64,
    /// SHA-256 of the component's bytes, in hexadecimal.
    pub digest: String,
    /// When it was put in place: milliseconds since 1970-01-01 UTC.
    pub since: u64,
    /// Where it came from: a file, or who brought it.
    pub source: String,
    /// Its size.
    pub bytes: u64,
}

/// The place of a worker.
pub type WorkerSlot = Slot<WorkerComponent>;
/// The place of an HTTP component.
pub type HttpSlot = Slot<HttpComponent>;

/// The share that `10%` says: above 0%, at most half.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').map(str::trim);
    let percent: Option<f64> = number.and_then(|number| number.parse().ok());
    match percent.map(|percent| percent / 100.0) {
        Some(share) if share > 0.0 && share <= CANARY_SHARE_MAX => Ok(share),
        _ => Err(format!(
            "a canary's share is `{text}`; it may be above `0%` and at most `{}%`",
            CANARY_SHARE_MAX * 100.0
        )),
    }
}

/// The beginning of a digest, as people and metrics see it.
pub fn short(digest: &str) -> &str {
    &digest[..digest.floor_char_boundary(12)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_up_to_half() {
        assert_eq!(
            (share("10%"), share(" 0.5 % "), share("50%")),
            (Ok(0.1), Ok(0.005), Ok(0.5))
        );
        for bad in ["0%", "-1%", "51%", "10", "%", "ten%", "NaN%", ""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
