//! What requests are authorized with.

use std::time::SystemTime;

use super::ConnectError;
use crate::connection_string::{Auth, ConnectionString};
use crate::refusal::ApiError;
use crate::sas::Signer;
use crate::secret::Secret;

/// Makes the `Authorization` header.
pub struct Authorizer(Source);

enum Source {
    /// Signed here, again and again.
    Key(Signer),
    /// Given ready-made.
    Signature(Secret),
    /// Asked for.
    #[cfg(feature = "entra")]
    Entra(super::entra::Tokens),
}

impl Authorizer {
    pub fn new(connection: &ConnectionString) -> Result<Self, ConnectError> {
        Ok(Self(match &connection.auth {
            Auth::Key { name, key } => {
                Source::Key(Signer::new(connection.endpoint.origin(), name, key))
            }
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
            Source::Key(signer) => Ok(signer.header(SystemTime::now())),
            Source::Signature(signature) => Ok(signature.clone()),
            #[cfg(feature = "entra")]
            Source::Entra(tokens) => tokens.header().await.map_err(ApiError::NoToken),
        }
    }
}
