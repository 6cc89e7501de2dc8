//! What requests are authorized with.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ConnectError;
use super::api::ApiError;
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
pub struct Authorizer(Source);

enum Source {
    /// Signed here, again and again.
    Key {
        resource: String,
        name: String,
        key: Secret,
        made: Mutex<Option<(Secret, u64)>>,
    },
    /// Given ready-made.
    Signature(Secret),
    /// Asked for.
    #[cfg(feature = "entra")]
    Entra(super::entra::Tokens),
}

impl Authorizer {
    pub fn new(connection: &ConnectionString) -> Result<Self, ConnectError> {
        Ok(Self(match &connection.auth {
            Auth::Key { name, key } => Source::Key {
                resource: connection.endpoint.origin(),
                name: name.clone(),
                key: key.clone(),
                made: Mutex::new(None),
            },
            Auth::Signature(signature) => Source::Signature(signature.clone()),
            #[cfg(feature = "entra")]
            Auth::None => {
                Source::Entra(super::entra::Tokens::new(&|name| std::env::var(name).ok())?)
            }
            #[cfg(not(feature = "entra"))]
            Auth::None => return Err(ConnectError::NoCredential),
        }))
    }

    /// The header's value now, or why there is none.
    pub async fn header(&self) -> Result<Secret, ApiError> {
        match &self.0 {
            Source::Key {
                resource,
                name,
                key,
                made,
            } => Ok(signed(resource, name, key, made)),
            Source::Signature(signature) => Ok(signature.clone()),
            #[cfg(feature = "entra")]
            Source::Entra(tokens) => tokens.header().await.map_err(ApiError::NoToken),
        }
    }
}

fn signed(resource: &str, name: &str, key: &Secret, made: &Mutex<Option<(Secret, u64)>>) -> Secret {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((header, expires_at)) = &*made
        && expires_at.saturating_sub(SAS_RENEW_BEFORE.as_secs()) > now
    {
        return header.clone();
    }
    let expires_at = now + SAS_LIFETIME.as_secs();
    let header = Secret::new(sas::sign(resource, name, key, expires_at));
    *made = Some((header.clone(), expires_at));
    header
}
