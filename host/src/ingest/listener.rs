//! Accepts connections and answers their requests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use orchestrator_engine::http::HttpError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::problem::Problem;
use super::{Application, Body, IngestConfig, body, job_page};
use crate::config::Routed;
use crate::telemetry::events::RequestAnswered;
use crate::telemetry::traces::OpenSpan;

/// Time for a client to send a request's head, and how long an idle
/// connection is kept: what common reverse proxies expect at least.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Wait after accepting failed (usually: no file descriptors left).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// When clients are told to come back after an overload, in seconds.
const RETRY_AFTER_SECONDS: u32 = 2;
/// Where a job's page is.
pub const JOB_PAGES: &str = "/api/jobs/";

/// Serves until `stop`, then until open requests are answered.
pub async fn serve(
    listener: TcpListener,
    application: Arc<Application>,
    config: IngestConfig,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(config.connections_max));
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &permits)).await {
        let (stream, permit) = accepted;
        let connection =
            serve_connection(stream, application.clone(), config.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    // Clients that connect from here on are refused at once.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// A permit first, then a connection to use it.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, Option<tokio::sync::OwnedSemaphorePermit>) {
    // The semaphore is never closed, so acquiring cannot fail.
    let permit = permits.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    application: Arc<Application>,
    config: IngestConfig,
    stop: CancellationToken,
) {
    // A chunked answer whose end is written apart from its body would wait for
    // the client's delayed acknowledgement, some 40 ms.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let application = application.clone();
        let timeout = config.request_timeout;
        async move { Ok::<_, Infallible>(answer(&application, request, timeout).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // A connection that ends in an error has ended: its client is gone or sent
    // what is not HTTP, and has been answered where an answer was possible.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(
    application: &Application,
    request: Request<Incoming>,
    timeout: Duration,
) -> Response<Body> {
    let began = Instant::now();
    let Routing {
        component,
        digest,
        response,
    } = route(application, request, timeout)
        .await
        .unwrap_or_else(|problem| Routing::by_host(problem.into_response()));
    let status = response.status().as_u16();
    RequestAnswered {
        component,
        digest: digest.as_deref(),
        status,
        took: began.elapsed(),
    }
    .emit(&application.telemetry);
    response
}

/// A response and who made it.
struct Routing<'a> {
    component: &'a str,
    digest: Option<String>,
    response: Response<Body>,
}

impl Routing<'_> {
    fn by_host(response: Response<Body>) -> Self {
        Self {
            component: "host",
            digest: None,
            response,
        }
    }
}

async fn route(
    application: &Application,
    request: Request<Incoming>,
    timeout: Duration,
) -> Result<Routing<'_>, Problem> {
    if let Some(id) = request.uri().path().strip_prefix(JOB_PAGES) {
        return Ok(Routing::by_host(
            job_page::answer(application, request.method(), id).await,
        ));
    }
    let Some(Routed { component }) = application.router.route(request.uri().path()) else {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("nothing is served at `{}`", request.uri().path()),
        ));
    };
    let slot = &application.components[component];
    let is_head = request.method() == Method::HEAD;
    let (parts, incoming) = request.into_parts();
    let bytes = body::read(incoming, timeout).await?;
    let mut request = Request::from_parts(with_authority(parts), bytes);
    let span = span(application, slot.id(), &mut request);
    // Read once: the request stays on this version, its response's body too.
    let version = slot.current();
    let handled = version.component.handle(request).await;
    if let Some(span) = span {
        end(span, handled.as_ref().map(|response| response.status()));
    }
    let response = handled.map_err(refusal)?;
    let response = if is_head {
        response.map(|_| super::problem::full(""))
    } else {
        response.map(guest_body)
    };
    Ok(Routing {
        component: slot.id(),
        digest: Some(version.version.digest.clone()),
        response,
    })
}

/// Longest path on a span, in bytes.
const SPAN_PATH_BYTES_MAX: usize = 256;

/// The request's span, if telemetry leaves the host; its context is what the
/// component sees as `traceparent`, and puts on the messages it sends.
fn span(
    application: &Application,
    component: &str,
    request: &mut Request<Bytes>,
) -> Option<OpenSpan> {
    let traces = application.telemetry.traces()?;
    let path = request.uri().path();
    let path = &path[..path.floor_char_boundary(SPAN_PATH_BYTES_MAX)];
    let attributes = vec![
        KeyValue::new("Component", component.to_owned()),
        KeyValue::new("url.full", path.to_owned()),
    ];
    let name = format!("{} {path}", request.method());
    let given = request.headers().get(TRACEPARENT);
    let given = given.and_then(|value| value.to_str().ok());
    let span = traces.begin(name, SpanKind::Server, given, attributes);
    if let Ok(value) = header::HeaderValue::try_from(span.traceparent()) {
        request.headers_mut().insert(TRACEPARENT, value);
    }
    Some(span)
}

fn end(mut span: OpenSpan, status: Result<StatusCode, &HttpError>) {
    let code = match status {
        Ok(status) => status.as_u16().to_string(),
        Err(error) => {
            span.failed("host".to_owned(), error.to_string(), String::new(), false);
            "500".to_owned()
        }
    };
    if status.is_ok_and(|status| status.is_server_error()) {
        span.fail();
    }
    span.set(KeyValue::new("http.response.status_code", code));
    span.end();
}

const TRACEPARENT: &str = "traceparent";

fn guest_body(body: orchestrator_engine::http::ResponseBody) -> Body {
    body.map_err(Into::into).boxed_unsync()
}

/// A request's target as its components see it: absolute, from the `Host` header.
fn with_authority(mut parts: http::request::Parts) -> http::request::Parts {
    let host = parts
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = http::Uri::builder()
        .scheme("http")
        .authority(host.unwrap_or("localhost"))
        .path_and_query(path)
        .build();
    if let Ok(uri) = uri {
        parts.uri = uri;
    }
    parts
}

/// The one place where a component's failure becomes a status.
fn refusal(error: HttpError) -> Problem {
    match error {
        HttpError::Overloaded => Problem::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
            .retry_after(RETRY_AFTER_SECONDS),
        HttpError::NotStarted(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                .retry_after(RETRY_AFTER_SECONDS)
        }
        HttpError::TimedOut(_) => Problem::new(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
        // What crashed is the operator's to know, not the client's: it is in the log.
        HttpError::Trapped(_) => Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the component that serves this route crashed",
        ),
    }
}
