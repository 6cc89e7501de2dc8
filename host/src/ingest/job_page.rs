//! `GET /api/jobs/{id}`: what became of a job, for the client that sent it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Response, StatusCode, header};
use orchestrator_queue::{Job, JobState, Output};
use serde::Serialize;
use serde_json::value::RawValue;

use super::problem::{Problem, full};
use super::{Application, Body};
use crate::clock::rfc3339;

/// A result as JSON shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Result {
    /// JSON as it is, text as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    /// Anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_content_type: Option<String>,
}

/// How to show a job's result, if it has one.
pub fn result_of(output: Option<Output>) -> Result {
    let Some(output) = output.filter(|output| !output.body.is_empty()) else {
        return Result {
            result: None,
            result_base64: None,
            result_content_type: None,
        };
    };
    let json = match String::from_utf8(output.body) {
        Ok(text) if is_json(&output.content_type) => match RawValue::from_string(text) {
            Ok(json) => Ok(json),
            Err(error) => Err(error.to_string().into_bytes()),
        },
        Ok(text) => serde_json::value::to_raw_value(&text).map_err(|_| text.into_bytes()),
        Err(error) => Err(error.into_bytes()),
    };
    Result {
        result_base64: json.as_ref().err().map(|bytes| STANDARD.encode(bytes)),
        result: json.ok(),
        result_content_type: Some(output.content_type),
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence.to_ascii_lowercase().ends_with("+json")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    job_id: String,
    state: JobState,
    queue: String,
    job_type: String,
    attempts: u32,
    max_attempts: u32,
    enqueued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(flatten)]
    result: Result,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<LastError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<Reason>,
}

#[derive(Serialize)]
struct LastError {
    attempt: u32,
    outcome: String,
    message: String,
}

#[derive(Serialize)]
struct Reason {
    reason: String,
    description: String,
}

pub async fn answer(application: &Application, method: &Method, id: &str) -> Response<Body> {
    match page(application, method, id).await {
        Ok(page) => page,
        Err(problem) => problem.into_response(),
    }
}

async fn page(
    application: &Application,
    method: &Method,
    id: &str,
) -> std::result::Result<Response<Body>, Problem> {
    if method != Method::GET && method != Method::HEAD {
        let detail = format!("a job's page can only be read, not {method}");
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).allow("GET, HEAD"));
    }
    let id = percent_decoded(id);
    for (queue, attempts_max) in &application.queues {
        let found = queue.job(&id).await.map_err(|error| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).retry_after(1)
        })?;
        if let Some(job) = found {
            return Ok(show(queue.name(), *attempts_max, job, method));
        }
    }
    let is_shared = application
        .queues
        .iter()
        .any(|(queue, _)| queue.engine() == "servicebus");
    let whose = if is_shared {
        "by this host; with several hosts on one queue, another may have accepted or run it"
    } else {
        "here: it was never accepted, or finished too long ago"
    };
    let detail = format!("no job `{id}` is known {whose}");
    Err(Problem::new(StatusCode::NOT_FOUND, detail))
}

fn show(queue: &str, max_attempts: u32, job: Job, method: &Method) -> Response<Body> {
    let last_error = job.attempts.iter().rev().find_map(|attempt| {
        let message = attempt.error.clone()?;
        Some(LastError {
            attempt: attempt.number,
            outcome: attempt.outcome.clone(),
            message,
        })
    });
    let page = Page {
        job_id: job.id,
        state: job.state,
        queue: queue.to_owned(),
        job_type: job.job_type,
        attempts: job.delivery_count,
        max_attempts,
        enqueued_at: rfc3339(job.enqueued_at),
        due_at: job.due_at.map(rfc3339),
        finished_at: job.finished_at.map(rfc3339),
        result: result_of(job.output),
        last_error: last_error.filter(|_| job.state != JobState::Completed),
        dead_letter: job.dead_letter.map(|letter| Reason {
            reason: letter.reason,
            description: letter.description,
        }),
    };
    let json = serde_json::to_vec(&page).unwrap_or_default();
    let mut response = Response::new(full(if method == Method::HEAD {
        Vec::new()
    } else {
        json
    }));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    response
}

/// `%2F` and the like undone. What is not valid stays as it is: no job has it.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = (byte == b'%').then(|| tail.get(..2)).flatten();
        let decoded = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match decoded {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &[u8], content_type: &str) -> String {
        let output = Output {
            body: body.to_vec(),
            content_type: content_type.to_owned(),
        };
        serde_json::to_string(&result_of(Some(output))).expect("JSON")
    }

    #[test]
    fn a_result_is_shown_as_what_it_is() {
        assert_eq!(
            shown(br#"{"a":1.0}"#, "application/json; charset=utf-8"),
            r#"{"result":{"a":1.0},"resultContentType":"application/json; charset=utf-8"}"#
        );
        assert_eq!(
            shown(b"hi", "text/plain"),
            r#"{"result":"hi","resultContentType":"text/plain"}"#
        );
        assert_eq!(
            shown(b"\xff\x00", "image/png"),
            r#"{"resultBase64":"/wA=","resultContentType":"image/png"}"#
        );
        assert_eq!(serde_json::to_string(&result_of(None)).expect("JSON"), "{}");
    }

    #[test]
    fn ids_are_percent_decoded_and_nonsense_is_left_alone() {
        assert_eq!(percent_decoded("a%2Fb%20c"), "a/b c");
        assert_eq!(percent_decoded("100%"), "100%");
        assert_eq!(percent_decoded("%zz"), "%zz");
    }
}
