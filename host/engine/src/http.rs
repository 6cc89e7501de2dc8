//! An HTTP component: reused instances, one response per request.
//!
//! Instances are reused within named bounds, and one instance serves several
//! requests at once while they wait (for the queue's fsync, above all). A
//! request that traps takes with it the requests its instance was serving at
//! that moment: they are answered with an error, and clients repeat them.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::handler::{
    ExpirationError, HandlerState, Instance, InstantiationError, ProxyHandler, ProxyPre,
    ShouldAccept, TrapOrPanicError, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p2, p3};

use crate::compose::Source;
use crate::guest_log::{GuestLog, LogSink};
use crate::loader::{self, LoadError, LoadTimes, TRIAL_START_MAX, one_line};
use crate::outbox::Outbox;
use crate::runtime::Runtime;
use crate::state::{Grants, GuestState};
use crate::worker::new_store;

/// The body of a guest's response. Ends in an error, never early and whole in
/// looks, when the guest crashes or runs out of time in the middle of it.
pub struct ResponseBody {
    body: WasiBody,
    fate: Arc<Fate>,
    /// The component stays, however new versions come, until this is read.
    _component: Arc<HttpComponent>,
}

/// Why a response's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its instance crashed or passed the deadline.
    #[error("the component ended in the middle of its response")]
    Cut,
    /// The guest reported an error instead of more data.
    #[error("the component failed in the middle of its response: {0}")]
    Failed(String),
}

/// What became of one request's instance while the request was open.
#[derive(Default)]
struct Fate {
    is_cut: AtomicBool,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(frame) => Poll::Ready(Some(
                frame.map_err(|error| BodyError::Failed(one_line(&error.into()))),
            )),
            // The handler closes the channel of a body that nobody will end.
            None if self.fate.is_cut.load(Ordering::Acquire) => {
                Poll::Ready(Some(Err(BodyError::Cut)))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.fate.is_cut.load(Ordering::Acquire)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How instances of one HTTP component are reused, and what each may use.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Requests an instance serves before it is replaced.
    pub instance_requests_max: usize,
    /// Requests an instance serves at the same time.
    pub instance_concurrency_max: usize,
    /// Requests in all instances at the same time; more wait their turn.
    pub requests_in_flight_max: usize,
    /// How long an instance without requests is kept.
    pub instance_idle: Duration,
    /// Wall-clock time for one request.
    pub request_timeout: Duration,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes_max: usize,
}

impl HttpLimits {
    /// As many as there may be requests; shared by versions of one component.
    pub fn permits(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(self.requests_in_flight_max))
    }
}

/// How long a request waits for a free instance before its client is asked to
/// come back: a burst of thousands passes well within it.
const QUEUED_MAX: Duration = Duration::from_secs(10);

/// Why a request got no response from the guest.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Every instance is busy, and was for as long as a request may wait.
    #[error("the host is overloaded: no instance was free within {QUEUED_MAX:?}")]
    Overloaded,
    /// No response in time.
    #[error("no response within {0:?}")]
    TimedOut(Duration),
    /// The guest crashed.
    #[error("the component crashed: {0}")]
    Trapped(String),
    /// No instance could be started.
    #[error("no instance could be started: {0}")]
    NotStarted(String),
}

/// An HTTP component, checked and ready.
pub struct HttpComponent {
    digest: String,
    imports: Vec<String>,
    handler: ProxyHandler<Shared>,
    permits: Arc<Semaphore>,
    request_timeout: Duration,
    times: LoadTimes,
}

const P3_EXPORT: &str = "wasi:http/handler@0.3";
const P2_EXPORT: &str = "wasi:http/incoming-handler@0.2";

impl HttpComponent {
    /// Compiles, checks and starts a component once.
    pub async fn load(
        runtime: &Runtime,
        source: impl Into<Source>,
        grants: Grants,
        limits: HttpLimits,
        permits: Arc<Semaphore>,
        outbox: Outbox,
        logs: LogSink,
    ) -> Result<Arc<Self>, LoadError> {
        let Source { digest, bytes } = source.into();
        let began = Instant::now();
        let component = loader::compile(runtime, bytes).await?;
        let (compile, began) = (began.elapsed(), Instant::now());
        let name = loader::find_export(
            runtime,
            &component,
            &[P3_EXPORT, P2_EXPORT],
            "`wasi:http/handler@0.3` (or `wasi:http/incoming-handler@0.2`), so it cannot answer HTTP requests",
        )?;
        let linked = loader::link(runtime.http_linker(), &component)?;
        let pre = if name.starts_with(P3_EXPORT) {
            p3::bindings::ServicePre::new(linked).map(ProxyPre::P3)
        } else {
            p2::bindings::ProxyPre::new(linked).map(ProxyPre::P2)
        }
        .map_err(|error| LoadError::WrongType(one_line(&error)))?;
        let request_timeout = limits.request_timeout;
        let shared = Shared {
            runtime: runtime.clone(),
            pre,
            grants,
            limits,
            outbox,
            logs,
        };
        match tokio::time::timeout(TRIAL_START_MAX, shared.instantiate()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(LoadError::DoesNotStart(one_line(&error))),
            Err(_) => {
                return Err(LoadError::DoesNotStart(format!(
                    "it was not ready after {TRIAL_START_MAX:?}"
                )));
            }
        }
        Ok(Arc::new(Self {
            digest,
            imports: loader::imports(runtime, &component),
            handler: ProxyHandler::new(shared),
            permits,
            request_timeout,
            times: LoadTimes {
                compile,
                check: began.elapsed(),
            },
        }))
    }

    /// The names of what it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// How long loading it took.
    pub fn times(&self) -> LoadTimes {
        self.times
    }

    /// SHA-256 of its own file, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Has the guest answer one request, whose body was read before: a slow
    /// client never holds an instance.
    pub async fn handle(
        self: &Arc<Self>,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<ResponseBody>, HttpError> {
        let request = request.map(|body| {
            Full::new(body)
                .map_err(|never| match never {})
                .boxed_unsync()
        });
        let Ok(_permit) = tokio::time::timeout(QUEUED_MAX, self.permits.acquire()).await else {
            return Err(HttpError::Overloaded);
        };
        let fate = Arc::new(Fate::default());
        let handled = self.handler.handle(fate.clone(), request);
        // The handler's own deadline counts from when an instance took the
        // request; this one also covers starting an instance.
        match tokio::time::timeout(self.request_timeout, handled).await {
            Ok(Ok(response)) => {
                let component = self.clone();
                Ok(response.map(|body| ResponseBody {
                    body,
                    fate,
                    _component: component,
                }))
            }
            Ok(Err(error)) => Err(http_error(&error, self.request_timeout)),
            Err(_) => Err(HttpError::TimedOut(self.request_timeout)),
        }
    }
}

fn http_error(error: &wasmtime::Error, timeout: Duration) -> HttpError {
    if error.is::<ExpirationError>() {
        HttpError::TimedOut(timeout)
    } else if let Some(not_started) = error.downcast_ref::<InstantiationError<Arc<Fate>>>() {
        HttpError::NotStarted(one_line(&not_started.error))
    } else if error.is::<TrapOrPanicError>() {
        HttpError::Trapped("the instance serving this request ended before it answered".to_owned())
    } else {
        HttpError::Trapped(one_line(error))
    }
}

/// What every instance of one component is made from.
struct Shared {
    runtime: Runtime,
    pre: ProxyPre<GuestState>,
    grants: Grants,
    limits: HttpLimits,
    outbox: Outbox,
    logs: LogSink,
}

impl HandlerState for Shared {
    type StoreData = GuestState;
    type WorkerExpiration = Expiration;
    type WorkerState = Reuse;

    async fn instantiate(&self) -> wasmtime::Result<Instance<GuestState, Expiration, Reuse>> {
        let log = GuestLog::forwarding(self.logs.clone());
        let outbox = Some(self.outbox.clone());
        let state = GuestState::new(&self.grants, self.limits.memory_bytes_max, log, outbox);
        let mut store = new_store(&self.runtime, state);
        let proxy = self.pre.instantiate_async(&mut store).await?;
        let was_cut = Arc::new(AtomicBool::new(false));
        Ok(Instance {
            store,
            proxy,
            view: GuestState::http,
            expiration: Expiration::new(&self.limits, was_cut.clone()),
            state: Reuse {
                limits: self.limits.clone(),
                logs: self.logs.clone(),
                was_cut,
                open: Mutex::new(Vec::new()),
            },
        })
    }
}

/// Which requests one instance accepts, and which it has open.
struct Reuse {
    limits: HttpLimits,
    logs: LogSink,
    /// Set when the instance is ended in the middle of its work.
    was_cut: Arc<AtomicBool>,
    /// Requests whose response may not be read to its end yet.
    open: Mutex<Vec<Weak<Fate>>>,
}

impl WorkerState for Reuse {
    type StoreData = GuestState;
    type RequestData = Arc<Fate>;

    fn should_accept_request(&self, concurrent_count: usize, total_count: usize) -> ShouldAccept {
        if total_count >= self.limits.instance_requests_max {
            ShouldAccept::Never
        } else if concurrent_count >= self.limits.instance_concurrency_max {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _: StoreContextMut<'_, GuestState>,
        fate: Arc<Fate>,
        _: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|fate| fate.strong_count() > 0);
        open.push(Arc::downgrade(&fate));
        Box::pin(tokio::time::sleep(self.limits.request_timeout))
    }

    fn drop(&self, store: Store<GuestState>, result: Result<(), wasmtime::Error>) {
        store.data().log.finish();
        if result.is_err() || self.was_cut.load(Ordering::Acquire) {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            for fate in open.iter().filter_map(Weak::upgrade) {
                fate.is_cut.store(true, Ordering::Release);
            }
        }
        // Closes the channels of bodies that were not ended; readers then look
        // at their fate.
        drop(store);
        // The handler also reports an instance that is dropped as it runs, which
        // is no crash: the host is stopping.
        let is_dropped = |error: &wasmtime::Error| {
            error.to_string() == "worker panicked" && !std::thread::panicking()
        };
        if let Err(error) = result
            && !is_dropped(&error)
        {
            self.logs.crashed(&one_line(&error));
        }
    }
}

/// Ends an instance that has idled for long enough, or whose newest request
/// has run past its deadline (polled from outside the guest, so a busy loop
/// cannot escape it).
struct Expiration {
    request_timeout: Duration,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    was_cut: Arc<AtomicBool>,
}

impl Expiration {
    fn new(limits: &HttpLimits, was_cut: Arc<AtomicBool>) -> Self {
        Self {
            was_cut,
            request_timeout: limits.request_timeout,
            idle: limits.instance_idle,
            timer: Box::pin(tokio::time::sleep(limits.instance_idle)),
        }
    }
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        status: WorkerStatus,
        start: Instant,
    ) -> Poll<()> {
        let allowed = match status {
            WorkerStatus::Idle => self.idle,
            WorkerStatus::Requests | WorkerStatus::PostReturn => self.request_timeout,
        };
        let deadline = tokio::time::Instant::from_std(start + allowed);
        // Setting a timer costs more than this poll, which comes with every
        // request: a timer that fires early is left alone and set again then.
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now() >= deadline {
                if !matches!(status, WorkerStatus::Idle) {
                    self.was_cut.store(true, Ordering::Release);
                }
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
