//! What requests are authorized with.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ConnectError;
use crate::connection_string::{Auth, ConnectionString};
use crate::sas;
use crate::secret::Secret;

/// How long a signature we make is good for: short, so that one that leaks is
/// soon worthless, and long enough to be made rarely.
const SAS_LIFETIME: Duration = Duration::from_secs(20 * 60);
/// A signature is renewed when it has less time left than this: longer than a
/// long poll, and than clocks may differ.
const SAS_RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);

/// Makes the `Authorization` header.
pub struct Authorizer {
    resource: String,
    auth: Auth,
    made: Mutex<Option<(Secret, u64)>>,
}

impl Authorizer {
    pub fn new(connection: &ConnectionString) -> Result<Self, ConnectError> {
        if matches!(connection.auth, Auth::None) {
            return Err(ConnectError::NoCredential);
        }
        Ok(Self {
            resource: connection.endpoint.origin(),
            auth: connection.auth.clone(),
            made: Mutex::new(None),
        })
    }

    /// The header's value now.
    pub fn header(&self) -> Secret {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        match &self.auth {
            Auth::Key { name, key } => {
                let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
                match &*made {
                    Some((header, expires_at))
                        if expires_at.saturating_sub(SAS_RENEW_BEFORE.as_secs()) > now =>
                    {
                        header.clone()
                    }
                    _ => {
                        let expires_at = now + SAS_LIFETIME.as_secs();
                        let header = Secret::new(sas::sign(&self.resource, name, key, expires_at));
                        *made = Some((header.clone(), expires_at));
                        header
                    }
                }
            }
            Auth::Signature(signature) => signature.clone(),
            // Refused when this was made.
            Auth::None => Secret::new(""),
        }
    }
}
