//! Text that must not reach a log, an error or a page.

use std::fmt;

/// What a secret prints instead of itself.
const MASK: &str = "***";

/// A key, a signature or a token. It prints as `***`; only [`Secret::expose`]
/// gives the text, so every use of it can be found by that name.
///
/// `==` takes a time that depends on the texts: check signatures with
/// [`crate::sas::Verifier`] instead.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides the text. Any text is allowed, the empty one too.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the wire and for signing, not for people.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_stars() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?} {secret:#?}"), "*** *** ***");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(secret, secret.clone());
    }
}
