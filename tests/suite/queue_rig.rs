//! A queue on each engine, and over each wire, by a clock that tests move.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orchestrator::queue::Queue;
use orchestrator_queue::local::{Broker, BrokerOptions, Clock, ManualClock, Queues};
use orchestrator_queue::*;
use orchestrator_servicebus::client::{Namespace, QueueOptions};
use orchestrator_servicebus::sas::{Rights, Rule, Verifier};
use orchestrator_servicebus::secret::Secret;
use orchestrator_servicebus::server::Server;
use tokio_util::sync::CancellationToken;

use crate::wire::{Fate, Wire};

pub const LOCK: Duration = Duration::from_secs(30);
/// How long nothing must come before it is said that nothing comes.
pub const NOTHING: Duration = Duration::from_millis(300);
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A queue on some engine, and the time that its locks go by.
pub struct Bench {
    pub queue: Queue,
    pub clock: ManualClock,
    pub kept: Kept,
}

/// What the queue needs to live.
pub struct Kept {
    pub queues: Queues,
    _broker: Broker,
    pub wire: Option<Wire>,
    server: Option<SocketAddr>,
    _dirs: [tempfile::TempDir; 2],
}

pub fn config() -> QueueConfig {
    QueueConfig {
        name: "jobs".to_owned(),
        lock_duration: LOCK,
        max_delivery_count: 3,
        duplicate_window: Duration::from_secs(600),
        time_to_live: None,
        dead_letter_expired: true,
        max_bytes: 1 << 30,
        retention: retention(),
    }
}

pub fn retention() -> Retention {
    Retention {
        age: Duration::from_secs(3_600),
        count: 1_000,
        bytes: 1 << 24,
    }
}

impl Bench {
    pub async fn embedded() -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        // The wire's own times are the machine's, so both begin together.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (time, clock) = Clock::manual(u64::try_from(since.as_millis()).unwrap());
        let options = BrokerOptions {
            dir: dirs[0].path().to_owned(),
            queues: vec![config()],
            free_disk_bytes_min: 0,
        };
        let (broker, _) = Broker::open(options, time).unwrap();
        Self {
            queue: broker.queue("jobs").unwrap().into(),
            clock,
            kept: Kept {
                queues: broker.all(),
                _broker: broker,
                wire: None,
                server: None,
                _dirs: dirs,
            },
        }
    }

    /// The same queue, behind its listener and our client.
    pub async fn over_rest() -> Self {
        let mut bench = Self::embedded().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let all = Rights {
            listen: true,
            send: true,
            manage: true,
        };
        let rule = Rule {
            name: "k".to_owned(),
            key: Secret::new("secret"),
            rights: all,
        };
        let listening = Server::new(bench.kept.queues.clone(), Verifier::new(vec![rule], false));
        tokio::spawn(listening.serve(listener, CancellationToken::new()));
        bench.kept.server = Some(server);
        bench.connect(server);
        bench
    }

    /// The same again, over a wire that refuses, is slow and sloppy, and yet
    /// loses nothing that took effect: nobody should be able to tell.
    pub async fn over_a_bad_wire() -> Self {
        let mut bench = Self::over_a_wire().await;
        bench.kept.wire.as_mut().unwrap().script(|asked| {
            let sloppy = Fate {
                gone: true,
                wrong_types: true,
                doubled_headers: true,
                ..Fate::default()
            };
            match asked.number % 7 {
                1 => Fate {
                    refused: Some((503, None)),
                    ..sloppy
                },
                3 => Fate {
                    refused: Some((429, Some(0))),
                    ..sloppy
                },
                5 => Fate {
                    slow: Duration::from_millis(50),
                    ..sloppy
                },
                _ => sloppy,
            }
        });
        bench
    }

    pub async fn over_a_wire() -> Self {
        let mut bench = Self::over_rest().await;
        let wire = Wire::to(bench.kept.server.unwrap()).await;
        bench.connect(wire.address);
        bench.kept.wire = Some(wire);
        bench
    }

    pub fn connect(&mut self, address: SocketAddr) {
        // A new state directory each time: another host, as it were.
        self.kept._dirs[1] = tempfile::tempdir().unwrap();
        self.queue = self.another_host(address, self.kept._dirs[1].path());
    }

    pub fn another_host(&self, address: SocketAddr, state: &std::path::Path) -> Queue {
        let connection = format!(
            "Endpoint=http://{address};SharedAccessKeyName=k;SharedAccessKey=secret;UseDevelopmentEmulator=true"
        );
        let namespace = Namespace::new(&connection.parse().unwrap(), state, retention()).unwrap();
        let name = "jobs".to_owned();
        namespace.queue(QueueOptions { name }).into()
    }

    pub async fn send(&self, message: Message) -> Receipt {
        self.queue.send_many(vec![message]).await.remove(0).unwrap()
    }

    /// The next delivery; as a dispatcher does, it asks again when told to.
    pub async fn take(&self) -> Delivery {
        take(&self.queue).await
    }

    pub async fn nothing_comes(&self) {
        let came = tokio::time::timeout(NOTHING, self.queue.receive(1)).await;
        if let Ok(Ok(deliveries)) = came {
            panic!("{deliveries:?}");
        }
    }

    /// Ends a delivery; as a dispatcher does, it asks again when told to.
    pub async fn settle(&self, lock: Lock, settlement: Settlement, attempt: Option<Attempt>) {
        assert!(settle(&self.queue, lock, settlement, attempt).await);
    }

    pub async fn state(&self, id: &str) -> JobState {
        self.queue.job(id).await.unwrap().unwrap().state
    }

    /// Waits until the queue holds what `is` wants.
    pub async fn until(&self, is: impl Fn(&QueueStats) -> bool) {
        let queue = self.kept.queues.find("jobs").unwrap();
        let looking = async {
            while !is(&queue.stats().await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, looking).await;
        assert!(waited.is_ok(), "{:?}", queue.stats().await);
    }
}

pub async fn take(queue: &Queue) -> Delivery {
    let taking = async {
        loop {
            match queue.receive(1).await {
                Ok(mut deliveries) => return deliveries.pop().unwrap(),
                Err(Unavailable(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, taking).await.unwrap()
}

/// False if the lock was lost.
pub async fn settle(
    queue: &Queue,
    mut lock: Lock,
    settlement: Settlement,
    attempt: Option<Attempt>,
) -> bool {
    loop {
        match queue
            .settle(lock, settlement.clone(), attempt.clone())
            .await
        {
            Ok(()) => return true,
            Err(SettleError::LockLost) => return false,
            Err(SettleError::Unavailable { lock: again, .. }) => lock = again,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn message(id: &str) -> Message {
    Message {
        id: id.to_owned(),
        job_type: "demo".to_owned(),
        payload: format!("payload of {id}: \u{e4}\u{1f980} \"quoted\"")
            .into_bytes()
            .into(),
        content_type: "text/plain".to_owned(),
        properties: vec![("k".to_owned(), "v \u{e4} \"1\"".to_owned())],
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: bytes::Bytes::new(),
    }
}

pub fn done() -> Settlement {
    Settlement::Complete {
        output: Output {
            body: b"ok".to_vec(),
            content_type: "text/plain".to_owned(),
        },
    }
}

pub fn attempt(number: u32) -> Attempt {
    Attempt {
        number,
        outcome: "trap".to_owned(),
        error: Some(format!("failure {number}")),
        ..Attempt::default()
    }
}

pub fn dead_letter() -> Settlement {
    Settlement::DeadLetter {
        reason: "BadOrder".to_owned(),
        description: "no such item".to_owned(),
    }
}

impl Bench {
    /// The lock of a new message.
    pub async fn another(&self, id: &str) -> Lock {
        self.send(message(id)).await;
        self.take().await.lock
    }
}

pub fn copy(lock: &Lock) -> Lock {
    Lock {
        sequence: lock.sequence,
        token: lock.token,
        locked_until: lock.locked_until,
        duration: lock.duration,
    }
}

/// Asks again while it is told that this may help; adds up what was done.
pub async fn persist<F: Future<Output = Result<u64, Unavailable>>>(
    mut ask: impl FnMut() -> F,
) -> u64 {
    let mut tries = 0;
    loop {
        match ask().await {
            Ok(done) => return done,
            Err(error) => assert!(tries < 50, "{error}"),
        }
        tries += 1;
    }
}
