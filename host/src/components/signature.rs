//! Which components are trusted: with `trusted_keys` in `components.toml` in
//! the state directory, only those with a signature by one of these keys.
//!
//! Signatures are those of [minisign](https://jedisct1.github.io/minisign/)
//! (Ed25519, detached): `minisign -Sm worker.wasm` writes `worker.wasm.minisig`,
//! which is read beside the file.

use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};
use serde::Deserialize;

const FILE: &str = "components.toml";
/// Longest signature file, in bytes: four lines.
pub const SIGNATURE_BYTES_MAX: usize = 4 * 1024;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct KeysError {
    path: String,
    why: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    trusted_keys: Option<Vec<String>>,
}

/// The keys; none configured: every component is trusted.
#[derive(Clone)]
pub struct TrustedKeys(Option<Vec<PublicKey>>);

impl TrustedKeys {
    /// Reads them.
    pub fn read(state_dir: &Path) -> Result<Self, KeysError> {
        let path = state_dir.join(FILE);
        let failed = |why: String| KeysError {
            path: path.display().to_string(),
            why,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self(None)),
            Err(error) => return Err(failed(error.to_string())),
        };
        let file: File = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let key = |text: String| {
            PublicKey::from_base64(text.trim()).map_err(|error| {
                failed(format!(
                    "`{text}` in `trusted_keys` is not a public key of minisign ({error}): give the second line of its `.pub` file"
                ))
            })
        };
        let keys = file
            .trusted_keys
            .map(|keys| keys.into_iter().map(key).collect());
        keys.transpose().map(Self)
    }

    /// Refuses bytes that no trusted key signed, with a sentence.
    pub fn check(&self, bytes: &[u8], signature: Option<&str>) -> Result<(), String> {
        let Some(keys) = &self.0 else {
            return Ok(());
        };
        let Some(signature) = signature else {
            return Err(format!(
                "it has no signature, and `trusted_keys` in {FILE} wants one: sign it with `minisign -S`"
            ));
        };
        let signature = Signature::decode(signature)
            .map_err(|error| format!("its signature is not one of minisign: {error}"))?;
        let is_signed = keys
            .iter()
            .any(|key| key.verify(bytes, &signature, false).is_ok());
        if is_signed {
            Ok(())
        } else {
            Err(format!(
                "its signature is by none of the `trusted_keys` in {FILE}, or of other bytes"
            ))
        }
    }
}

/// Where the signature of a component's file lies.
pub fn path(component: &Path) -> PathBuf {
    let mut name = component.as_os_str().to_owned();
    name.push(".minisig");
    PathBuf::from(name)
}

/// The signature beside a component's file, if there is one.
pub fn beside(component: &Path) -> Option<String> {
    let path = path(component);
    let size = std::fs::metadata(&path).ok()?.len();
    (size <= SIGNATURE_BYTES_MAX as u64)
        .then(|| std::fs::read_to_string(&path).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<TrustedKeys, KeysError> {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE), text).expect("a disk");
        TrustedKeys::read(dir.path())
    }

    #[test]
    fn only_what_a_trusted_key_signed_is_let_in() {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("random bytes");
        let sign = |bytes: &[u8]| {
            minisign::sign(None, &pair.sk, bytes, None, None)
                .expect("a signature")
                .into_string()
        };
        let trusted = format!("trusted_keys = [\"{}\"]", pair.pk.to_base64());
        let keys_of = keys(&trusted).expect("sound");
        assert_eq!(keys_of.check(b"bytes", Some(&sign(b"bytes"))), Ok(()));
        assert!(keys_of.check(b"other", Some(&sign(b"bytes"))).is_err());
        assert!(keys_of.check(b"bytes", Some("nonsense")).is_err());
        assert!(
            keys_of
                .check(b"bytes", None)
                .is_err_and(|why| why.contains("no signature"))
        );
        // Nobody is trusted.
        let none = keys("trusted_keys = []").expect("sound");
        assert!(none.check(b"bytes", Some(&sign(b"bytes"))).is_err());
    }

    #[test]
    fn without_a_file_all_are_trusted_and_a_bad_file_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = TrustedKeys::read(dir.path()).expect("there is none");
        assert_eq!(all.check(b"bytes", None), Ok(()));
        for bad in ["trusted_keys = [\"x\"]", "keys = []", "trusted_keys ="] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}
