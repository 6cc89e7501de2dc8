//! Why a job was not accepted, and its RFC 9457 form.

use serde::Serialize;

use crate::answer::Answer;
use crate::faults::{FAULTS_NAMED_MAX, Fault, Faults};
use crate::request::BODY_BYTES_MAX;

/// When to come back to a full queue, in seconds: workers free room all the
/// time, so soon.
pub const RETRY_AFTER_FULL_SECONDS: u32 = 1;
/// When to come back to an unreachable queue, in seconds: longer than a
/// restart takes, shorter than a person's patience.
pub const RETRY_AFTER_UNAVAILABLE_SECONDS: u32 = 5;
/// Why a request got no 202.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not a POST.
    MethodNotAllowed,
    /// Not JSON by its headers; the text says what they are.
    UnsupportedMediaType(String),
    /// More than [`BODY_BYTES_MAX`].
    TooLarge,
    /// Wrong in itself: every fault that was found.
    Invalid(Faults),
    /// The queue holds all it may hold.
    QueueFull,
    /// The queue could not say that it has the job.
    QueueUnavailable {
        /// Id under which a repetition is safe.
        job_id: String,
        /// What the queue's keeper said.
        reason: String,
    },
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [Fault],
}

impl Problem {
    /// The answer to a request for `instance`, a path.
    pub fn answer(&self, instance: Option<&str>) -> Answer {
        let (status, title) = self.status();
        let document = Document {
            // The status says it all; programs tell faults apart by pointer.
            r#type: "about:blank",
            title,
            status,
            detail: self.detail(),
            instance,
            errors: match self {
                Self::Invalid(faults) => faults.named(),
                _ => &[],
            },
        };
        let mut answer = Answer::json(status, "application/problem+json", &document);
        match self {
            Self::MethodNotAllowed => answer.header("allow", "POST"),
            Self::UnsupportedMediaType(_) => answer.header("accept-post", "application/json"),
            Self::QueueFull => answer.header("retry-after", RETRY_AFTER_FULL_SECONDS.to_string()),
            Self::QueueUnavailable { .. } => {
                answer.header("retry-after", RETRY_AFTER_UNAVAILABLE_SECONDS.to_string());
            }
            Self::TooLarge | Self::Invalid(_) => {}
        }
        answer
    }

    fn status(&self) -> (u16, &'static str) {
        match self {
            Self::Invalid(_) => (400, "Bad Request"),
            Self::MethodNotAllowed => (405, "Method Not Allowed"),
            Self::TooLarge => (413, "Content Too Large"),
            Self::UnsupportedMediaType(_) => (415, "Unsupported Media Type"),
            Self::QueueFull => (429, "Too Many Requests"),
            Self::QueueUnavailable { .. } => (503, "Service Unavailable"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::MethodNotAllowed => "Jobs are sent with POST.".to_owned(),
            Self::UnsupportedMediaType(detail) => detail.clone(),
            Self::TooLarge => format!(
                "The body has more than {BODY_BYTES_MAX} bytes; keep big data elsewhere and send where it is."
            ),
            Self::Invalid(faults) => match faults.count() {
                1 => "The job was not accepted: `errors` names what is wrong with it.".to_owned(),
                found if found > FAULTS_NAMED_MAX => format!(
                    "The job was not accepted: {found} things are wrong with it, and `errors` names the first {FAULTS_NAMED_MAX}."
                ),
                found => format!(
                    "The job was not accepted: {found} things are wrong with it, and `errors` names each."
                ),
            },
            Self::QueueFull => {
                "The queue is full; the job was not accepted, so send it again later.".to_owned()
            }
            Self::QueueUnavailable { job_id, reason } => format!(
                "The queue did not confirm the job ({reason}); send it again with `jobId` `{job_id}`, so that it runs once even if it arrived."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document(problem: &Problem) -> Value {
        serde_json::from_slice(&problem.answer(Some("/api/IngestJob")).body).unwrap()
    }

    #[test]
    fn a_problem_has_every_member_of_the_standard() {
        let mut faults = Faults::default();
        faults.add(&["payload"], "is missing");
        assert_eq!(
            document(&Problem::Invalid(faults)),
            json!({
                "type": "about:blank",
                "title": "Bad Request",
                "status": 400,
                "detail": "The job was not accepted: `errors` names what is wrong with it.",
                "instance": "/api/IngestJob",
                "errors": [{"pointer": "/payload", "detail": "is missing"}],
            })
        );
    }

    #[test]
    fn the_detail_says_how_many_faults_there_are() {
        let mut faults = Faults::default();
        for _ in 0..FAULTS_NAMED_MAX + 7 {
            faults.add(&["x"], "is unknown");
        }
        let document = document(&Problem::Invalid(faults));
        assert_eq!(
            document["errors"].as_array().unwrap().len(),
            FAULTS_NAMED_MAX
        );
        assert!(document["detail"].as_str().unwrap().contains("107 things"));
    }

    #[test]
    fn each_problem_has_its_status_and_header() {
        let unavailable = Problem::QueueUnavailable {
            job_id: "j-1".to_owned(),
            reason: "disk full".to_owned(),
        };
        for (problem, status, header) in [
            (Problem::MethodNotAllowed, 405, Some(("allow", "POST"))),
            (
                Problem::UnsupportedMediaType("no".to_owned()),
                415,
                Some(("accept-post", "application/json")),
            ),
            (Problem::TooLarge, 413, None),
            (Problem::Invalid(Faults::default()), 400, None),
            (Problem::QueueFull, 429, Some(("retry-after", "1"))),
            (unavailable.clone(), 503, Some(("retry-after", "5"))),
        ] {
            let answer = problem.answer(None);
            assert_eq!(answer.status, status);
            let content_type = ("content-type", "application/problem+json".to_owned());
            assert!(answer.headers.contains(&content_type), "{status}");
            if let Some((name, value)) = header {
                let expected = (name, value.to_owned());
                assert!(answer.headers.contains(&expected), "{status}");
            }
            let document: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(document["status"], status);
            assert!(document.get("instance").is_none());
            assert!(document.get("errors").is_none());
        }
        assert!(
            document(&unavailable)["detail"]
                .as_str()
                .unwrap()
                .contains("`j-1`")
        );
    }
}
