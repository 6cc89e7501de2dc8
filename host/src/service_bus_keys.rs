//! Who may use the Service Bus listener: the keys in the state directory, and
//! the emulator's well-known one, because the listener is on loopback only.

use std::path::Path;

use orchestrator_servicebus::sas::{Rights, Rule, Verifier};
use orchestrator_servicebus::secret::Secret;
use serde::Deserialize;

/// File of the keys, in the state directory. Absent: only the development key.
const FILE: &str = "servicebus-keys.toml";
/// The development key of Microsoft's Service Bus emulator, known to everyone:
/// <https://learn.microsoft.com/azure/service-bus-messaging/test-locally-with-service-bus-emulator>.
const DEVELOPMENT_NAME: &str = "RootManageSharedAccessKey";
const DEVELOPMENT_KEY: &str = "SAS_KEY_VALUE";

/// The file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the keys in {path}: {why}")]
pub struct KeysError {
    path: String,
    why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Key>,
}

/// One `[[key]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    key: String,
    rights: Vec<Right>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Right {
    Listen,
    Send,
    Manage,
}

/// What requests are checked against.
pub fn verifier(state_dir: &Path) -> Result<Verifier, KeysError> {
    let path = state_dir.join(FILE);
    let failed = |why: String| KeysError {
        path: path.display().to_string(),
        why,
    };
    let mut rules = vec![Rule {
        name: DEVELOPMENT_NAME.to_owned(),
        key: Secret::new(DEVELOPMENT_KEY),
        rights: Rights {
            listen: true,
            send: true,
            manage: true,
        },
    }];
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            // The error's own text shows the line, and so a key.
            let file: File = toml::from_str(&text).map_err(|error| {
                failed(format!(
                    "{}; write `[[key]]` with `name`, `key` and `rights = [\"listen\", \"send\", \"manage\"]`",
                    error.message()
                ))
            })?;
            rules.extend(file.key.into_iter().map(rule));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
    }
    // Clients name the address as they like (another host, a doubled port), so
    // only signature, expiry and rights are checked.
    Ok(Verifier::new(rules, false))
}

fn rule(key: Key) -> Rule {
    let has = |right| key.rights.contains(&right);
    let rights = Rights {
        listen: has(Right::Listen),
        send: has(Right::Send),
        manage: has(Right::Manage),
    };
    Rule {
        name: key.name,
        key: Secret::new(key.key),
        rights,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_is_told_without_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        assert!(verifier(dir.path()).is_ok());
        let file = dir.path().join(FILE);
        std::fs::write(
            &file,
            "[[key]]\nname = \"n\"\nkey = \"s3cret\"\nrights = [\"send\"]",
        )
        .unwrap();
        assert!(verifier(dir.path()).is_ok());
        std::fs::write(
            &file,
            "[[key]]\nname = \"n\"\nkey = \"s3cret\"\nrights = [\"sned\"]",
        )
        .unwrap();
        let Err(error) = verifier(dir.path()) else {
            panic!("accepted")
        };
        let told = error.to_string();
        assert!(
            told.contains(FILE) && told.contains("sned") && !told.contains("s3cret"),
            "{told}"
        );
    }
}
