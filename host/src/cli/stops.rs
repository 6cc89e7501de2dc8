//! What asks a running host to stop.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::parent::Parent;
use crate::telemetry::events::ParentGone;

/// Signals that follow each other this soon are one request. On Ctrl-C Spin's
/// trigger gets the terminal's SIGINT and, within milliseconds, a SIGTERM from
/// each process above it; a person's second thought takes longer.
const ONE_REQUEST: Duration = Duration::from_secs(1);

/// Requests to stop, one after the other.
pub(super) struct Stops {
    signals: Vec<Signal>,
    parent: Option<BoxFuture<'static, ()>>,
    rule: Rule,
}

impl Stops {
    /// Each SIGINT and each SIGTERM is a request.
    pub fn by_signals() -> std::io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        Ok(Self {
            signals: kinds.into_iter().map(signal).collect::<Result<_, _>>()?,
            parent: None,
            rule: Rule::new(Duration::ZERO),
        })
    }

    /// As the child of another program: a burst of signals is one request, so
    /// is a closed terminal, and so is the end of the `parent`.
    pub fn of_child(parent: Parent) -> std::io::Result<Self> {
        let mut stops = Self::by_signals()?;
        stops.signals.push(signal(SignalKind::hangup())?);
        stops.parent = Some(Box::pin(parent.gone()));
        stops.rule = Rule::new(ONE_REQUEST);
        Ok(stops)
    }

    /// Waits for the next request.
    pub async fn next(&mut self) {
        loop {
            let signals = self
                .signals
                .iter_mut()
                .map(|signal| Box::pin(signal.recv()));
            let signalled = futures_util::future::select_all(signals);
            let parent = async {
                match &mut self.parent {
                    Some(parent) => parent.await,
                    None => std::future::pending().await,
                }
            };
            let is_orphan = tokio::select! {
                _ = signalled => false,
                () = parent => true,
            };
            if is_orphan {
                self.parent = None;
                // It ends on the signal that ends this one, too.
                if self.rule.is_first() {
                    ParentGone.emit();
                } else {
                    continue;
                }
            }
            if self.rule.is_request(Instant::now()) {
                return;
            }
        }
    }
}

/// Which signals are requests.
struct Rule {
    one_within: Duration,
    asked_at: Option<Instant>,
}

impl Rule {
    fn new(one_within: Duration) -> Self {
        Self {
            one_within,
            asked_at: None,
        }
    }

    fn is_first(&self) -> bool {
        self.asked_at.is_none()
    }

    fn is_request(&mut self, now: Instant) -> bool {
        let since = |asked_at| now.saturating_duration_since(asked_at);
        if self
            .asked_at
            .is_some_and(|asked_at| since(asked_at) < self.one_within)
        {
            return false;
        }
        self.asked_at = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_request_and_a_later_signal_is_another() {
        let began = Instant::now();
        let mut rule = Rule::new(ONE_REQUEST);
        let asked = [0, 1, 999, 1_000, 1_500, 5_000]
            .map(|at_ms| rule.is_request(began + Duration::from_millis(at_ms)));
        assert_eq!(asked, [true, false, false, true, false, true]);
    }

    #[test]
    fn without_a_burst_each_signal_is_a_request() {
        let now = Instant::now();
        let mut rule = Rule::new(Duration::ZERO);
        assert!(rule.is_first());
        assert!(rule.is_request(now) && rule.is_request(now));
        assert!(!rule.is_first());
    }
}
