//! Answers and refusals, in the service's shapes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Frame};
use orchestrator_queue::{SendError, Unavailable};

use crate::atom;

const XML: &str = "application/xml; charset=utf-8";
/// When clients are told to come back to a store that cannot write.
const RETRY_AFTER_SECONDS: u32 = 2;

/// What a request is answered with.
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// An empty answer, of the type that the service gives those.
    pub fn empty(status: StatusCode) -> Self {
        Self::text(status, XML, String::new())
    }

    pub fn text(status: StatusCode, content_type: &'static str, body: String) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self {
            status,
            headers,
            body: body.into(),
        }
    }

    /// A message, with headers of its own.
    pub fn message(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        Self {
            status,
            headers,
            body,
        }
    }

    /// Adds one; what HTTP cannot carry is left out.
    pub fn add_header(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.insert(name, value);
        }
    }

    pub fn no_content() -> Self {
        Self::message(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new())
    }

    pub fn into_response(self) -> Response<Chunked> {
        let mut response = Response::new(Chunked(Full::new(self.body)));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// A body that goes out in chunks, as the service sends them: some clients
/// take every header they do not know, `content-length` too, for a property.
pub struct Chunked(Full<Bytes>);

impl Body for Chunked {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Why a request was refused.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    detail: String,
    retry_after: bool,
    is_lock_lost: bool,
}

impl Refusal {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            retry_after: false,
            is_lock_lost: false,
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            format!("SubCode=40000. {}", detail.into()),
        )
    }

    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    pub fn method_not_allowed(method: &Method) -> Self {
        let detail = format!("SubCode=40500. {method} is no operation on this path.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, detail)
    }

    /// The queue is full, or the message too large.
    pub fn quota(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            format!("SubCode=40300. {}", detail.into()),
        )
    }

    pub fn conflict() -> Self {
        Self::new(StatusCode::CONFLICT, "SubCode=40900. Conflict.")
    }

    /// An entity of the management interface does not exist.
    pub fn not_found(entity: &str) -> Self {
        let detail = format!("SubCode=40400. Not Found. Entity '{entity}' was not found.");
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// The lock is lost: settled before, run out, or never given.
    pub fn lock_lost() -> Self {
        let detail = "The lock supplied is invalid. Either the lock expired, or the message has already been removed from the queue.";
        Self {
            is_lock_lost: true,
            ..Self::new(StatusCode::NOT_FOUND, detail)
        }
    }

    pub fn is_lock_lost(&self) -> bool {
        self.is_lock_lost
    }

    /// A queue of the runtime interface does not exist.
    pub fn gone(entity: &str) -> Self {
        let detail = format!("SubCode=40400. The messaging entity '{entity}' could not be found.");
        Self::new(StatusCode::GONE, detail)
    }

    pub fn into_answer(self) -> Answer {
        let tracking = uuid::Uuid::new_v4();
        let detail = format!("{} TrackingId:{tracking}", self.detail);
        let body = atom::error_body(self.status.as_u16(), &detail);
        let mut answer = Answer::text(self.status, XML, body);
        if self.retry_after {
            answer
                .headers
                .insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        answer
    }
}

impl From<Unavailable> for Refusal {
    fn from(error: Unavailable) -> Self {
        Self {
            retry_after: true,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
    }
}

impl From<SendError> for Refusal {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Invalid(why) => Self::bad_request(why),
            SendError::Full { .. } => Self::quota(error.to_string()),
            SendError::Unavailable(why) => Unavailable(why).into(),
        }
    }
}
