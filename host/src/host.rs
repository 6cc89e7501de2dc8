//! Assembly: builds every part from its section, starts them, stops them in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestrator_engine::guest_log::{LogSink, Said};
use orchestrator_engine::http::HttpComponent;
use orchestrator_engine::worker::Grants;
use orchestrator_engine::{Outbox, Runtime, RuntimeConfig, WorkerComponent};
use orchestrator_queue::local::{Broker, BrokerOptions, Clock, Health};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::components::{HttpSlot, Slot, WorkerSlot};
use crate::config::{ComponentConfig, Config, QueueTrigger};
use crate::dispatch::{Dispatcher, Stop};
use crate::ingest::{self, Application, IngestConfig};
use crate::ops::{self, Operations};
use crate::telemetry::Telemetry;
use crate::telemetry::events::{
    ComponentLoaded, GuestMeasured, GuestSaid, InstanceCrashed, ListenerOpened, Stopped, Stopping,
    StoreHealthChanged, StoreRecovered,
};

/// Connections to the application listener at one time: each costs a few
/// kilobytes; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 8_192;
/// Connections that may wait to be accepted: a burst of thousands.
const BACKLOG: u32 = 4_096;
/// Instances beyond those that jobs and requests can need at one time: for
/// ones that are being checked or torn down.
const INSTANCES_SPARE: u32 = 32;

/// How the host is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of the application listener.
    pub listen: SocketAddr,
    /// Address of the operations listener.
    pub ops_listen: SocketAddr,
    /// Token that operations need; required beyond loopback.
    pub ops_token: Option<String>,
    /// Where everything durable lies.
    pub state_dir: PathBuf,
    /// Where compiled code lies.
    pub compiled_dir: PathBuf,
}

/// Why the host could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The operations listener would be open to anyone.
    #[error(
        "the operations listener does not bind {0} without a token: set ORCHESTRATOR_OPS_TOKEN, or use a loopback address"
    )]
    OpsUnprotected(SocketAddr),
    /// A socket cannot be bound.
    #[error("cannot listen on {addr}: {source}; choose another address with `{flag}`")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A component cannot be loaded.
    #[error("component `{id}` ({path}): {why}")]
    Component {
        /// Its name.
        id: String,
        /// Its file.
        path: String,
        /// Why, and what to do.
        why: String,
    },
    /// The engine cannot be set up.
    #[error(transparent)]
    Runtime(#[from] orchestrator_engine::runtime::RuntimeError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] orchestrator_queue::local::OpenError),
    /// The store failed for good.
    #[error("{0}")]
    Poisoned(String),
}

/// A host that is built: sockets bound, store open, components checked.
pub struct Host {
    application: Arc<Application>,
    operations: Arc<Operations>,
    dispatchers: Vec<Dispatcher>,
    broker: Broker,
    app_listener: TcpListener,
    ops_listener: TcpListener,
    stop: Stop,
    shutdown_timeout: Duration,
    request_timeout: Duration,
}

impl Host {
    /// Builds every part; nothing runs yet.
    pub async fn build(
        config: Config,
        options: Options,
        telemetry: Telemetry,
    ) -> Result<Self, HostError> {
        if !options.ops_listen.ip().is_loopback() && options.ops_token.is_none() {
            return Err(HostError::OpsUnprotected(options.ops_listen));
        }
        let app_listener = bind(options.listen, "--listen")?;
        let ops_listener = bind(options.ops_listen, "--ops-listen")?;
        let broker = open_store(&config, &options)?;
        let runtime = Runtime::new(&runtime_config_of(&config, &options.compiled_dir))?;
        let workers = load_workers(&config, &runtime).await?;
        let outbox = ingest::outbox(broker.queues(), config.host.default_queue.as_deref());
        let mut http = Vec::new();
        for id in config.router.components() {
            let component = &config.components[id];
            let sink = log_sink(id, &telemetry);
            let (bytes, began) = (read(id, component).await?, Instant::now());
            let size = bytes.len() as u64;
            let loaded =
                http_component_of(&config, id, &runtime, bytes, outbox.clone(), sink).await?;
            let digest = loaded.digest().to_owned();
            ComponentLoaded {
                component: id,
                digest: &digest,
                took: began.elapsed(),
            }
            .emit();
            let source = component.source.display().to_string();
            http.push(Arc::new(HttpSlot::new(id, loaded, &digest, &source, size)));
        }
        let stop = Stop::default();
        let dispatchers: Vec<Dispatcher> = config
            .queues
            .iter()
            .zip(broker.queues())
            .map(|(trigger, queue)| {
                let worker = workers[&trigger.component].clone();
                Dispatcher::new(
                    queue.clone(),
                    worker,
                    trigger.dispatch.clone(),
                    telemetry.clone(),
                    stop.clone(),
                )
            })
            .collect();
        let application = Arc::new(Application {
            router: config.router.clone(),
            components: http.clone(),
            queues: broker.queues().to_vec(),
            telemetry: telemetry.clone(),
        });
        let operations = Arc::new(Operations {
            http,
            workers: workers.into_values().collect(),
            dispatchers: dispatchers.clone(),
            health: broker.health(),
            stopping: stop.receiving.clone(),
            token: options.ops_token,
            telemetry,
        });
        Ok(Self {
            application,
            operations,
            dispatchers,
            broker,
            app_listener,
            ops_listener,
            stop,
            shutdown_timeout: config.host.shutdown_timeout,
            request_timeout: config.host.http.request_timeout,
        })
    }

    /// Where the application and the operations listener are.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((
            self.app_listener.local_addr()?,
            self.ops_listener.local_addr()?,
        ))
    }

    /// Runs until `shutdown`, then stops: no more work is taken, requests and
    /// jobs get their deadline to finish, the rest is given back. Jobs run on
    /// `jobs`, apart from requests, so that however busy guests are, accepting
    /// is not delayed.
    pub async fn run(
        self,
        jobs: tokio::runtime::Handle,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), HostError> {
        if let Ok((app, ops)) = self.addresses() {
            ListenerOpened {
                listener: "application",
                addr: app,
            }
            .emit();
            ListenerOpened {
                listener: "operations",
                addr: ops,
            }
            .emit();
        }
        let ops_stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        for dispatcher in self.dispatchers {
            tasks.spawn_on(dispatcher.run(), &jobs);
        }
        let ingest = IngestConfig {
            connections_max: CONNECTIONS_MAX,
            request_timeout: self.request_timeout,
        };
        tasks.spawn(ingest::serve(
            self.app_listener,
            self.application,
            ingest,
            self.stop.receiving.clone(),
        ));
        let ops_server = tokio::spawn(ops::serve(
            self.ops_listener,
            self.operations,
            ops_stop.clone(),
        ));
        tasks.close();

        let poisoned = tokio::select! {
            () = shutdown => None,
            reason = watch_health(&self.broker) => Some(reason),
        };
        let deadline = if poisoned.is_some() {
            Duration::ZERO
        } else {
            self.shutdown_timeout
        };
        Stopping { deadline }.emit();
        self.stop.receiving.cancel();
        if tokio::time::timeout(deadline, tasks.wait()).await.is_err() {
            self.stop.working.cancel();
            // What is given back is settled within moments; requests that are
            // still open by then are cut.
            let _ = tokio::time::timeout(GIVE_BACK_MAX, tasks.wait()).await;
        }
        ops_stop.cancel();
        let _ = ops_server.await;
        self.broker.close().await;
        Stopped.emit();
        poisoned.map_or(Ok(()), |reason| Err(HostError::Poisoned(reason)))
    }
}

/// Time to settle what is given back when the deadline has passed.
const GIVE_BACK_MAX: Duration = Duration::from_secs(5);

/// Tells changes of the store's health; ends with the reason once it is poisoned.
async fn watch_health(broker: &Broker) -> String {
    let mut health = broker.health();
    while health.changed().await.is_ok() {
        let now = health.borrow_and_update().clone();
        match now {
            Health::Ready => StoreHealthChanged { trouble: None }.emit(),
            Health::Degraded { reason } => StoreHealthChanged {
                trouble: Some(&reason),
            }
            .emit(),
            Health::Poisoned { reason } => return reason,
        }
    }
    // The sender lives as long as the broker.
    std::future::pending().await
}

fn bind(addr: SocketAddr, flag: &'static str) -> Result<TcpListener, HostError> {
    let listen = || {
        let socket = if addr.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| HostError::Listen { addr, flag, source })
}

fn open_store(config: &Config, options: &Options) -> Result<Broker, HostError> {
    let broker = BrokerOptions {
        dir: options.state_dir.join("queue"),
        queues: config
            .queues
            .iter()
            .map(|trigger| trigger.queue.clone())
            .collect(),
        free_disk_bytes_min: config.host.free_disk_bytes_min,
    };
    let (broker, recovery) = Broker::open(broker, Clock::machine())?;
    StoreRecovered {
        waiting: recovery.waiting,
        dead: recovery.dead,
        took: recovery.took,
    }
    .emit();
    Ok(broker)
}

/// What the engine must hold for this application.
pub(crate) fn runtime_config_of(config: &Config, compiled_dir: &Path) -> RuntimeConfig {
    let jobs: usize = config
        .queues
        .iter()
        .map(|trigger| trigger.dispatch.concurrency)
        .sum();
    let requests = config.host.http.requests_in_flight_max * config.router.components().len();
    let memory = config
        .queues
        .iter()
        .map(|trigger| trigger.dispatch.limits.memory_bytes_max);
    RuntimeConfig {
        instances_max: u32::try_from(jobs + requests).unwrap_or(u32::MAX / 8) + INSTANCES_SPARE,
        memory_bytes_max: memory
            .chain([config.host.http.memory_bytes_max])
            .max()
            .unwrap_or_default(),
        compiled_dir: compiled_dir.to_owned(),
    }
}

async fn load_workers(
    config: &Config,
    runtime: &Runtime,
) -> Result<BTreeMap<String, Arc<WorkerSlot>>, HostError> {
    let mut workers: BTreeMap<String, Arc<WorkerSlot>> = BTreeMap::new();
    for trigger in &config.queues {
        let id = &trigger.component;
        if workers.contains_key(id) {
            continue;
        }
        let began = Instant::now();
        let component = &config.components[id];
        let bytes = read(id, component).await?;
        let size = bytes.len() as u64;
        let loaded = worker_of(config, trigger, runtime, bytes).await?;
        let digest = loaded.digest().to_owned();
        ComponentLoaded {
            component: id,
            digest: &digest,
            took: began.elapsed(),
        }
        .emit();
        let source = component.source.display().to_string();
        workers.insert(
            id.clone(),
            Arc::new(Slot::new(id, loaded, &digest, &source, size)),
        );
    }
    Ok(workers)
}

/// The worker that does a queue's jobs, made from these bytes.
pub(crate) async fn worker_of(
    config: &Config,
    trigger: &QueueTrigger,
    runtime: &Runtime,
    bytes: Vec<u8>,
) -> Result<Arc<WorkerComponent>, HostError> {
    let component = &config.components[&trigger.component];
    WorkerComponent::load(runtime, bytes, grants(component), trigger.dispatch.limits)
        .await
        .map_err(|error| refused(&trigger.component, &component.source, &error))
}

/// An HTTP component, made from these bytes.
pub(crate) async fn http_component_of(
    config: &Config,
    id: &str,
    runtime: &Runtime,
    bytes: Vec<u8>,
    outbox: Outbox,
    logs: LogSink,
) -> Result<Arc<HttpComponent>, HostError> {
    let component = &config.components[id];
    let limits = config.host.http.clone();
    HttpComponent::load(runtime, bytes, grants(component), limits, outbox, logs)
        .await
        .map_err(|error| refused(id, &component.source, &error))
}

/// A component's bytes.
pub(crate) async fn read(id: &str, component: &ComponentConfig) -> Result<Vec<u8>, HostError> {
    tokio::fs::read(&component.source).await.map_err(|error| {
        let hint = if component.build.is_some() {
            "; `--build` builds it"
        } else {
            ""
        };
        refused(
            id,
            &component.source,
            &format!("it cannot be read: {error}{hint}"),
        )
    })
}

fn refused(id: &str, path: &Path, why: &dyn std::fmt::Display) -> HostError {
    HostError::Component {
        id: id.to_owned(),
        path: path.display().to_string(),
        why: why.to_string(),
    }
}

fn grants(component: &ComponentConfig) -> Grants {
    Grants::new(
        component.variables.clone(),
        component.environment.clone(),
        component.allowed_hosts.clone(),
    )
}

fn log_sink(id: &str, telemetry: &Telemetry) -> LogSink {
    let (component, telemetry) = (id.to_owned(), telemetry.clone());
    LogSink::new(move |said| match said {
        Said::Line(line) => {
            let (level, message) = (line.level.as_str(), line.message.as_str());
            GuestSaid {
                component: &component,
                job: None,
                level,
                message,
            }
            .emit(&telemetry);
        }
        Said::Metric { name, value } => GuestMeasured {
            component: &component,
            name: &name,
            value,
        }
        .emit(&telemetry),
        Said::Crashed(error) => InstanceCrashed {
            component: &component,
            error: &error,
        }
        .emit(),
    })
}
