//! Tokens of Microsoft Entra ID, for a connection string that has no key.
//!
//! Where they come from, by what the environment says; the names are those
//! that all of Azure's libraries read:
//!
//! | environment | credential |
//! | --- | --- |
//! | `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, `AZURE_CLIENT_SECRET` | that application's secret |
//! | `AZURE_FEDERATED_TOKEN_FILE` (Kubernetes) | workload identity |
//! | `IDENTITY_ENDPOINT` (App Service, Functions, Container Apps) | managed identity; `AZURE_CLIENT_ID` names a user-assigned one |
//! | none of these | managed identity of the virtual machine, then Azure CLI, then Azure Developer CLI |
//!
//! What the environment names is the only one that is tried: a mistake there
//! shows, instead of another identity being taken.

use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use azure_identity::{
    ClientSecretCredential, DeveloperToolsCredential, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::ConnectError;
use crate::secret::Secret;

/// What a token is asked for: <https://learn.microsoft.com/rest/api/servicebus/get-azure-active-directory-token>.
const SCOPE: &str = "https://servicebus.azure.net/.default";
/// Time for a virtual machine's identity: it answers at once, or is not there.
const MANAGED_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for any other: the command line tools take seconds.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a failure stands before it is tried again: requests come by the thousand.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// How much of a failure's text is told.
const WHY_CHARS_MAX: usize = 500;

/// A chain of credentials; the first that gives a token is kept.
pub struct Tokens {
    sources: Vec<(&'static str, Duration, Arc<dyn TokenCredential>)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chosen: Option<usize>,
    failed: Option<(Instant, String)>,
}

impl Tokens {
    /// The chain that the environment asks for. Asks for no token yet.
    pub fn new(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConnectError> {
        // Its requests go the same way as all others.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let text = |name: &str| environment(name).filter(|text| !text.is_empty());
        let client = text("AZURE_CLIENT_ID");
        let managed = || {
            let user_assigned_id = client.clone().map(UserAssignedId::ClientId);
            ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                user_assigned_id,
                ..Default::default()
            }))
        };
        let mut sources: Vec<(_, _, Arc<dyn TokenCredential>)> = Vec::new();
        let secret = text("AZURE_TENANT_ID").zip(text("AZURE_CLIENT_SECRET"));
        if let (Some((tenant, secret)), Some(client)) = (secret, &client) {
            let secret = azure_core::credentials::Secret::new(secret);
            let credential = ClientSecretCredential::new(&tenant, client.clone(), secret, None);
            sources.push(("client secret", TOKEN_TIMEOUT, credential.map_err(bad)?));
        } else if text("AZURE_FEDERATED_TOKEN_FILE").is_some() {
            let credential = WorkloadIdentityCredential::new(None).map_err(bad)?;
            sources.push(("workload identity", TOKEN_TIMEOUT, credential));
        } else if text("IDENTITY_ENDPOINT").is_some() {
            let credential = managed().map_err(bad)?;
            sources.push(("managed identity", TOKEN_TIMEOUT, credential));
        } else {
            let credential = managed().map_err(bad)?;
            sources.push(("managed identity", MANAGED_TIMEOUT, credential));
            let credential = DeveloperToolsCredential::new(None).map_err(bad)?;
            sources.push(("developer tools", TOKEN_TIMEOUT, credential));
        }
        Ok(Self {
            sources,
            state: Mutex::default(),
        })
    }

    /// The `Authorization` header's value, or why there is none.
    pub async fn header(&self) -> Result<Secret, String> {
        // One asks, the others wait for its answer; the libraries keep tokens
        // and renew them before they run out.
        let mut state = self.state.lock().await;
        if let Some((at, why)) = &state.failed
            && at.elapsed() < FAILED_FOR
        {
            return Err(why.clone());
        }
        let chosen = state.chosen;
        let mut why = Vec::new();
        for (place, (name, timeout, credential)) in self.sources.iter().enumerate() {
            if chosen.is_some_and(|chosen| chosen != place) {
                continue;
            }
            let asked = credential.get_token(&[SCOPE], None);
            match tokio::time::timeout(*timeout, asked).await {
                Ok(Ok(token)) => {
                    (state.chosen, state.failed) = (Some(place), None);
                    let token = token.token.secret();
                    return Ok(Secret::new(format!("Bearer {token}")));
                }
                Ok(Err(error)) => why.push(format!("{name}: {error}")),
                Err(_) => why.push(format!("{name}: no answer within {timeout:?}")),
            }
        }
        let why: String = why.join("; ").chars().take(WHY_CHARS_MAX).collect();
        state.failed = Some((Instant::now(), why.clone()));
        Err(why)
    }
}

fn bad(error: azure_core::Error) -> ConnectError {
    ConnectError::Entra(error.to_string())
}
