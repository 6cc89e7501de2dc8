//! Azure Service Bus as a queue engine: the peek-lock contract over REST.
//!
//! REST has no delayed retry and no dead-letter call, so both are built from a
//! copy that is sent first and an original that is deleted after; [`protocol`]
//! says how, and what a crash between the two leaves.

mod api;
mod auth;
#[cfg(feature = "entra")]
mod entra;
mod ledger;
pub mod protocol;
mod queue;
mod receiver;
mod sender;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::connection_string::ConnectionString;
use crate::refusal::ApiError;
use api::Api;
pub use ledger::LedgerError;
pub use queue::{Queue, QueueOptions};

/// Whether the service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It did last time.
    Up,
    /// It did not; it is tried again and again.
    Down {
        /// Why.
        reason: String,
    },
}

/// A namespace of Service Bus and how to reach it. Clones share its connections.
#[derive(Clone)]
pub struct Namespace {
    api: Arc<Api>,
    ledger: Arc<ledger::Ledger>,
}

/// Why a namespace cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection string says nothing to authenticate with.
    #[error(
        "the Service Bus connection string has neither `SharedAccessKeyName` and `SharedAccessKey` nor `SharedAccessSignature`, and this program is built without Microsoft Entra ID (feature `entra`)"
    )]
    NoCredential,
    /// What the environment says of Entra ID cannot be used.
    #[error("Microsoft Entra ID cannot be used with these environment variables: {0}")]
    Entra(String),
    /// TLS cannot be set up.
    #[error("the HTTP client for Service Bus cannot be set up: {0}")]
    Http(String),
    /// What this host knows of jobs cannot be kept.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl ConnectError {
    /// Whether another process has what is kept here, and may let go of it.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Ledger(error) if error.is_taken)
    }
}

impl Namespace {
    /// Prepares connections; none is opened yet. What this host sees of its
    /// jobs is kept in `state_dir`.
    pub fn new(
        connection: &ConnectionString,
        state_dir: &Path,
        retention: orchestrator_queue::Retention,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            api: Arc::new(Api::new(connection)?),
            ledger: Arc::new(ledger::Ledger::open(state_dir, retention)?),
        })
    }

    /// A queue of the namespace; must be called on a runtime.
    pub fn queue(&self, options: QueueOptions) -> Queue {
        Queue::new(self.api.clone(), self.ledger.clone(), options)
    }

    /// Where it is, without secrets.
    pub fn origin(&self) -> &str {
        self.api.origin()
    }

    /// Whether it answers, now and whenever that changes.
    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.api.reach()
    }
}

/// What one look at a queue found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is there.
    Found {
        /// Messages that are due or locked.
        active: u64,
        /// Whether an id that is sent again is one message: without it a job
        /// whose acceptance got lost on its way can run twice.
        detects_duplicates: bool,
    },
    /// The namespace answers, and has no such queue.
    Missing,
    /// The credential may use queues, not look at them: nothing is known.
    NotAllowed(String),
}

/// Looks at queues of a namespace without taking anything. The error is a
/// sentence on why the namespace cannot be used.
pub async fn look(connection: &ConnectionString, queues: &[&str]) -> Result<Vec<Look>, String> {
    let api = Api::new(connection).map_err(|error| error.to_string())?;
    let mut looks = Vec::with_capacity(queues.len());
    for queue in queues {
        looks.push(match api.counts(queue).await {
            Ok((description, counts)) => Look::Found {
                active: counts.active,
                detects_duplicates: description.requires_duplicate_detection.unwrap_or(false),
            },
            Err(ApiError::NotFound { .. }) => Look::Missing,
            Err(error @ ApiError::Unauthorized { .. }) => Look::NotAllowed(error.to_string()),
            Err(error) => return Err(error.to_string()),
        });
    }
    Ok(looks)
}
