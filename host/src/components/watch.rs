//! Notices that a component's file has changed.
//!
//! By looking, not by the system's notifications: those differ from one file
//! system to the next and are lost on mounted and shared ones, and a look costs
//! a microsecond. A file that is still being written is left alone until it
//! has not changed between two looks and ends where WebAssembly may end.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orchestrator_engine::loader;
use tokio_util::sync::CancellationToken;

use super::swapper::{Candidate, Origin};
use super::{COMPONENT_BYTES_MAX, SwapError, Swapper, signature};

/// Time between two looks: also how long a file must have been left alone.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long a file may end in the middle before it is refused for that.
const INCOMPLETE_MAX: Duration = Duration::from_secs(5);

/// Pause before a candidate is offered again that the host had no room for.
const OFFER_AGAIN: Duration = Duration::from_secs(5);

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
}

async fn stamp(path: &Path) -> Option<Stamp> {
    let file = tokio::fs::metadata(path).await.ok()?;
    Some(Stamp {
        modified: (file.mtime(), file.mtime_nsec()),
        bytes: file.len(),
        inode: file.ino(),
    })
}

/// Offers each new content of this file as a version of the component, until
/// `stop`. `digest` is that of the content that is known.
pub async fn watch(
    swapper: Swapper,
    id: String,
    path: PathBuf,
    digest: Option<String>,
    stop: CancellationToken,
) {
    // A signature that comes after its file makes it another candidate.
    let mut offered = digest.map(|digest| (digest, signature::beside(&path)));
    let signature_path = signature::path(&path);
    let (mut seen, mut done) = (None, None);
    let mut changed_at = Instant::now();
    // The first look finds what the host has just read, or what came since.
    loop {
        if stop
            .run_until_cancelled(tokio::time::sleep(LOOK_AGAIN))
            .await
            .is_none()
        {
            return;
        }
        let now = match stamp(&path).await {
            Some(file) => Some((file, stamp(&signature_path).await)),
            None => None,
        };
        if now != seen {
            (seen, changed_at) = (now, Instant::now());
            continue;
        }
        let Some((stamp, _)) = now.filter(|_| now != done) else {
            continue;
        };
        if stamp.bytes > COMPONENT_BYTES_MAX as u64 {
            swapper.refuse_file(
                &id,
                &format!(
                    "it has {} bytes; at most {COMPONENT_BYTES_MAX} are taken",
                    stamp.bytes
                ),
            );
            done = now;
            continue;
        }
        let began = Instant::now();
        let Ok(bytes) = tokio::fs::read(&path).await else {
            continue;
        };
        let read = began.elapsed();
        if !loader::ends_whole(&bytes) && changed_at.elapsed() < INCOMPLETE_MAX {
            continue;
        }
        done = now;
        let signature = signature::beside(&path);
        let found = Some((loader::digest(&bytes), signature.clone()));
        if offered == found {
            continue;
        }
        offered = found;
        let candidate = Candidate {
            bytes,
            origin: Origin::File,
            by: path.display().to_string(),
            reason: None,
            signature,
            canary: None,
            read,
        };
        // What becomes of it is told by the swapper's events.
        let answer = swapper.swap(&id, candidate).await;
        if let Ok(Err(SwapError::Unavailable(_))) = answer {
            // Not the file's fault, and it may pass.
            (offered, done) = (None, None);
            let _ = stop
                .run_until_cancelled(tokio::time::sleep(OFFER_AGAIN))
                .await;
        }
    }
}
