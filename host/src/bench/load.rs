//! The load: plain HTTP/1.1 connections that post jobs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{BenchError, Sample, latencies, micros};

/// How long one job may take before the bench gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a steady load looks whether the next posts are due.
const TICK: Duration = Duration::from_millis(1);
/// Why a delayed job is not due during a bench, in seconds.
const A_DAY_SECONDS: u32 = 24 * 3600;

/// Sees jobs complete.
#[derive(Default)]
pub struct Witness(Mutex<HashMap<String, oneshot::Sender<Instant>>>);

impl Witness {
    pub fn expect(&self, job: &str) -> oneshot::Receiver<Instant> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(job.to_owned(), sender);
        receiver
    }

    /// Notes that the job is done, now.
    pub fn completed(&self, job: &str) {
        let now = Instant::now();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.remove(job) {
            // Whoever waited may have given up.
            let _ = sender.send(now);
        }
    }
}

/// Makes the bodies of posts, each with an id of its own.
pub struct Bodies {
    head: String,
    tail: String,
    next: AtomicU64,
}

impl Bodies {
    /// Jobs that are due at once.
    pub fn due(payload: &str) -> Self {
        Self::new(format!("\",\"payload\":{payload}}}"))
    }

    /// Jobs that are not due for a day.
    pub fn delayed(payload: &str) -> Self {
        Self::new(format!(
            "\",\"delaySeconds\":{A_DAY_SECONDS},\"payload\":{payload}}}"
        ))
    }

    fn new(tail: String) -> Self {
        Self {
            head: "{\"jobType\":\"bench\",\"jobId\":\"".to_owned(),
            tail,
            next: AtomicU64::new(0),
        }
    }

    pub fn next(&self) -> (String, Bytes) {
        let id = format!("bench-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let body = [&self.head, id.as_str(), &self.tail].concat();
        (id, body.into())
    }
}

/// One kept-alive connection.
pub struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub async fn open(addr: SocketAddr) -> Result<Self, BenchError> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| BenchError::Refused(error.to_string()))?;
        tokio::spawn(async move {
            // Its errors are those of the requests on it.
            let _ = connection.await;
        });
        Ok(Self(sender))
    }

    /// Posts a job that must be accepted.
    pub async fn post(&mut self, body: Bytes) -> Result<(), BenchError> {
        let refused =
            |error: hyper::Error| BenchError::Refused(format!("a request failed: {error}"));
        let request = Request::post("/api/IngestJob")
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| BenchError::Refused(error.to_string()))?;
        self.0.ready().await.map_err(refused)?;
        let response = self.0.send_request(request).await.map_err(refused)?;
        let status = response.status();
        let answer = response.into_body().collect().await.map_err(refused)?;
        if status == StatusCode::ACCEPTED {
            return Ok(());
        }
        let told = answer.to_bytes();
        Err(BenchError::Refused(format!(
            "`POST /api/IngestJob` answered {status}, not 202: {}",
            String::from_utf8_lossy(&told)
        )))
    }
}

/// Posts as fast as answers come, on so many connections.
pub async fn accepting(
    addr: SocketAddr,
    bodies: &Bodies,
    in_flight: usize,
    duration: Duration,
) -> Result<Sample, BenchError> {
    closed_loop(addr, in_flight, duration, async |connection| {
        connection.post(bodies.next().1).await
    })
    .await
}

/// Posts the next job when one has completed, so many on their way at once.
pub async fn completing(
    addr: SocketAddr,
    witness: &Witness,
    bodies: &Bodies,
    in_flight: usize,
    duration: Duration,
) -> Result<Sample, BenchError> {
    closed_loop(addr, in_flight, duration, async |connection| {
        let (job, body) = bodies.next();
        let done = witness.expect(&job);
        connection.post(body).await?;
        completed(done).await.map(|_| ())
    })
    .await
}

async fn closed_loop(
    addr: SocketAddr,
    in_flight: usize,
    duration: Duration,
    step: impl AsyncFn(&mut Connection) -> Result<(), BenchError>,
) -> Result<Sample, BenchError> {
    let mut connections = Vec::with_capacity(in_flight);
    for _ in 0..in_flight {
        connections.push(Connection::open(addr).await?);
    }
    let histogram = std::cell::RefCell::new(latencies());
    let count = std::cell::Cell::new(0);
    let (step, counted, recorded) = (&step, &count, &histogram);
    let began = Instant::now();
    let mut loops = futures_util::stream::FuturesUnordered::new();
    for mut connection in connections {
        loops.push(async move {
            while began.elapsed() < duration {
                let step_began = Instant::now();
                step(&mut connection).await?;
                recorded
                    .borrow_mut()
                    .saturating_record(micros(step_began.elapsed()));
                counted.set(counted.get() + 1);
            }
            Ok::<(), BenchError>(())
        });
    }
    while let Some(ended) = futures_util::StreamExt::next(&mut loops).await {
        ended?;
    }
    drop(loops);
    Ok(Sample::new(
        count.get(),
        began.elapsed(),
        &histogram.into_inner(),
    ))
}

/// Posts at a rate, whether or not answers come in time; latency counts from
/// when each post was due, so that a stall shows in every job it held up.
pub async fn steady(
    addr: SocketAddr,
    witness: &std::sync::Arc<Witness>,
    bodies: &Bodies,
    rate_per_second: f64,
    duration: Duration,
) -> Result<Sample, BenchError> {
    let free = std::sync::Arc::new(Mutex::new(Vec::<Connection>::new()));
    let mut histogram = latencies();
    let mut open = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    let began = Instant::now();
    let mut posted = 0_u32;
    while began.elapsed() < duration {
        ticks.tick().await;
        loop {
            let due = began + Duration::from_secs_f64(f64::from(posted) / rate_per_second);
            if due > Instant::now() {
                break;
            }
            posted += 1;
            let (job, body) = bodies.next();
            let done = witness.expect(&job);
            let free = free.clone();
            open.spawn(async move {
                let idle = free.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut connection = match idle {
                    Some(connection) => connection,
                    None => Connection::open(addr).await?,
                };
                connection.post(body).await?;
                free.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(connection);
                Ok::<Duration, BenchError>(completed(done).await?.saturating_duration_since(due))
            });
        }
        while let Some(ended) = open.try_join_next() {
            histogram.saturating_record(micros(joined(ended)?));
        }
    }
    while let Some(ended) = open.join_next().await {
        histogram.saturating_record(micros(joined(ended)?));
    }
    Ok(Sample::new(u64::from(posted), began.elapsed(), &histogram))
}

fn joined(
    ended: Result<Result<Duration, BenchError>, tokio::task::JoinError>,
) -> Result<Duration, BenchError> {
    ended.map_err(|error| BenchError::Refused(error.to_string()))?
}

async fn completed(done: oneshot::Receiver<Instant>) -> Result<Instant, BenchError> {
    let late = || {
        BenchError::Refused(format!(
            "a job was not completed within {PATIENCE:?}; is the worker failing, or its payload wrong (`--payload`)?"
        ))
    };
    match tokio::time::timeout(PATIENCE, done).await {
        Ok(Ok(at)) => Ok(at),
        Ok(Err(_)) | Err(_) => Err(late()),
    }
}
