//! Items on their way: a bounded queue, batches, and what each answer means.
//!
//! | answer | what happens |
//! | --- | --- |
//! | 200 | done |
//! | 206 | the items that it names are sent again if their own status says so, else dropped |
//! | 307, 308 | sent to where it says, if that is of the service; the new place is kept |
//! | 401, 403, 408, 429, 500, 502, 503, 504, none at all | sent again, after `Retry-After` or a growing pause |
//! | 402, 439 (quota) and any other | dropped |
//!
//! The table is that of the official exporters. While items wait, new ones are
//! taken up to a bound, and then dropped and counted: what is lost is the
//! youngest, and memory stays where it is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use url::Url;

/// Items that may wait, in bytes: minutes of a busy host's telemetry.
pub const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Items of one request, and their bytes: what the service takes comfortably.
const BATCH_ITEMS_MAX: usize = 500;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Largest item, in bytes: the service refuses larger ones.
const ITEM_BYTES_MAX: usize = 64 * 1024;
/// How long items gather before they are sent, unless a batch is full before.
const GATHER: Duration = Duration::from_secs(1);
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause after a failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest pause that the service may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Redirects followed one after the other.
const REDIRECTS_MAX: usize = 5;
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const PATH: &str = "/v2.1/track";
/// Domains of the service: a redirect stays within these, or on its own host.
const DOMAINS: [&str; 5] = [
    "applicationinsights.azure.com",
    "applicationinsights.azure.us",
    "applicationinsights.azure.cn",
    "services.visualstudio.com",
    "monitor.azure.com",
];

/// What became of items since the start, and how many wait now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted by the service.
    pub sent: u64,
    /// Dropped because too many waited, or an item was too large.
    pub dropped_here: u64,
    /// Dropped because the service refused them for good.
    pub dropped_there: u64,
    /// Requests that were repeated.
    pub retries: u64,
    /// Not sent yet, those under way included.
    pub waiting: u64,
}

/// Sends items. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    /// True: everything is sent at once, and then sending ends.
    closing: watch::Sender<bool>,
    done: watch::Sender<bool>,
    taken: AtomicU64,
    sent: AtomicU64,
    dropped_here: AtomicU64,
    dropped_there: AtomicU64,
    retries: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<String>,
    bytes: usize,
}

impl Transport {
    /// Starts sending to this endpoint; must be called on a runtime.
    pub fn start(endpoint: Url, http: reqwest::Client) -> Self {
        let inner = Arc::new(Inner {
            waiting: Mutex::default(),
            arrived: Notify::new(),
            closing: watch::Sender::new(false),
            done: watch::Sender::new(false),
            taken: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            dropped_here: AtomicU64::new(0),
            dropped_there: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        });
        tokio::spawn(run(inner.clone(), endpoint, http));
        Self(inner)
    }

    /// Takes an item to send, or drops it. Never waits.
    pub fn offer(&self, item: String) {
        let mut waiting = self.0.waiting();
        if item.len() > ITEM_BYTES_MAX || waiting.bytes + item.len() > WAITING_BYTES_MAX {
            self.0.dropped_here.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.0.taken.fetch_add(1, Ordering::Relaxed);
        waiting.bytes += item.len();
        waiting.items.push_back(item);
        let is_first = waiting.items.len() == 1;
        let is_batch = waiting.items.len() == BATCH_ITEMS_MAX || waiting.bytes > BATCH_BYTES_MAX;
        drop(waiting);
        if is_first || is_batch {
            self.0.arrived.notify_one();
        }
    }

    /// What became of items so far.
    pub fn counts(&self) -> Counts {
        let sent = self.0.sent.load(Ordering::Relaxed);
        let dropped_there = self.0.dropped_there.load(Ordering::Relaxed);
        let taken = self.0.taken.load(Ordering::Relaxed);
        Counts {
            sent,
            dropped_here: self.0.dropped_here.load(Ordering::Relaxed),
            dropped_there,
            retries: self.0.retries.load(Ordering::Relaxed),
            waiting: taken.saturating_sub(sent + dropped_there),
        }
    }

    /// Sends what waits, for at most this long; what is left then is lost.
    pub async fn close(&self, at_most: Duration) {
        let mut done = self.0.done.subscribe();
        self.0.closing.send_replace(true);
        // The task may have ended: then there is nothing to wait for.
        let _ = tokio::time::timeout(at_most, done.wait_for(|done| *done)).await;
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<String> {
        let mut waiting = self.waiting();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_ITEMS_MAX
            && let Some(next) = waiting.items.front()
            && (batch.is_empty() || bytes + next.len() < BATCH_BYTES_MAX)
        {
            bytes += next.len();
            batch.extend(waiting.items.pop_front());
        }
        waiting.bytes -= bytes;
        batch
    }
}

async fn run(inner: Arc<Inner>, endpoint: Url, http: reqwest::Client) {
    let mut closing = inner.closing.subscribe();
    let mut wire = Wire {
        http,
        url: at(&endpoint),
    };
    loop {
        let is_closing = *closing.borrow_and_update();
        if inner.waiting().items.is_empty() {
            if is_closing {
                break;
            }
            tokio::select! {
                () = inner.arrived.notified() => {}
                _ = closing.changed() => {}
            }
        }
        let is_full = || inner.waiting().items.len() >= BATCH_ITEMS_MAX;
        let gathered = Instant::now() + GATHER;
        while !*closing.borrow() && !is_full() && Instant::now() < gathered {
            tokio::select! {
                () = inner.arrived.notified() => {}
                () = tokio::time::sleep_until(gathered) => {}
                _ = closing.changed() => {}
            }
        }
        let batch = inner.take();
        if !batch.is_empty() {
            deliver(&inner, &mut wire, batch, &mut closing).await;
        }
    }
    inner.done.send_replace(true);
}

/// Sends one batch until the service has decided on each item.
async fn deliver(
    inner: &Inner,
    wire: &mut Wire,
    mut batch: Vec<String>,
    closing: &mut watch::Receiver<bool>,
) {
    let mut pause = RETRY_MIN;
    loop {
        let count = batch.len() as u64;
        let wait = match wire.post(&batch).await {
            Decided::Done => {
                inner.sent.fetch_add(count, Ordering::Relaxed);
                return;
            }
            Decided::Dropped => {
                inner.dropped_there.fetch_add(count, Ordering::Relaxed);
                return;
            }
            Decided::Partly { again, dropped } => {
                inner.dropped_there.fetch_add(dropped, Ordering::Relaxed);
                let left = again.len() as u64;
                inner
                    .sent
                    .fetch_add(count.saturating_sub(left + dropped), Ordering::Relaxed);
                let keep = |(place, item)| again.contains(&place).then_some(item);
                batch = batch.into_iter().enumerate().filter_map(keep).collect();
                if batch.is_empty() {
                    return;
                }
                None
            }
            Decided::Later { after } => after,
        };
        inner.retries.fetch_add(1, Ordering::Relaxed);
        // Hosts that lost the service together do not come back together.
        let wait = wait.unwrap_or_else(|| pause.mul_f64(0.5 + rand::random::<f64>() / 2.0));
        pause = (pause * 2).min(RETRY_MAX);
        // Who is closing has no time for long pauses, and one more try.
        let wait = match *closing.borrow() {
            true => wait.min(RETRY_MIN),
            false => wait,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = closing.changed() => {}
        }
    }
}

/// What the service decided on a batch.
enum Decided {
    Done,
    Dropped,
    Partly { again: Vec<usize>, dropped: u64 },
    Later { after: Option<Duration> },
}

struct Wire {
    http: reqwest::Client,
    url: Url,
}

fn at(endpoint: &Url) -> Url {
    let mut url = endpoint.clone();
    url.set_path(PATH);
    url
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    errors: Vec<ItemError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemError {
    index: usize,
    status_code: u16,
    #[serde(default)]
    message: String,
}

/// What the service says of an item that it does not want by its own sampling.
const SAMPLED_OUT: &str = "Telemetry sampled out.";

impl Wire {
    async fn post(&mut self, batch: &[String]) -> Decided {
        // Shared by the tries of a redirect.
        let body = Bytes::from(format!("[{}]", batch.join(",")));
        for _ in 0..=REDIRECTS_MAX {
            let request = self
                .http
                .post(self.url.clone())
                .header("content-type", "application/json")
                .timeout(REQUEST_TIMEOUT)
                .body(body.clone());
            let Ok(mut response) = request.send().await else {
                return Decided::Later { after: None };
            };
            let status = response.status().as_u16();
            let header = |name: &str| response.headers().get(name)?.to_str().ok();
            match status {
                200 => return Decided::Done,
                206 => {
                    let mut bytes = Vec::new();
                    while let Ok(Some(chunk)) = response.chunk().await {
                        bytes.extend_from_slice(&chunk);
                        if bytes.len() > ANSWER_BYTES_MAX {
                            break;
                        }
                    }
                    return partly(&bytes, batch.len());
                }
                307 | 308 => {
                    let location = header("location").and_then(|text| self.url.join(text).ok());
                    match location.filter(|to| is_allowed(&self.url, to)) {
                        Some(to) => self.url = to,
                        None => return Decided::Dropped,
                    }
                }
                401 | 403 | 408 | 429 | 500 | 502 | 503 | 504 => {
                    let after = header("retry-after")
                        .and_then(|text| text.parse().ok())
                        .map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
                    return Decided::Later { after };
                }
                _ => return Decided::Dropped,
            }
        }
        Decided::Later { after: None }
    }
}

fn partly(answer: &[u8], count: usize) -> Decided {
    // Without saying which, it has taken some: sending all again would double them.
    let Ok(Answer { errors }) = serde_json::from_slice(answer) else {
        return Decided::Done;
    };
    let (mut again, mut dropped) = (Vec::new(), 0);
    for error in errors.into_iter().filter(|error| error.index < count) {
        let is_retryable = matches!(
            error.status_code,
            401 | 403 | 408 | 429 | 500 | 502 | 503 | 504
        ) && error.message != SAMPLED_OUT;
        if !is_retryable {
            dropped += 1;
        } else if !again.contains(&error.index) {
            again.push(error.index);
        }
    }
    Decided::Partly { again, dropped }
}

/// The same machine, or another one of the service; never from TLS to plain.
fn is_allowed(from: &Url, to: &Url) -> bool {
    let (Some(before), Some(after)) = (from.host_str(), to.host_str()) else {
        return false;
    };
    let is_of = |host: &str, domain: &str| {
        host.strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let is_service = |host: &str| DOMAINS.iter().any(|domain| is_of(host, domain));
    from.scheme() == to.scheme() && (before == after || (is_service(before) && is_service(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_stays_with_the_service() {
        let allowed = |from: &str, to: &str| {
            is_allowed(&from.parse().expect("a URL"), &to.parse().expect("a URL"))
        };
        let here = "https://westeurope-5.in.applicationinsights.azure.com/v2.1/track";
        assert!(allowed(
            here,
            "https://westeurope-1.in.applicationinsights.azure.com/v2.1/track"
        ));
        assert!(allowed("http://127.0.0.1:1/a", "http://127.0.0.1:2/b"));
        for to in [
            "https://evil.example/v2.1/track",
            "https://evilapplicationinsights.azure.com/v2.1/track",
            "http://westeurope-1.in.applicationinsights.azure.com/v2.1/track",
        ] {
            assert!(!allowed(here, to), "{to}");
        }
        assert!(!allowed(
            "http://127.0.0.1:1/",
            "https://dc.services.visualstudio.com/"
        ));
    }

    #[test]
    fn a_partial_answer_sends_again_what_may_succeed() {
        let answer = br#"{"itemsReceived":5,"itemsAccepted":1,"errors":[
            {"index":0,"statusCode":400,"message":"bad"},
            {"index":1,"statusCode":503,"message":"busy"},
            {"index":2,"statusCode":429,"message":"Telemetry sampled out."},
            {"index":3,"statusCode":408},
            {"index":9,"statusCode":500}]}"#;
        let Decided::Partly { again, dropped } = partly(answer, 5) else {
            panic!("it is partial")
        };
        assert_eq!((again, dropped), (vec![1, 3], 2));
        assert!(matches!(partly(b"nonsense", 5), Decided::Done));
    }
}
