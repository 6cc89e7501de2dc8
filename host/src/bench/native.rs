//! What the host is compared with: the same HTTP server answering from native
//! code, over the same queue or over a plain file. No sandbox, no component,
//! no retries: what is left when everything this project adds is taken away.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use orchestrator_queue::Message;
use orchestrator_queue::local::{Broker, BrokerOptions, Clock};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::load::Witness;
use super::{BenchError, parts};

/// What one group of the plain file may hold: as the embedded queue's batches.
const GROUP_MAX: usize = 1_024;
/// Appends that may wait for the file.
const WAITING_MAX: usize = 4_096;

/// A request's body, as far as native code looks at it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Posted<'a> {
    job_type: String,
    job_id: String,
    #[serde(default)]
    delay_seconds: u32,
    #[serde(borrow)]
    payload: &'a RawValue,
}

type Kept = Pin<Box<dyn Future<Output = bool> + Send>>;
/// Makes a posted job durable; false when it could not.
pub type Keeper = Arc<dyn Fn(Message) -> Kept + Send + Sync>;

/// Keeps jobs in the embedded queue.
pub fn over_queue(dir: &Path) -> Result<Keeper, BenchError> {
    let options = BrokerOptions {
        dir: dir.join("queue"),
        queues: vec![parts::queue_config()],
        free_disk_bytes_min: 0,
    };
    let (broker, _) = Broker::open(options, Clock::machine())
        .map_err(|error| BenchError::Refused(error.to_string()))?;
    let queue = broker.queues()[0].clone();
    // The broker's thread ends when the last handle is gone.
    let broker = Arc::new(broker);
    Ok(Arc::new(move |message| {
        let (queue, broker) = (queue.clone(), broker.clone());
        Box::pin(async move {
            let sent = queue.send(message).await;
            drop(broker);
            sent.is_ok()
        })
    }))
}

/// An append, and who waits for it.
struct Append {
    bytes: Bytes,
    written: oneshot::Sender<()>,
}

/// Keeps jobs in a file that grows, one fdatasync for each group, and does
/// each at once, in native code that does nothing.
pub fn over_file(dir: &Path, witness: Arc<Witness>) -> Result<Keeper, BenchError> {
    let mut file = std::fs::File::create(dir.join("jobs"))?;
    let (appends, mut waiting) = mpsc::channel::<Append>(WAITING_MAX);
    std::thread::Builder::new()
        .name("file-writer".to_owned())
        .spawn(move || {
            let mut group = Vec::new();
            while waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
                let bytes: Vec<u8> = group
                    .iter()
                    .flat_map(|append| &append.bytes[..])
                    .copied()
                    .collect();
                if file
                    .write_all(&bytes)
                    .and_then(|()| file.sync_data())
                    .is_err()
                {
                    // Whoever waits is told by the dropped senders.
                    return;
                }
                for append in group.drain(..) {
                    let _ = append.written.send(());
                }
            }
        })?;
    Ok(Arc::new(move |message| {
        let (appends, witness) = (appends.clone(), witness.clone());
        Box::pin(async move {
            if !append(&appends, message.payload).await {
                return false;
            }
            tokio::spawn(async move {
                if append(&appends, Bytes::copy_from_slice(message.id.as_bytes())).await {
                    witness.completed(&message.id);
                }
            });
            true
        })
    }))
}

async fn append(appends: &mpsc::Sender<Append>, bytes: Bytes) -> bool {
    let (written, done) = oneshot::channel();
    appends.send(Append { bytes, written }).await.is_ok() && done.await.is_ok()
}

/// Serves until `stop`.
pub async fn serve(
    keeper: Keeper,
    stop: CancellationToken,
) -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let addr = listener.local_addr()?;
    let serving = tokio::spawn(async move {
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            // As the host's own listener does.
            let _ = stream.set_nodelay(true);
            let keeper = keeper.clone();
            let service = service_fn(move |request| answer(keeper.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(connection).await });
        }
    });
    Ok((addr, serving))
}

async fn answer(
    keeper: Keeper,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let (status, text) = match serde_json::from_slice::<Posted<'_>>(&body) {
        Ok(posted) => {
            let answer = serde_json::json!({ "jobId": posted.job_id, "status": "accepted" });
            if keeper(message(posted)).await {
                (StatusCode::ACCEPTED, answer.to_string())
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, String::new())
            }
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()),
    };
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    Ok(response)
}

fn message(posted: Posted<'_>) -> Message {
    Message {
        id: posted.job_id,
        job_type: posted.job_type,
        payload: Bytes::copy_from_slice(posted.payload.get().as_bytes()),
        content_type: "application/json".to_owned(),
        properties: Vec::new(),
        traceparent: None,
        delay: Duration::from_secs(posted.delay_seconds.into()),
        time_to_live: None,
        envelope: Bytes::new(),
    }
}
