//! Notices that a component's file has changed.
//!
//! By looking, not by the system's notifications: those differ from one file
//! system to the next and are lost on mounted and shared ones, and a look costs
//! a microsecond. A file that is still being written is left alone until it
//! has not changed between two looks and ends where WebAssembly may end.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use orchestrator_engine::loader;
use tokio_util::sync::CancellationToken;

use super::swapper::{Candidate, Origin};
use super::{COMPONENT_BYTES_MAX, Swapper, signature};

/// Time between two looks: also how long a file must have been left alone.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long a file may end in the middle before it is refused for that.
const INCOMPLETE_MAX: Duration = Duration::from_secs(5);

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
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
    let (mut digest, mut seen, mut done) = (digest, None, None);
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
        let now = tokio::fs::metadata(&path).await.ok().map(|file| Stamp {
            modified: (file.mtime(), file.mtime_nsec()),
            bytes: file.len(),
            inode: file.ino(),
        });
        if now != seen {
            (seen, changed_at) = (now, Instant::now());
            continue;
        }
        let Some(stamp) = now.filter(|_| now != done) else {
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
        let found = loader::digest(&bytes);
        if digest.as_ref() == Some(&found) {
            continue;
        }
        digest = Some(found);
        let candidate = Candidate {
            bytes,
            origin: Origin::File,
            by: path.display().to_string(),
            reason: None,
            signature: signature::beside(&path),
            canary: None,
            read,
        };
        // What becomes of it is told by the swapper's events.
        drop(swapper.swap(&id, candidate));
    }
}
