//! The embedded queue on the Service Bus REST wire.
//!
//! Every runtime operation of the REST interface and the part of the management
//! interface that clients use, durable like everything else: a send is answered
//! after its fsync, so is a settlement. What the service does over this wire
//! and what is unlike it here is told in each module.

mod answer;
mod dead;
mod management;
mod path;
mod runtime;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use orchestrator_queue::local::Queues;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::sas::{Claim, Verifier};
use answer::{Answer, Refusal};
use path::{Operation, Target};

/// Connections at one time; more wait in the socket's backlog. Each consumer's
/// long poll holds one.
const CONNECTIONS_MAX: usize = 8_192;
/// Headers of one request: a message may have [`orchestrator_queue::PROPERTIES_MAX`]
/// properties, and clients add some of their own.
const HEADERS_MAX: usize = 200;
/// Time to send a request's head, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Time to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after accepting failed (usually: no file descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The embedded queue on the wire.
pub struct Server {
    queues: Queues,
    verifier: Verifier,
    dead: dead::DeadLocks,
    started_at_ms: u64,
}

impl Server {
    /// Serves these queues to who has a key that `verifier` knows.
    pub fn new(queues: Queues, verifier: Verifier) -> Self {
        Self {
            queues,
            verifier,
            dead: dead::DeadLocks::default(),
            started_at_ms: now_ms(),
        }
    }

    /// Serves until `stop`: polls that wait then are answered as if nothing had
    /// come, and what is in hand is finished.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let server = Arc::new(self);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let connections = TaskTracker::new();
        loop {
            // The semaphore is never closed, so acquiring cannot fail.
            let permit = permits.clone().acquire_owned().await.ok();
            let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
                break;
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = server.clone().connection(stream, stop.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        // An answer's end must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| {
            let (server, stop) = (self.clone(), stop.clone());
            async move { Ok::<_, Infallible>(server.answer(request, &stop).await.into_response()) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // A connection that ends in an error has ended: its client is gone or
        // sent what is not HTTP, and has been answered where that was possible.
        tokio::select! {
            _ = connection.as_mut() => {}
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, stop: &CancellationToken) -> Answer {
        match self.route(request, stop).await {
            Ok(answer) => answer,
            Err(refusal) => refusal.into_answer(),
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        stop: &CancellationToken,
    ) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        let target = Target::read(head.uri.path())
            .ok_or_else(|| Refusal::bad_request("the path names no entity"))?;
        let operation = Operation::of(&head.method, &target)
            .ok_or_else(|| Refusal::method_not_allowed(&head.method))?;
        let authorization = head
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        // Before the entity is looked up: who has no right does not learn what exists.
        self.verifier
            .verify(
                authorization,
                head.uri.path(),
                claim(&operation),
                now_ms() / 1_000,
            )
            .map_err(|error| Refusal::unauthorized(error.to_string()))?;
        let call = Call {
            base: base(&head),
            query: head.uri.query().unwrap_or_default().to_owned(),
            head,
        };
        match operation {
            Operation::Management(operation) => self.manage(operation, &call, body).await,
            Operation::Runtime(entity, operation) => {
                self.run(&entity, operation, &call, body, stop).await
            }
        }
    }
}

/// A request, but for its body.
struct Call {
    /// How the client addressed this server, as `http://host:port`.
    base: String,
    query: String,
    head: http::request::Parts,
}

impl Call {
    /// The value of a query parameter, its name in any case.
    fn parameter(&self, wanted: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
    }

    fn api_version(&self) -> Option<&str> {
        self.parameter("api-version")
    }
}

fn base(head: &http::request::Parts) -> String {
    let host = head
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost");
    format!("http://{host}")
}

fn claim(operation: &Operation) -> Claim {
    match operation {
        Operation::Management(_) => Claim::Manage,
        Operation::Runtime(_, path::Runtime::Send) => Claim::Send,
        Operation::Runtime(..) => Claim::Listen,
    }
}

/// The whole body, bounded in size and time.
async fn read(body: Incoming, bytes_max: usize) -> Result<bytes::Bytes, Refusal> {
    use http_body_util::{BodyExt, Limited};
    let reading = Limited::new(body, bytes_max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::quota(
            format!("The message is larger than the {bytes_max} bytes allowed."),
        )),
        Ok(Err(error)) => Err(Refusal::bad_request(format!(
            "the body cannot be read: {error}"
        ))),
        Err(_) => Err(Refusal::bad_request(format!(
            "the body did not arrive within {BODY_TIMEOUT:?}"
        ))),
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn at_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

fn is_known_method(method: &Method) -> bool {
    [Method::GET, Method::PUT, Method::POST, Method::DELETE].contains(method)
}
