//! Where messages go, and what they are let in with.

use std::time::SystemTime;

use orchestrator_servicebus::connection_string::{
    Auth, ConnectionString, ConnectionStringError, Endpoint,
};
use orchestrator_servicebus::sas::Signer;
use orchestrator_servicebus::secret::Secret;

/// Variable with the connection string.
pub const CONNECTION_STRING: &str = "servicebus_connection_string";
/// Variable with the address of the development listener.
pub const ENDPOINT: &str = "servicebus_endpoint";
/// Variable with the queue of messages that name none.
pub const QUEUE: &str = "servicebus_queue";

/// Where the development listener is unless told otherwise.
const DEVELOPMENT_ENDPOINT: &str = "http://127.0.0.1:5300";
/// The key of Microsoft's emulator, which is no secret.
const DEVELOPMENT_KEY: &str =
    "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE";

/// Why the variables say nothing to send with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// The connection string cannot be read.
    ConnectionString(ConnectionStringError),
    /// The address of the development listener cannot be read.
    Endpoint(ConnectionStringError),
    /// There is nothing to sign with.
    NoKey,
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ConnectionString(error) => write!(f, "variable `{CONNECTION_STRING}`: {error}"),
            Self::Endpoint(error) => write!(f, "variable `{ENDPOINT}`: {error}"),
            Self::NoKey => write!(
                f,
                "variable `{CONNECTION_STRING}` has no key, and a component cannot use Microsoft Entra ID: add `SharedAccessKeyName` and `SharedAccessKey`, or `SharedAccessSignature`"
            ),
        }
    }
}

/// Where messages go, and what they are let in with.
pub struct Settings {
    /// Where the namespace is served.
    pub endpoint: Endpoint,
    /// The queue of messages that name none.
    pub queue: Option<String>,
    credential: Credential,
}

enum Credential {
    Key(Signer),
    Signature(Secret),
}

impl Settings {
    /// Reads the variables; an empty one counts as absent.
    pub fn read(
        connection_string: Option<&str>,
        endpoint: Option<&str>,
        queue: Option<&str>,
    ) -> Result<Self, SettingsError> {
        let connection: ConnectionString = match given(connection_string) {
            Some(text) => text.parse().map_err(SettingsError::ConnectionString)?,
            None => {
                let endpoint = given(endpoint).unwrap_or(DEVELOPMENT_ENDPOINT);
                let text = format!("Endpoint={endpoint};{DEVELOPMENT_KEY}");
                text.parse().map_err(SettingsError::Endpoint)?
            }
        };
        let credential = match &connection.auth {
            Auth::Key { name, key } => {
                Credential::Key(Signer::new(connection.endpoint.origin(), name, key))
            }
            Auth::Signature(signature) => Credential::Signature(signature.clone()),
            Auth::None => return Err(SettingsError::NoKey),
        };
        Ok(Self {
            queue: given(queue).map(str::to_owned).or(connection.entity_path),
            endpoint: connection.endpoint,
            credential,
        })
    }

    /// The `Authorization` header now.
    pub fn authorization(&self, now: SystemTime) -> Secret {
        match &self.credential {
            Credential::Key(signer) => signer.header(now),
            Credential::Signature(signature) => signature.clone(),
        }
    }
}

fn given(variable: Option<&str>) -> Option<&str> {
    variable.map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: &str = "Endpoint=sb://ns.servicebus.windows.net/";

    #[test]
    fn without_a_connection_string_it_is_the_development_listener() {
        for empty in [None, Some(""), Some("  ")] {
            let settings = Settings::read(empty, empty, empty).unwrap();
            assert_eq!(settings.endpoint.origin(), DEVELOPMENT_ENDPOINT);
            assert_eq!(settings.queue, None);
            let header = settings.authorization(SystemTime::UNIX_EPOCH);
            assert!(header.expose().contains("skn=RootManageSharedAccessKey"));
        }
        let there = Settings::read(None, Some("http://localhost:7"), Some("jobs")).unwrap();
        assert_eq!(there.endpoint.origin(), "http://localhost:7");
        assert_eq!(there.queue.as_deref(), Some("jobs"));
    }

    #[test]
    fn a_connection_string_says_where_and_with_what() {
        let text = format!("{NAMESPACE};SharedAccessKeyName=k;SharedAccessKey=s;EntityPath=e");
        let settings = Settings::read(Some(&text), Some("http://localhost:7"), None).unwrap();
        assert_eq!(
            settings.endpoint.origin(),
            "https://ns.servicebus.windows.net"
        );
        assert_eq!(settings.queue.as_deref(), Some("e"));
        let named = Settings::read(Some(&text), None, Some("jobs")).unwrap();
        assert_eq!(named.queue.as_deref(), Some("jobs"));

        let token = "SharedAccessSignature sr=x&sig=y&se=1&skn=z";
        let text = format!("{NAMESPACE};SharedAccessSignature={token}");
        let settings = Settings::read(Some(&text), None, None).unwrap();
        let header = settings.authorization(SystemTime::UNIX_EPOCH);
        assert_eq!(header.expose(), token);
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_variable_and_without_its_value() {
        let told = |connection: &str, endpoint: &str| {
            let read = Settings::read(Some(connection), Some(endpoint), None);
            read.err().unwrap().to_string()
        };
        let no_key = told(NAMESPACE, "");
        assert!(
            no_key.contains("Entra ID") && no_key.contains(CONNECTION_STRING),
            "{no_key}"
        );
        let torn = told("Endpoint=sb://x;SharedAccessKeyName=secret", "");
        assert!(
            torn.contains(CONNECTION_STRING) && !torn.contains("secret"),
            "{torn}"
        );
        let open = told("", "http://example.com");
        assert!(
            open.contains(ENDPOINT) && open.contains("not this machine"),
            "{open}"
        );
    }
}
