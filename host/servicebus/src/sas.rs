//! Shared access signatures: the tokens that Service Bus takes as `Authorization`.
//!
//! What is signed is the encoded resource exactly as it stands in `sr`, whose
//! case and encoding are the client's choice: a verifier must use that text
//! and never encode the resource again.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

use crate::secret::Secret;

/// Longest `Authorization` header that is looked at, in bytes. The longest
/// part is the encoded resource, some 1 kB for the longest entity path.
pub const AUTHORIZATION_BYTES_MAX: usize = 8 * 1024;

/// How long a signature we make is good for: short, so that one that leaks is
/// soon worthless, and long enough to be made rarely.
const SAS_LIFETIME: Duration = Duration::from_secs(20 * 60);
/// A signature is renewed when it has less time left than this: longer than a
/// long poll, and than clocks may differ.
const SAS_RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);

/// First word of the header.
const SCHEME: &str = "SharedAccessSignature";
/// What is encoded: all but the characters that RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Signs access to a resource and everything under it; the result is the
/// whole `Authorization` header.
///
/// `resource` is not encoded, for example `https://ns.servicebus.windows.net/queue`;
/// the signature runs out at `expires_at_unix_seconds`.
pub fn sign(resource: &str, key_name: &str, key: &Secret, expires_at_unix_seconds: u64) -> String {
    let resource = utf8_percent_encode(resource, RESERVED).to_string();
    let expiry = expires_at_unix_seconds.to_string();
    let signature = BASE64.encode(mac(key, &resource, &expiry).finalize().into_bytes());
    format!(
        "{SCHEME} sr={resource}&sig={}&se={expiry}&skn={}",
        utf8_percent_encode(&signature, RESERVED),
        utf8_percent_encode(key_name, RESERVED),
    )
}

/// The signature's computation over the texts as they stand in the token.
fn mac(key: &Secret, encoded_resource: &str, expiry: &str) -> Hmac<Sha256> {
    // The key is the text itself; that it looks like base64 means nothing.
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(encoded_resource.as_bytes());
    mac.update(b"\n");
    mac.update(expiry.as_bytes());
    mac
}

/// Signs requests to one namespace with one key, anew only when it must.
pub struct Signer {
    resource: String,
    key_name: String,
    key: Secret,
    /// The header made last, and when it runs out, in Unix seconds.
    made: Mutex<Option<(Secret, u64)>>,
}

impl Signer {
    /// Signs access to `resource` and everything under it; see [`sign`].
    pub fn new(resource: String, key_name: &str, key: &Secret) -> Self {
        Self {
            resource,
            key_name: key_name.to_owned(),
            key: key.clone(),
            made: Mutex::new(None),
        }
    }

    /// The `Authorization` header: the one made last while it is good for a while.
    pub fn header(&self, now: SystemTime) -> Secret {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((header, expires_at)) = &*made
            && expires_at.saturating_sub(SAS_RENEW_BEFORE.as_secs()) > now
        {
            return header.clone();
        }
        let expires_at = now + SAS_LIFETIME.as_secs();
        let header = sign(&self.resource, &self.key_name, &self.key, expires_at);
        let header = Secret::new(header);
        *made = Some((header.clone(), expires_at));
        header
    }
}

/// A named key and what it allows. Two rules may share a name: that is how
/// one key is replaced by another without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name of the key: the token's `skn`, compared exactly.
    pub name: String,
    /// The key, used as the text it is.
    pub key: Secret,
    /// What its holder may do.
    pub rights: Rights,
}

/// What the holder of a key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Receive and settle messages.
    pub listen: bool,
    /// Send messages.
    pub send: bool,
    /// Create, read, change and delete entities. Includes the other two, as in the service.
    pub manage: bool,
}

impl Rights {
    fn allow(self, claim: Claim) -> bool {
        self.manage
            || match claim {
                Claim::Listen => self.listen,
                Claim::Send => self.send,
                Claim::Manage => false,
            }
    }
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// To receive or settle.
    Listen,
    /// To send.
    Send,
    /// To create, read, change or delete an entity.
    Manage,
}

impl Claim {
    /// As the service names it to a caller that lacks it.
    fn words(self) -> &'static str {
        match self {
            Self::Listen => "Listen",
            Self::Send => "Send",
            Self::Manage => "Manage,EntityRead",
        }
    }
}

/// Why a request is not let in; all of them are a 401. The words are the
/// service's where they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SasError {
    /// There is no `Authorization` header.
    #[error(
        "MissingToken: the request has no `Authorization` header; send a SharedAccessSignature"
    )]
    Missing,
    /// The header is no shared access signature, or is too long.
    #[error(
        "MalformedToken: the `Authorization` header must be `SharedAccessSignature sr=..&sig=..&se=..&skn=..`, each once, of at most {AUTHORIZATION_BYTES_MAX} bytes"
    )]
    Malformed,
    /// No rule has the name in `skn`.
    #[error(
        "40103: Invalid authorization token signature: `skn` names a key that does not exist; use the name of a configured key"
    )]
    UnknownKey,
    /// Signed with another key, or changed afterwards.
    #[error("40103: Invalid authorization token signature; sign with the key that `skn` names")]
    BadSignature,
    /// `se` is not in the future.
    #[error("ExpiredToken: The token is expired; sign a new one and check the clock")]
    Expired,
    /// Signed for another resource.
    #[error(
        "InvalidAudience: `sr` does not cover the requested path; sign for the entity or the namespace"
    )]
    OutOfScope,
    /// The key does not allow the request.
    #[error("{} claims required for this operation.", .0.words())]
    MissingClaim(Claim),
}

/// Checks the `Authorization` header of requests.
#[derive(Clone, Debug)]
pub struct Verifier {
    rules: Vec<Rule>,
    check_scope: bool,
}

impl Verifier {
    /// Lets in what is signed with the key of one of `rules`. Without
    /// `check_scope` the resource that a token is for is not compared with the
    /// request: some clients sign odd ones when pointed at a local server.
    pub fn new(rules: Vec<Rule>, check_scope: bool) -> Self {
        Self { rules, check_scope }
    }

    /// Checks one request. `path` is the request's path as sent, from its
    /// first `/`; a query in it is not looked at.
    pub fn verify(
        &self,
        authorization: Option<&str>,
        path: &str,
        claim: Claim,
        now_unix_seconds: u64,
    ) -> Result<(), SasError> {
        let token = Token::parse(authorization.ok_or(SasError::Missing)?)?;
        let mut error = SasError::UnknownKey;
        let mut rights = None;
        for rule in self.rules.iter().filter(|rule| rule.name == token.key_name) {
            error = SasError::BadSignature;
            // Compares in constant time.
            let outcome =
                mac(&rule.key, token.resource, token.expiry).verify_slice(&token.signature);
            if outcome.is_ok() {
                rights = Some(rule.rights);
                break;
            }
        }
        // Nothing in the token counts before its signature is known to be good.
        let rights = rights.ok_or(error)?;
        if token.expires_at <= now_unix_seconds {
            return Err(SasError::Expired);
        }
        if self.check_scope && !covers(token.resource, path) {
            return Err(SasError::OutOfScope);
        }
        if !rights.allow(claim) {
            return Err(SasError::MissingClaim(claim));
        }
        Ok(())
    }
}

/// A token's parameters.
struct Token<'a> {
    /// `sr` as it stands.
    resource: &'a str,
    /// `se` as it stands.
    expiry: &'a str,
    /// `se` in Unix seconds.
    expires_at: u64,
    /// `sig`, decoded.
    signature: Vec<u8>,
    /// `skn`, decoded.
    key_name: Cow<'a, str>,
}

impl<'a> Token<'a> {
    fn parse(header: &'a str) -> Result<Self, SasError> {
        if header.len() > AUTHORIZATION_BYTES_MAX {
            return Err(SasError::Malformed);
        }
        let (scheme, parameters) = header.trim().split_once(' ').ok_or(SasError::Malformed)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(SasError::Malformed);
        }
        let [mut resource, mut signature, mut expiry, mut key_name] = [None; 4];
        for parameter in parameters.trim_start().split('&') {
            let (name, value) = parameter.split_once('=').ok_or(SasError::Malformed)?;
            let slot = match name.to_ascii_lowercase().as_str() {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut key_name,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(SasError::Malformed);
            }
        }
        let (Some(resource), Some(signature), Some(expiry), Some(key_name)) =
            (resource, signature, expiry, key_name)
        else {
            return Err(SasError::Malformed);
        };
        // A `+` stays one: in base64 it is a digit, and clients encode blanks as `%20`.
        let signature: Vec<u8> = percent_decode_str(signature).collect();
        Ok(Self {
            resource,
            expiry,
            expires_at: expiry.parse().map_err(|_| SasError::Malformed)?,
            signature: BASE64.decode(signature).map_err(|_| SasError::Malformed)?,
            key_name: percent_decode_str(key_name)
                .decode_utf8()
                .map_err(|_| SasError::Malformed)?,
        })
    }
}

/// Whether the resource of a token is the requested path or above it.
fn covers(encoded_resource: &str, path: &str) -> bool {
    let Ok(resource) = percent_decode_str(encoded_resource).decode_utf8() else {
        return false;
    };
    let resource = without_query(&resource);
    // Not for a URI parser: one client doubles the port, `http://127.0.0.1:9231:80/orders`.
    let after_scheme = match resource.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest,
        _ => resource,
    };
    let scope = after_scheme
        .split_once('/')
        .map_or("", |(_authority, path)| path);
    let (Some(scope), Some(path)) = (segments(scope), segments(without_query(path))) else {
        return false;
    };
    path.starts_with(&scope)
}

fn without_query(text: &str) -> &str {
    text.split(['?', '#']).next().unwrap_or(text)
}

/// A path's segments, decoded, in lower case, without empty ones. `None` for
/// a path with `.` or `..`, which might be resolved to another one later.
fn segments(path: &str) -> Option<Vec<String>> {
    let path = percent_decode_str(path).decode_utf8().ok()?;
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| match segment {
            "." | ".." => None,
            segment => Some(segment.to_ascii_lowercase()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_767_225_599;
    const EXPIRY: u64 = 1_767_225_600;
    const LOWER: &str = "sr=https%3a%2f%2fmyns.servicebus.windows.net%2forders";
    const LOWER_SIGNATURE: &str = "sig=vusbtAPoE1N0Y6W%2b6pvEw74JGUVwPX%2bMxiYz%2bIFq2qg%3d";
    const UPPER: &str = "sr=https%3A%2F%2Fmyns.servicebus.windows.net%2Forders";
    const UPPER_SIGNATURE: &str = "sig=nQa%2Bt3%2BNikBWpP3G8uNcLwekYRkdmEs1wikhubs5ZpI%3D";

    fn key() -> Secret {
        Secret::new("SAS_KEY_VALUE")
    }

    fn rule(name: &str, listen: bool, send: bool, manage: bool) -> Rule {
        Rule {
            name: name.into(),
            key: key(),
            rights: Rights {
                listen,
                send,
                manage,
            },
        }
    }

    fn verifier(check_scope: bool) -> Verifier {
        Verifier::new(vec![rule("root", false, false, true)], check_scope)
    }

    fn verify(header: &str) -> Result<(), SasError> {
        verifier(true).verify(Some(header), "/orders/messages", Claim::Send, NOW)
    }

    #[test]
    fn a_signature_is_used_until_it_is_nearly_over() {
        let signer = Signer::new("https://ns".to_owned(), "k", &key());
        let at = |seconds| signer.header(UNIX_EPOCH + Duration::from_secs(seconds));
        let first = at(NOW);
        let renew = NOW + (SAS_LIFETIME - SAS_RENEW_BEFORE).as_secs();
        assert_eq!(at(renew - 1), first);
        let second = at(renew);
        assert_ne!(second, first);
        assert_eq!(at(renew + 1), second);
    }

    fn header(parameters: &[&str]) -> String {
        format!("SharedAccessSignature {}", parameters.join("&"))
    }

    fn scope(resource: &str, path: &str) -> Result<(), SasError> {
        let token = sign(resource, "root", &key(), EXPIRY);
        verifier(true).verify(Some(&token), path, Claim::Listen, NOW)
    }

    #[test]
    fn signs_the_known_vector() {
        let token = sign(
            "https://myns.servicebus.windows.net/orders",
            "root",
            &key(),
            EXPIRY,
        );
        assert_eq!(
            token,
            header(&[UPPER, UPPER_SIGNATURE, "se=1767225600", "skn=root"])
        );
    }

    #[test]
    fn verifies_both_vectors_in_any_order() {
        for (resource, signature) in [(LOWER, LOWER_SIGNATURE), (UPPER, UPPER_SIGNATURE)] {
            let (expiry, name) = ("se=1767225600", "skn=root");
            assert_eq!(
                verify(&header(&[resource, signature, expiry, name])),
                Ok(())
            );
            assert_eq!(
                verify(&header(&[signature, expiry, name, resource])),
                Ok(())
            );
            assert_eq!(
                verify(&header(&[name, "x=y", resource, expiry, signature])),
                Ok(())
            );
        }
        // The text in `sr` is what is signed: the same resource in the other case is another text.
        assert_eq!(
            verify(&header(&[
                LOWER,
                UPPER_SIGNATURE,
                "se=1767225600",
                "skn=root"
            ])),
            Err(SasError::BadSignature)
        );
    }

    #[test]
    fn takes_a_signature_that_is_not_encoded() {
        let raw = "sig=vusbtAPoE1N0Y6W+6pvEw74JGUVwPX+MxiYz+IFq2qg=";
        assert_eq!(
            verify(&header(&[LOWER, raw, "se=1767225600", "skn=root"])),
            Ok(())
        );
    }

    #[test]
    fn tells_what_is_wrong_with_a_header() {
        let (expiry, name) = ("se=1767225600", "skn=root");
        assert_eq!(
            verifier(true).verify(None, "/orders", Claim::Send, NOW),
            Err(SasError::Missing)
        );
        let padding = format!("x={}", "x".repeat(AUTHORIZATION_BYTES_MAX));
        for malformed in [
            String::new(),
            "SharedAccessSignature".into(),
            "SharedAccessSignature ".into(),
            "Bearer x.y.z".into(),
            header(&[LOWER, LOWER_SIGNATURE, expiry]),
            header(&[LOWER, LOWER_SIGNATURE, name]),
            header(&[LOWER, expiry, name]),
            header(&[LOWER_SIGNATURE, expiry, name]),
            header(&[LOWER, LOWER, LOWER_SIGNATURE, expiry, name]),
            header(&[LOWER, LOWER_SIGNATURE, expiry, name, "x"]),
            header(&[LOWER, LOWER_SIGNATURE, "se=soon", name]),
            header(&[LOWER, "sig=***", expiry, name]),
            header(&[LOWER, LOWER_SIGNATURE, expiry, "skn=%ff"]),
            header(&[LOWER, LOWER_SIGNATURE, expiry, name, &padding]),
        ] {
            assert_eq!(verify(&malformed), Err(SasError::Malformed), "{malformed}");
        }
        assert_eq!(
            verify(&header(&[LOWER, LOWER_SIGNATURE, expiry, "skn=other"])),
            Err(SasError::UnknownKey)
        );
    }

    #[test]
    fn tampering_is_found() {
        let (expiry, name) = ("se=1767225600", "skn=root");
        for tampered in [
            [LOWER, LOWER_SIGNATURE, "se=1767225601", name],
            [LOWER, LOWER_SIGNATURE, "se=01767225600", name],
            [LOWER, UPPER_SIGNATURE, expiry, name],
            [LOWER, "sig=", expiry, name],
            [LOWER, "sig=vusb", expiry, name],
            [
                "sr=https%3a%2f%2fmyns.servicebus.windows.net",
                LOWER_SIGNATURE,
                expiry,
                name,
            ],
        ] {
            assert_eq!(verify(&header(&tampered)), Err(SasError::BadSignature));
        }
        let other = sign("https://ns/orders", "root", &Secret::new("other"), EXPIRY);
        assert_eq!(verify(&other), Err(SasError::BadSignature));
        // An old token with a bad signature is bad, not old.
        assert_eq!(
            verifier(true).verify(Some(&other), "/orders", Claim::Send, u64::MAX),
            Err(SasError::BadSignature)
        );
    }

    #[test]
    fn runs_out_at_its_second() {
        let token = sign("https://ns/orders", "root", &key(), EXPIRY);
        let at = |now| verifier(true).verify(Some(&token), "/orders", Claim::Send, now);
        assert_eq!(at(EXPIRY - 1), Ok(()));
        assert_eq!(at(EXPIRY), Err(SasError::Expired));
        assert_eq!(at(EXPIRY + 1), Err(SasError::Expired));
    }

    #[test]
    fn two_keys_may_share_a_name() {
        let mut other = rule("root", false, true, false);
        other.key = Secret::new("next");
        let verifier = Verifier::new(vec![rule("root", true, false, false), other], true);
        let check = |key: &Secret, claim| {
            let token = sign("https://ns", "root", key, EXPIRY);
            verifier.verify(Some(&token), "/orders", claim, NOW)
        };
        assert_eq!(check(&key(), Claim::Listen), Ok(()));
        assert_eq!(check(&Secret::new("next"), Claim::Send), Ok(()));
        assert_eq!(
            check(&key(), Claim::Send),
            Err(SasError::MissingClaim(Claim::Send))
        );
        assert_eq!(
            check(&Secret::new("past"), Claim::Send),
            Err(SasError::BadSignature)
        );
    }

    #[test]
    fn a_key_name_is_decoded() {
        let verifier = Verifier::new(vec![rule("my köy&=", true, true, false)], true);
        let token = sign("https://ns/q", "my köy&=", &key(), EXPIRY);
        assert!(token.is_ascii());
        assert_eq!(
            verifier.verify(Some(&token), "/q", Claim::Send, NOW),
            Ok(())
        );
    }

    #[test]
    fn a_scope_covers_what_is_under_it() {
        for (resource, path) in [
            ("https://ns", "/orders/messages"),
            ("https://ns/", "/orders/messages"),
            ("sb://ns/", "/"),
            ("http://ns/orders", "/orders"),
            ("https://ns/orders/", "/orders/messages/head"),
            ("https://NS/ORDERS", "/orders/Messages/1/2"),
            ("https://ns/in/orders", "/in/orders/messages"),
            ("http://127.0.0.1:9231:80/orders", "/orders/messages"),
            (
                "https://ns/orders/messages/head?timeout=5&api-version=2016-07",
                "/orders/messages/head?timeout=5&api-version=2016-07",
            ),
            ("https://ns?x=://y/z", "/orders"),
            ("ns/orders", "/orders/messages"),
            ("/orders", "/orders/messages"),
            (
                "https://ns/orders/$DeadLetterQueue",
                "/orders/%24deadletterqueue/messages/head",
            ),
            (
                "https://ns/orders/%24DeadLetterQueue",
                "/orders/$DeadLetterQueue",
            ),
        ] {
            assert_eq!(scope(resource, path), Ok(()), "{resource} {path}");
        }
    }

    #[test]
    fn a_scope_covers_nothing_else() {
        for (resource, path) in [
            ("https://ns/orders", "/orders2/messages"),
            ("https://ns/orders2", "/orders/messages"),
            ("https://ns/orders", "/"),
            ("https://ns/orders", "/other/orders"),
            ("https://ns/orders", "/orders/../other/messages"),
            ("https://ns/orders", "/orders/%2e%2E/other/messages"),
            ("https://ns/orders/messages", "/orders"),
            ("https://ns/orders", "/%ff"),
        ] {
            assert_eq!(
                scope(resource, path),
                Err(SasError::OutOfScope),
                "{resource} {path}"
            );
            let token = sign(resource, "root", &key(), EXPIRY);
            assert_eq!(
                verifier(false).verify(Some(&token), path, Claim::Listen, NOW),
                Ok(())
            );
        }
    }

    #[test]
    fn every_claim_needs_its_right() {
        let verifier = Verifier::new(
            vec![
                rule("none", false, false, false),
                rule("listen", true, false, false),
                rule("send", false, true, false),
                rule("manage", false, false, true),
            ],
            true,
        );
        for (name, allowed) in [
            ("none", vec![]),
            ("listen", vec![Claim::Listen]),
            ("send", vec![Claim::Send]),
            ("manage", vec![Claim::Listen, Claim::Send, Claim::Manage]),
        ] {
            let token = sign("https://ns", name, &key(), EXPIRY);
            for claim in [Claim::Listen, Claim::Send, Claim::Manage] {
                let expected = if allowed.contains(&claim) {
                    Ok(())
                } else {
                    Err(SasError::MissingClaim(claim))
                };
                assert_eq!(
                    verifier.verify(Some(&token), "/orders", claim, NOW),
                    expected,
                    "{name} {claim:?}"
                );
            }
        }
    }

    #[test]
    fn errors_use_the_words_of_the_service() {
        for (error, start) in [
            (SasError::Missing, "MissingToken: "),
            (
                SasError::BadSignature,
                "40103: Invalid authorization token signature",
            ),
            (
                SasError::UnknownKey,
                "40103: Invalid authorization token signature",
            ),
            (SasError::Expired, "ExpiredToken: "),
            (SasError::OutOfScope, "InvalidAudience: "),
            (
                SasError::MissingClaim(Claim::Manage),
                "Manage,EntityRead claims required for this operation.",
            ),
        ] {
            assert!(error.to_string().starts_with(start), "{error}");
        }
        assert!(!format!("{:?}", verifier(true)).contains("SAS_KEY"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_signed_verifies(key in ".*", name in ".*", queue in "[a-zA-Z0-9_-]{1,20}") {
            let key = Secret::new(key);
            let token = sign(&format!("https://ns:1/{queue}"), &name, &key, EXPIRY);
            let rule = Rule { name, key, rights: Rights { send: true, ..Rights::default() } };
            let verifier = Verifier::new(vec![rule], true);
            let path = format!("/{queue}/messages");
            prop_assert_eq!(verifier.verify(Some(&token), &path, Claim::Send, NOW), Ok(()));
        }

        #[test]
        fn no_header_and_no_path_panics(parameters in ".*", resource in ".*", path in ".*") {
            let signed = sign(&resource, "root", &key(), EXPIRY);
            for header in [format!("SharedAccessSignature {parameters}"), signed] {
                let _ = verifier(true).verify(Some(&header), &path, Claim::Send, NOW);
            }
        }
    }
}
