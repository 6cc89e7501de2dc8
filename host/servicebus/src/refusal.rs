//! What an answer of the REST interface that is no success means. Errors say
//! what a caller must decide by: whether the effect may have happened, and
//! whether a retry helps.

use std::time::Duration;

use orchestrator_queue::SendError;

/// How much of a refusal's text is told.
const DETAIL_CHARS_MAX: usize = 300;

/// Why a call did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No answer, or one that is cut off. The effect may have happened; a retry may help.
    #[error("Service Bus does not answer: {0}")]
    Unreachable(String),
    /// The service is busy or failed inside. A retry helps, after the time it names.
    #[error("Service Bus is busy ({status}): {detail}")]
    Busy {
        /// The status.
        status: u16,
        /// What it said.
        detail: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// There is no credential to send: nothing was asked. A retry may help.
    #[error("no token for Service Bus from Microsoft Entra ID: {0}")]
    NoToken(String),
    /// The credential is refused. A retry does not help until it is mended.
    #[error("Service Bus refuses the credential ({status}): {detail}")]
    Unauthorized {
        /// The status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// The queue does not exist, or (of a settlement) the lock is lost.
    #[error("Service Bus knows no such entity or lock ({status}): {detail}")]
    NotFound {
        /// The status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// The queue is full.
    #[error("Service Bus refuses for quota ({status}): {detail}")]
    Quota {
        /// The status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// The request is wrong. A retry does not help.
    #[error("Service Bus refuses the request ({status}): {detail}")]
    Refused {
        /// The status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// The answer is not one of Service Bus.
    #[error("the answer is not one of Service Bus: {0}")]
    Protocol(String),
}

impl ApiError {
    /// What an answer with this status means; `retry_after` is its header.
    pub fn of(status: u16, retry_after: Option<&str>, body: &[u8]) -> Self {
        let detail = detail(body);
        match status {
            401 => Self::Unauthorized { status, detail },
            403 if detail.contains("claim") || detail.contains("Token") => {
                Self::Unauthorized { status, detail }
            }
            // Documented for a message that is too large, too.
            403 if detail.contains("exceeds the limit") => Self::Refused { status, detail },
            403 => Self::Quota { status, detail },
            404 | 410 => Self::NotFound { status, detail },
            408 | 429 | 500..=599 => Self::Busy {
                status,
                detail,
                retry_after: retry_after
                    .and_then(|value| value.parse().ok())
                    .map(Duration::from_secs),
            },
            400 | 409 | 413 => Self::Refused { status, detail },
            // Something else listens there: the request may be fine.
            _ => Self::Protocol(format!("{status}: {detail}")),
        }
    }

    /// How long to wait before the same request may help, with `usual` where
    /// the service names no time; none if a retry cannot help.
    pub fn pause(&self, usual: Duration) -> Option<Duration> {
        match self {
            Self::Unreachable(_) => Some(usual),
            // However soon it says: never without a pause.
            Self::Busy { retry_after, .. } => {
                Some(retry_after.map_or(usual, |after| after.max(usual)))
            }
            _ => None,
        }
    }

    /// True if one message of a batch can be what is wrong with all of it.
    pub fn spoils_batch(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Quota { .. })
    }

    /// What it is to who sent to this queue.
    pub fn of_send(self, queue: &str) -> SendError {
        match self {
            Self::Refused { .. } => SendError::Invalid(self.to_string()),
            Self::Quota { .. } => SendError::Full {
                queue: queue.to_owned(),
                held_bytes: 0,
                limit_bytes: 0,
            },
            other => SendError::Unavailable(other.to_string()),
        }
    }
}

/// The words between `<Detail>` and its end, or the beginning of whatever it is.
fn detail(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let inner = text
        .split_once("<Detail>")
        .and_then(|(_, rest)| rest.split_once("</Detail>"))
        .map_or(text.as_ref(), |(inner, _)| inner);
    inner.chars().take(DETAIL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_millis(100);

    fn of(status: u16, retry_after: Option<&str>, detail: &str) -> ApiError {
        let body = format!("<Error><Code>{status}</Code><Detail>{detail}</Detail></Error>");
        ApiError::of(status, retry_after, body.as_bytes())
    }

    #[test]
    fn each_refusal_says_to_its_sender_whether_a_retry_helps() {
        for (status, detail) in [
            (400, "no"),
            (409, "no"),
            (413, "too large"),
            (403, "the message size exceeds the limit"),
        ] {
            let error = of(status, None, detail);
            assert!(error.spoils_batch() && error.pause(USUAL).is_none());
            assert!(matches!(error.of_send("q"), SendError::Invalid(_)));
        }
        let full = of(403, None, "the quota is spent");
        assert!(full.spoils_batch() && full.pause(USUAL).is_none());
        assert!(matches!(full.of_send("q"), SendError::Full { queue, .. } if queue == "q"));
        for (status, detail) in [
            (401, "40103"),
            (403, "Send claims required"),
            (404, "no"),
            (410, "no"),
            (302, "elsewhere"),
            (405, "not here"),
        ] {
            let error = of(status, None, detail);
            assert!(
                !error.spoils_batch() && error.pause(USUAL).is_none(),
                "{error}"
            );
            assert!(matches!(error.of_send("q"), SendError::Unavailable(_)));
        }
        let at_once = of(429, Some("0"), "busy");
        assert_eq!(at_once.pause(USUAL), Some(USUAL));
        for status in [408, 429, 500, 503] {
            let error = of(status, None, "busy");
            assert_eq!(error.pause(USUAL), Some(USUAL));
            assert_eq!(
                of(status, Some("2"), "busy").pause(USUAL),
                Some(Duration::from_secs(2))
            );
            assert!(
                matches!(error.of_send("q"), SendError::Unavailable(why) if why.contains("busy"))
            );
        }
    }
}
