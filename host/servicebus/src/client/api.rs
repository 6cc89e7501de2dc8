//! The calls of the REST interface, one request each.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use orchestrator_queue::Lock;
use tokio::sync::watch;
use uuid::Uuid;

use super::auth::Authorizer;
use super::{ConnectError, Reach};
use crate::atom::{self, AtomError, Counts, QueueDescription};
use crate::broker_properties::BrokerProperties;
use crate::connection_string::ConnectionString;
use crate::properties::{PropertyValue, is_custom};
use crate::refusal::ApiError;
use crate::sending::{SendRequest, path};
use crate::wire::WireMessage;

/// Idle connections kept to the namespace: as many as jobs and polls of a
/// usual host use, so that none pays for a handshake.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Time to connect: a namespace that is there answers within a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for an answer, but for a poll's own wait: the service answers within a
/// second, and a lock of half a minute leaves room for three tries.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// The same for sending, where a client waits, and a try that got lost is repeated.
const SEND_TIMEOUT: Duration = Duration::from_secs(4);
/// Largest answer read, in bytes: the largest message, and room.
const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A message that was received, with what only the receiver knows.
#[derive(Debug)]
pub struct Received {
    pub message: WireMessage,
    pub sequence: u64,
    pub token: Uuid,
    /// How much of the lock is left, by the service's clock.
    pub lock_left: Duration,
    pub delivery_count: u32,
    pub enqueued_at: SystemTime,
}

pub struct Api {
    http: reqwest::Client,
    origin: String,
    authorizer: Authorizer,
    reach: watch::Sender<Reach>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Api {
    pub fn new(connection: &ConnectionString) -> Result<Self, ConnectError> {
        let http = crate::http_client()
            .http1_only()
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // A signature must not follow a redirect to another place.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ConnectError::Http(error.to_string()))?;
        Ok(Self {
            http,
            origin: connection.endpoint.origin(),
            authorizer: Authorizer::new(connection)?,
            reach: watch::Sender::new(Reach::Up),
        })
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.subscribe()
    }

    /// Sends messages, all of them in one request.
    pub async fn send(&self, request: SendRequest) -> Result<(), ApiError> {
        let mut sending = self.request(Method::POST, &request.path);
        for (name, value) in request.headers {
            sending = sending.header(name, value);
        }
        let sending = sending.body(request.body);
        self.call(sending, SEND_TIMEOUT).await.map(|_| ())
    }

    /// Locks one message, waiting for one at the service.
    pub async fn peek_lock(
        &self,
        queue: &str,
        wait: Duration,
    ) -> Result<Option<Received>, ApiError> {
        let seconds = wait.as_secs();
        let request = self.request(
            Method::POST,
            &format!("{}/messages/head?timeout={seconds}", path(queue)),
        );
        let answer = self
            .call(request.body(Bytes::new()), wait + ANSWER_TIMEOUT)
            .await?;
        if answer.status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        self.received(answer).map(Some)
    }

    fn received(&self, answer: Answer) -> Result<Received, ApiError> {
        let text = |name: &str| {
            answer
                .headers
                .get(name)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        if let Some(location) = text("location")
            && !self.is_ours(&location)
        {
            return Err(ApiError::Protocol(
                "the `Location` of a message is on another origin".to_owned(),
            ));
        }
        let properties = text("brokerproperties")
            .ok_or_else(|| ApiError::Protocol("a message without `BrokerProperties`".to_owned()))?;
        let broker = BrokerProperties::parse_received(&properties)
            .map_err(|error| ApiError::Protocol(error.to_string()))?;
        let missing = |what: &str| ApiError::Protocol(format!("a message without `{what}`"));
        let locked_until = broker
            .locked_until
            .ok_or_else(|| missing("LockedUntilUtc"))?;
        // Both by the service's clock: how far ours is off does not matter.
        let now_there = text("date")
            .and_then(|date| httpdate::parse_http_date(&date).ok())
            .unwrap_or_else(SystemTime::now);
        // By name: one that comes twice is taken once.
        let names = answer.headers.keys().map(http::HeaderName::as_str);
        let custom = names
            .filter(|name| is_custom(name))
            .filter_map(|name| {
                let value = PropertyValue::parse_received(&text(name)?);
                Some((name.to_owned(), value))
            })
            .collect();
        Ok(Received {
            sequence: broker
                .sequence_number
                .ok_or_else(|| missing("SequenceNumber"))?,
            token: broker.lock_token.ok_or_else(|| missing("LockToken"))?,
            lock_left: locked_until.duration_since(now_there).unwrap_or_default(),
            delivery_count: broker.delivery_count.unwrap_or(1),
            enqueued_at: broker.enqueued_time.unwrap_or(now_there),
            message: WireMessage {
                content_type: text("content-type").filter(|text| !text.is_empty()),
                broker,
                custom,
                body: answer.body,
            },
        })
    }

    fn is_ours(&self, location: &str) -> bool {
        let authority = |url: &str| {
            let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
            rest.split('/')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase()
        };
        !location.contains("://") || authority(location) == authority(&self.origin)
    }

    /// Deletes a locked message.
    pub async fn complete(&self, queue: &str, lock: &Lock) -> Result<(), ApiError> {
        self.on_lock(Method::DELETE, queue, lock).await
    }

    /// Gives a locked message back; its delivery counts.
    pub async fn unlock(&self, queue: &str, lock: &Lock) -> Result<(), ApiError> {
        self.on_lock(Method::PUT, queue, lock).await
    }

    /// Prolongs a lock by its whole length.
    pub async fn renew(&self, queue: &str, lock: &Lock) -> Result<(), ApiError> {
        self.on_lock(Method::POST, queue, lock).await
    }

    async fn on_lock(&self, method: Method, queue: &str, lock: &Lock) -> Result<(), ApiError> {
        let path = format!("{}/messages/{}/{}", path(queue), lock.sequence, lock.token);
        let request = self.request(method, &path).body(Bytes::new());
        self.call(request, ANSWER_TIMEOUT).await.map(|_| ())
    }

    /// What a queue holds. Needs the right to manage.
    pub async fn counts(&self, queue: &str) -> Result<(QueueDescription, Counts), ApiError> {
        let request = self.request(Method::GET, &path(queue));
        let answer = self.call(request, ANSWER_TIMEOUT).await?;
        atom::parse_counts(&answer.body).map_err(|error| match error {
            // So the service answers for a queue that is not there.
            AtomError::NotAnEntry => ApiError::NotFound {
                status: answer.status.as_u16(),
                detail: format!("there is no queue `{queue}`"),
            },
            other => ApiError::Protocol(other.to_string()),
        })
    }

    /// Creates a queue; true if it was not there. Needs the right to manage.
    pub async fn create(&self, queue: &str, entry: String) -> Result<bool, ApiError> {
        let request = self
            .request(Method::PUT, &path(queue))
            .header(
                header::CONTENT_TYPE,
                "application/atom+xml;type=entry;charset=utf-8",
            )
            .body(entry);
        match self.call(request, ANSWER_TIMEOUT).await {
            Ok(_) => Ok(true),
            Err(ApiError::Refused { status: 409, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}/{path}", self.origin))
    }

    async fn call(
        &self,
        request: reqwest::RequestBuilder,
        timeout: Duration,
    ) -> Result<Answer, ApiError> {
        let answered = match self.authorizer.header().await {
            Ok(header) => {
                let request = request.header(header::AUTHORIZATION, header.expose());
                exchange(request.timeout(timeout)).await
            }
            Err(error) => Err(error),
        };
        self.note(&answered);
        answered
    }

    /// Remembers whether the service answers.
    fn note(&self, answered: &Result<Answer, ApiError>) {
        let now = match answered {
            Err(
                error @ (ApiError::Unreachable(_)
                | ApiError::NoToken(_)
                | ApiError::Unauthorized { .. }),
            ) => Reach::Down {
                reason: error.to_string(),
            },
            _ => Reach::Up,
        };
        self.reach.send_if_modified(|reach| {
            let differs = std::mem::discriminant(reach) != std::mem::discriminant(&now);
            if differs {
                *reach = now;
            }
            differs
        });
    }
}

/// One request; any status but success is an error.
async fn exchange(request: reqwest::RequestBuilder) -> Result<Answer, ApiError> {
    let unreachable = |error: reqwest::Error| ApiError::Unreachable(cause(&error));
    let mut response = request.send().await.map_err(unreachable)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = bytes::BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(ApiError::Protocol(format!(
                "an answer of more than {ANSWER_BYTES_MAX} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    let answer = Answer {
        status,
        headers,
        body: body.freeze(),
    };
    if status.is_success() {
        return Ok(answer);
    }
    let retry_after = answer.headers.get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok());
    Err(ApiError::of(status.as_u16(), retry_after, &answer.body))
}

/// The innermost cause: reqwest's own words only say that sending failed.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        cause.to_string()
    }
}
