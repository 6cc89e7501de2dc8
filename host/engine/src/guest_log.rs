//! What a guest prints, logs and measures.
//!
//! Everything is bounded where it comes in, so that no guest can grow the
//! host: what is over a bound is counted and dropped. Nothing here waits or
//! fails, so a flood costs only the guest its own time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Longest line kept, in bytes; the rest of it is cut at a character boundary.
pub const LINE_BYTES_MAX: usize = 4096;
/// Most lines kept of one attempt: a page of a job that a person can still read.
pub const LINES_MAX: usize = 256;
/// Most bytes of lines kept of one attempt.
pub const LOG_BYTES_MAX: usize = 64 * 1024;
/// Most measurements kept of one attempt.
pub const METRICS_MAX: usize = 64;
/// Longest name of a measurement, in bytes.
pub const METRIC_NAME_BYTES_MAX: usize = 128;
/// What one write to stdout may hold, in bytes: what WASI hosts usually allow.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Where a line came from, or how much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `telemetry.log(debug, …)`
    Debug,
    /// `telemetry.log(info, …)`
    Info,
    /// `telemetry.log(warn, …)`
    Warn,
    /// `telemetry.log(error, …)` or `telemetry.log-error(…)`
    Error,
    /// A line written to stdout.
    Stdout,
    /// A line written to stderr.
    Stderr,
}

impl Level {
    /// The name used in logs and on the job's page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of a guest's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// When it was written: milliseconds since 1970-01-01 UTC.
    pub at_ms: u64,
    /// Where it came from.
    pub level: Level,
    /// The text, without its line end.
    pub message: String,
}

/// What one attempt left behind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// Kept lines, oldest first.
    pub lines: Vec<Line>,
    /// Lines dropped because a bound was reached.
    pub lines_dropped: u64,
    /// Kept measurements, in order.
    pub metrics: Vec<(String, f64)>,
    /// Measurements dropped: over a bound, not finite, or badly named.
    pub metrics_dropped: u64,
}

/// What an HTTP component says, one thing at a time: its instances serve many
/// requests and have no recording to end.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A line of log.
    Line(Line),
    /// A measurement.
    Metric {
        /// Its name.
        name: String,
        /// Its value.
        value: f64,
    },
    /// An instance crashed.
    Crashed(String),
}

/// Takes what an HTTP component says. It must not wait, and bounds the rate.
#[derive(Clone)]
pub struct LogSink(Arc<dyn Fn(Said) + Send + Sync>);

impl LogSink {
    /// A sink that calls `take`.
    pub fn new(take: impl Fn(Said) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    pub(crate) fn crashed(&self, error: &str) {
        (self.0)(Said::Crashed(cut(error, LINE_BYTES_MAX).to_owned()));
    }
}

/// Collects what one instance says. Clones share one recording.
#[derive(Clone, Default)]
pub struct GuestLog(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    recording: Recording,
    forward: Option<LogSink>,
    bytes: usize,
    stdout: PartialLine,
    stderr: PartialLine,
}

/// The start of a line whose end has not been written yet.
#[derive(Default)]
struct PartialLine {
    bytes: Vec<u8>,
}

impl GuestLog {
    /// A log that keeps nothing and hands everything on.
    pub(crate) fn forwarding(sink: LogSink) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            forward: Some(sink),
            ..Inner::default()
        })))
    }

    /// A guest called `telemetry.log`.
    pub fn log(&self, level: Level, message: &str) {
        self.lock().push(level, message);
    }

    /// A guest called `telemetry.log-metric`.
    pub fn metric(&self, name: &str, value: f64) {
        let mut inner = self.lock();
        let named = !name.is_empty() && name.len() <= METRIC_NAME_BYTES_MAX;
        let sound = named && value.is_finite();
        if let (true, Some(sink)) = (sound, &inner.forward) {
            return (sink.0)(Said::Metric {
                name: name.to_owned(),
                value,
            });
        }
        if sound && inner.recording.metrics.len() < METRICS_MAX {
            inner.recording.metrics.push((name.to_owned(), value));
        } else {
            inner.recording.metrics_dropped += 1;
        }
    }

    /// Takes what was recorded so far; unfinished lines are ended.
    pub fn take(&self) -> Recording {
        self.finish();
        let mut inner = self.lock();
        inner.bytes = 0;
        std::mem::take(&mut inner.recording)
    }

    /// Ends unfinished lines.
    pub(crate) fn finish(&self) {
        let mut inner = self.lock();
        for level in [Level::Stdout, Level::Stderr] {
            let rest = std::mem::take(&mut inner.partial(level).bytes);
            if !rest.is_empty() {
                inner.push(level, &String::from_utf8_lossy(&rest));
            }
        }
    }

    /// The stream to hand to WASI as stdout or stderr.
    pub(crate) fn stream(&self, level: Level) -> GuestStream {
        GuestStream {
            log: self.clone(),
            level,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding it can only have come from an allocation; the
        // recording is still a list of whole lines.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn partial(&mut self, level: Level) -> &mut PartialLine {
        match level {
            Level::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        }
    }

    fn push(&mut self, level: Level, message: &str) {
        let message = cut(message, LINE_BYTES_MAX);
        if let Some(sink) = &self.forward {
            return (sink.0)(Said::Line(line(level, message)));
        }
        let full = self.recording.lines.len() >= LINES_MAX;
        if full || self.bytes + message.len() > LOG_BYTES_MAX {
            self.recording.lines_dropped += 1;
            return;
        }
        self.bytes += message.len();
        self.recording.lines.push(line(level, message));
    }

    fn write(&mut self, level: Level, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            self.keep(level, head);
            let line = std::mem::take(&mut self.partial(level).bytes);
            let text = String::from_utf8_lossy(&line);
            self.push(level, text.trim_end_matches('\r'));
            rest = &tail[1..];
        }
        self.keep(level, rest);
    }

    /// Appends to the unfinished line, as far as it will be kept.
    fn keep(&mut self, level: Level, bytes: &[u8]) {
        let partial = &mut self.partial(level).bytes;
        let room = LINE_BYTES_MAX.saturating_sub(partial.len());
        partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

fn line(level: Level, message: &str) -> Line {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let at_ms = since.map_or(0, |since| since.as_millis() as u64);
    Line {
        at_ms,
        level,
        message: message.to_owned(),
    }
}

/// `text` cut to at most `bytes_max` bytes at a character boundary.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Stdout or stderr of a guest: takes everything at once, keeps whole lines.
#[derive(Clone)]
pub(crate) struct GuestStream {
    log: GuestLog,
    level: Level,
}

impl IsTerminal for GuestStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.log.lock().write(self.level, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl OutputStream for GuestStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.lock().write(self.level, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestStream {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(log: &GuestLog) -> Vec<String> {
        log.take()
            .lines
            .into_iter()
            .map(|line| line.message)
            .collect()
    }

    #[test]
    fn lines_are_split_at_line_ends_and_the_last_one_needs_none() {
        let log = GuestLog::default();
        for part in ["one\nt", "wo\r\n", "thr", "ee"] {
            log.lock().write(Level::Stdout, part.as_bytes());
        }
        assert_eq!(messages(&log), ["one", "two", "three"]);
    }

    #[test]
    fn stdout_and_stderr_do_not_mix_within_a_line() {
        let log = GuestLog::default();
        log.lock().write(Level::Stdout, b"a");
        log.lock().write(Level::Stderr, b"x\n");
        log.lock().write(Level::Stdout, b"b\n");
        assert_eq!(messages(&log), ["x", "ab"]);
    }

    #[test]
    fn a_flood_is_counted_and_costs_no_memory() {
        let log = GuestLog::default();
        for _ in 0..10_000 {
            log.lock().write(Level::Stdout, &[b'x'; 100]);
            log.lock().write(Level::Stdout, b"\n");
        }
        let recording = log.take();
        assert_eq!(recording.lines.len(), LINES_MAX);
        assert_eq!(recording.lines_dropped, 10_000 - LINES_MAX as u64);
    }

    #[test]
    fn one_endless_line_is_cut() {
        let log = GuestLog::default();
        for _ in 0..1_000 {
            log.lock().write(Level::Stderr, &[b'y'; 1_000]);
        }
        assert_eq!(messages(&log), ["y".repeat(LINE_BYTES_MAX)]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let log = GuestLog::default();
        log.log(Level::Info, &"ä".repeat(LINE_BYTES_MAX));
        assert_eq!(messages(&log)[0], "ä".repeat(LINE_BYTES_MAX / 2));
    }

    #[test]
    fn metrics_that_say_nothing_are_dropped_and_counted() {
        let log = GuestLog::default();
        log.metric("ok", 1.5);
        log.metric("", 1.0);
        log.metric("nan", f64::NAN);
        log.metric(&"n".repeat(METRIC_NAME_BYTES_MAX + 1), 1.0);
        let recording = log.take();
        assert_eq!(recording.metrics, [("ok".to_owned(), 1.5)]);
        assert_eq!(recording.metrics_dropped, 3);
    }
}
