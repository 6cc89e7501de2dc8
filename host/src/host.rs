//! Assembly: builds every part from its section, starts them, stops them in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use orchestrator_engine::compose::Kind;
use orchestrator_engine::guest_log::{LogSink, Said};
use orchestrator_engine::http::HttpComponent;
use orchestrator_engine::{Outbox, Runtime, RuntimeConfig, WorkerComponent};
use orchestrator_queue::Retention;
use orchestrator_queue::local::{Broker, BrokerOptions, Clock, Health, OpenError};
use orchestrator_servicebus::client::{self, Namespace, QueueOptions, Reach};
use orchestrator_servicebus::server::Server;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::components::dependencies::composed;
use crate::components::store::VersionStore;
use crate::components::swapper::{self, Load, Unfit};
use crate::components::{self, HttpSlot, Place, Slot, Swapper, TrustedKeys, WorkerSlot};
use crate::config::{ComponentConfig, Config, QueueTrigger};
use crate::dispatch::{Dispatcher, Stop};
use crate::ingest::{self, Application, IngestConfig};
use crate::ops::{self, Operations};
use crate::queue::Queue;
use crate::service_bus_keys::{self, KeysError};
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

/// Jobs that a host without a queue of its own remembers.
const JOBS_KEPT: Retention = Retention {
    age: Duration::from_secs(24 * 3600),
    count: 100_000,
    bytes: 256 * 1024 * 1024,
};

/// How the host is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address of the application listener; none where another program serves HTTP.
    pub listen: Option<SocketAddr>,
    /// Address of the operations listener.
    pub ops_listen: SocketAddr,
    /// Address of the Service Bus listener, if there is to be one.
    pub servicebus_listen: Option<SocketAddr>,
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
    /// The queues are not kept here, so they cannot be served either.
    #[error(
        "`--servicebus-listen` serves the embedded queue, and this host uses Service Bus at {0}: leave one of them out"
    )]
    NothingToServe(String),
    /// The Service Bus listener would send keys and messages in the clear.
    #[error(
        "the Service Bus listener does not bind {0}: it speaks plain HTTP, so use a loopback address, and a proxy with TLS for other machines"
    )]
    ServiceBusUnprotected(SocketAddr),
    /// What the state directory says of trusted components cannot be read.
    #[error(transparent)]
    TrustedKeys(#[from] components::KeysError),
    /// The keys of the Service Bus listener cannot be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Service Bus cannot be used.
    #[error(transparent)]
    ServiceBus(#[from] client::ConnectError),
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
    Store(#[from] OpenError),
    /// The store failed for good.
    #[error("{0}")]
    Poisoned(String),
}

impl HostError {
    /// Whether another run of this application has what this one needs, and may
    /// let go of it. A host that stops lets go of its store last, so a port that
    /// is still in use then is another program's.
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, OpenError::Locked(_)),
            Self::ServiceBus(error) => error.is_taken(),
            _ => false,
        }
    }
}

/// A host that is built: sockets bound, store open, components checked.
pub struct Host {
    application: Arc<Application>,
    operations: Arc<Operations>,
    dispatchers: Vec<Dispatcher>,
    store: Store,
    health: watch::Receiver<Health>,
    app_listener: Option<TcpListener>,
    ops_listener: TcpListener,
    servicebus: Option<(TcpListener, Server)>,
    swapper: Swapper,
    swapping: BoxFuture<'static, ()>,
    /// Component, its file, and the digest of what was read from it.
    watched: Vec<(String, PathBuf, Option<String>)>,
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
        if let Some(addr) = options.servicebus_listen
            && !addr.ip().is_loopback()
        {
            return Err(HostError::ServiceBusUnprotected(addr));
        }
        // First: it tells an earlier run of this application from a stranger.
        let store = open_store(&config, &options)?;
        let servicebus_listener = match options.servicebus_listen {
            Some(addr) => Some(bind(addr, "--servicebus-listen")?),
            None => None,
        };
        let app_listener = match options.listen {
            Some(addr) => Some(bind(addr, "--listen")?),
            None => None,
        };
        let ops_listener = bind(options.ops_listen, "--ops-listen")?;
        let queues: Vec<Queue> = store
            .queues(&config)
            .into_iter()
            .zip(&config.queues)
            .map(|(queue, trigger)| queue.with_chaos(trigger.dispatch.chaos))
            .collect();
        let health = store.health();
        let servicebus = match (servicebus_listener, &store) {
            (None, _) => None,
            (Some(listener), Store::Embedded(broker)) => {
                let verifier = service_bus_keys::verifier(&options.state_dir)?;
                Some((listener, Server::new(broker.all(), verifier)))
            }
            (Some(_), Store::ServiceBus(namespace)) => {
                return Err(HostError::NothingToServe(namespace.origin().to_owned()));
            }
        };
        let runtime = Runtime::new(&runtime_config_of(&config, &options.compiled_dir))?;
        let config = Arc::new(config);
        let outbox = ingest::outbox(
            &queues,
            config.host.default_queue.as_deref(),
            telemetry.clone(),
        );
        let keys = TrustedKeys::read(&options.state_dir)?;
        let loading = Loading {
            config: config.clone(),
            runtime,
            versions: VersionStore::new(&options.state_dir),
            keys: keys.clone(),
            telemetry: telemetry.clone(),
            builder: swapper::Builder::new(),
            watched: Vec::new(),
        };
        let (workers, http, loading) = loading.all(&outbox).await?;
        let (swapper, swapping) = loading
            .builder
            .build(loading.versions, keys, telemetry.clone());
        let stop = Stop::default();
        let dispatchers: Vec<Dispatcher> = config
            .queues
            .iter()
            .zip(&queues)
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
        for dispatcher in &dispatchers {
            telemetry.metrics().know_queue(dispatcher.queue().name());
        }
        for seen in swapper.all() {
            telemetry.metrics().know_component(&seen.id);
        }
        let application = Arc::new(Application {
            router: config.router.clone(),
            components: http.clone(),
            queues: config
                .queues
                .iter()
                .zip(queues)
                .map(|(trigger, queue)| (queue, trigger.dispatch.attempts_max))
                .collect(),
            telemetry: telemetry.clone(),
        });
        let operations = Arc::new(Operations {
            swapper: swapper.clone(),
            dispatchers: dispatchers.clone(),
            health: health.clone(),
            stopping: stop.receiving.clone(),
            token: options.ops_token,
            telemetry,
        });
        Ok(Self {
            application,
            operations,
            dispatchers,
            store,
            health,
            app_listener,
            ops_listener,
            servicebus,
            swapper,
            swapping: Box::pin(swapping),
            watched: loading.watched,
            stop,
            shutdown_timeout: config.host.shutdown_timeout,
            request_timeout: config.host.http.request_timeout,
        })
    }

    /// Where the application listener is, if there is one.
    pub fn application_address(&self) -> Option<SocketAddr> {
        self.app_listener.as_ref()?.local_addr().ok()
    }

    /// Where the operations listener is.
    pub fn operations_address(&self) -> std::io::Result<SocketAddr> {
        self.ops_listener.local_addr()
    }

    /// Where the Service Bus listener is, if there is one.
    pub fn servicebus_address(&self) -> Option<SocketAddr> {
        let (listener, _) = self.servicebus.as_ref()?;
        listener.local_addr().ok()
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
        for (listener, addr) in [
            ("application", self.application_address()),
            ("operations", self.operations_address().ok()),
            ("servicebus", self.servicebus_address()),
        ] {
            if let Some(addr) = addr {
                ListenerOpened { listener, addr }.emit();
            }
        }
        let ops_stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        for dispatcher in self.dispatchers {
            tasks.spawn_on(dispatcher.run(), &jobs);
        }
        if let Some(listener) = self.app_listener {
            let ingest = IngestConfig {
                connections_max: CONNECTIONS_MAX,
                request_timeout: self.request_timeout,
            };
            tasks.spawn(ingest::serve(
                listener,
                self.application,
                ingest,
                self.stop.receiving.clone(),
            ));
        }
        if let Some((listener, server)) = self.servicebus {
            tasks.spawn(server.serve(listener, self.stop.receiving.clone()));
        }
        // Not waited for: what it has not published by then, a restart does.
        let swapping = tokio::spawn(self.swapping);
        for (id, path, digest) in self.watched {
            let stop = self.stop.receiving.clone();
            tokio::spawn(components::watch(
                self.swapper.clone(),
                id,
                path,
                digest,
                stop,
            ));
        }
        let ops_server = tokio::spawn(ops::serve(
            self.ops_listener,
            self.operations,
            ops_stop.clone(),
        ));
        tasks.close();

        let poisoned = tokio::select! {
            () = shutdown => None,
            reason = watch_health(self.health) => Some(reason),
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
        swapping.abort();
        self.swapper.close();
        ops_stop.cancel();
        // A client that stalls in the middle of a request does not hold the stop up.
        let _ = tokio::time::timeout(GIVE_BACK_MAX, ops_server).await;
        if let Store::Embedded(broker) = self.store {
            broker.close().await;
        }
        Stopped.emit();
        poisoned.map_or(Ok(()), |reason| Err(HostError::Poisoned(reason)))
    }
}

/// Time to settle what is given back when the deadline has passed.
const GIVE_BACK_MAX: Duration = Duration::from_secs(5);

/// Tells changes of the store's health; ends with the reason once it is poisoned.
async fn watch_health(mut health: watch::Receiver<Health>) -> String {
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
    // The sender lives as long as the store.
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

/// What keeps the queues.
enum Store {
    Embedded(Broker),
    ServiceBus(Namespace),
}

impl Store {
    /// The manifest's queues, in its order.
    fn queues(&self, config: &Config) -> Vec<Queue> {
        match self {
            Self::Embedded(broker) => broker.queues().iter().cloned().map(Queue::from).collect(),
            Self::ServiceBus(namespace) => config
                .queues
                .iter()
                .map(|trigger| {
                    let name = trigger.queue.name.clone();
                    namespace.queue(QueueOptions { name }).into()
                })
                .collect(),
        }
    }

    /// Whether jobs can be accepted.
    fn health(&self) -> watch::Receiver<Health> {
        match self {
            Self::Embedded(broker) => broker.health(),
            Self::ServiceBus(namespace) => {
                let (told, health) = watch::channel(Health::Ready);
                let mut reach = namespace.reach();
                tokio::spawn(async move {
                    while reach.changed().await.is_ok() {
                        let now = match reach.borrow_and_update().clone() {
                            Reach::Up => Health::Ready,
                            Reach::Down { reason } => Health::Degraded { reason },
                        };
                        told.send_replace(now);
                    }
                });
                health
            }
        }
    }
}

fn open_store(config: &Config, options: &Options) -> Result<Store, HostError> {
    if let Some(connection) = &config.host.service_bus {
        let retention = config
            .queues
            .first()
            .map_or(JOBS_KEPT, |trigger| trigger.queue.retention);
        return Ok(Store::ServiceBus(Namespace::new(
            connection,
            &options.state_dir,
            retention,
        )?));
    }
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
    Ok(Store::Embedded(broker))
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

/// What loading the first version of each component needs, and leaves.
struct Loading {
    config: Arc<Config>,
    runtime: Runtime,
    versions: VersionStore,
    keys: TrustedKeys,
    telemetry: Telemetry,
    builder: swapper::Builder,
    watched: Vec<(String, PathBuf, Option<String>)>,
}

type Workers = BTreeMap<String, Arc<WorkerSlot>>;

impl Loading {
    async fn all(
        mut self,
        outbox: &Outbox,
    ) -> Result<(Workers, Vec<Arc<HttpSlot>>, Self), HostError> {
        let config = self.config.clone();
        let mut workers = Workers::new();
        for trigger in &config.queues {
            let id = &trigger.component;
            if workers.contains_key(id) {
                continue;
            }
            let (config, runtime) = (config.clone(), self.runtime.clone());
            let (trigger, keys) = (trigger.clone(), self.keys.clone());
            let canary = trigger.canary;
            let load: Load<WorkerComponent> = Box::new(move |bytes| {
                let (config, runtime, trigger) = (config.clone(), runtime.clone(), trigger.clone());
                let keys = keys.clone();
                Box::pin(async move {
                    let component = &config.components[&trigger.component];
                    let source = composed(component, Kind::Worker, &keys, bytes).await?;
                    let limits = trigger.dispatch.limits;
                    let loaded =
                        WorkerComponent::load(&runtime, source, component.grants(), limits).await;
                    loaded.map_err(Unfit::from)
                })
            });
            workers.insert(id.clone(), self.one(id, "worker", canary, load).await?);
        }
        let mut http = Vec::new();
        for id in config.router.components() {
            let (config, runtime) = (config.clone(), self.runtime.clone());
            let (name, outbox, keys) = (id.clone(), outbox.clone(), self.keys.clone());
            let sink = log_sink(id, &self.telemetry);
            // Shared by all versions: two of them serve no more than one did.
            let permits = config.host.http.permits();
            let load: Load<HttpComponent> = Box::new(move |bytes| {
                let (config, runtime, name) = (config.clone(), runtime.clone(), name.clone());
                let (outbox, sink, permits) = (outbox.clone(), sink.clone(), permits.clone());
                let keys = keys.clone();
                Box::pin(async move {
                    let component = &config.components[&name];
                    let source = composed(component, Kind::Http, &keys, bytes).await?;
                    let (grants, limits) = (component.grants(), config.host.http.clone());
                    HttpComponent::load(&runtime, source, grants, limits, permits, outbox, sink)
                        .await
                        .map_err(Unfit::from)
                })
            });
            http.push(self.one(id, "http", None, load).await?);
        }
        Ok((workers, http, self))
    }

    async fn one<T: swapper::Component>(
        &mut self,
        id: &str,
        kind: &'static str,
        canary: Option<f64>,
        load: Load<T>,
    ) -> Result<Arc<Slot<T>>, HostError> {
        let began = Instant::now();
        let component = &self.config.components[id];
        let path = component.source.clone();
        let in_file = read_file(component).await;
        let first = swapper::first(&self.versions, &self.keys, id, &path, in_file, &load)
            .await
            .map_err(|why| HostError::Component {
                id: id.to_owned(),
                path: path.display().to_string(),
                why,
            })?;
        ComponentLoaded {
            component: id,
            digest: &first.loaded.version.digest,
            took: began.elapsed(),
        }
        .emit();
        self.watched.push((id.to_owned(), path, first.in_file));
        let slot = Arc::new(Slot::new(id, first.loaded));
        let place = Place {
            slot: slot.clone(),
            load,
            kind,
            canary,
        };
        self.builder.add(place, first.record);
        Ok(slot)
    }
}

/// The worker that does a queue's jobs, made from these bytes.
pub(crate) async fn worker_of(
    config: &Config,
    trigger: &QueueTrigger,
    runtime: &Runtime,
    keys: &TrustedKeys,
    bytes: Vec<u8>,
) -> Result<Arc<WorkerComponent>, HostError> {
    let component = &config.components[&trigger.component];
    let loaded = async {
        let source = composed(component, Kind::Worker, keys, bytes).await?;
        let limits = trigger.dispatch.limits;
        WorkerComponent::load(runtime, source, component.grants(), limits).await
    };
    loaded
        .await
        .map_err(|error| refused(&trigger.component, &component.source, &error))
}

/// An HTTP component, made from these bytes.
pub(crate) async fn http_component_of(
    config: &Config,
    id: &str,
    runtime: &Runtime,
    keys: &TrustedKeys,
    bytes: Vec<u8>,
    outbox: Outbox,
    logs: LogSink,
) -> Result<Arc<HttpComponent>, HostError> {
    let component = &config.components[id];
    let limits = config.host.http.clone();
    let permits = limits.permits();
    let loaded = async {
        let source = composed(component, Kind::Http, keys, bytes).await?;
        let grants = component.grants();
        HttpComponent::load(runtime, source, grants, limits, permits, outbox, logs).await
    };
    loaded
        .await
        .map_err(|error| refused(id, &component.source, &error))
}

/// A component's bytes.
pub(crate) async fn read(id: &str, component: &ComponentConfig) -> Result<Vec<u8>, HostError> {
    read_file(component)
        .await
        .map_err(|why| refused(id, &component.source, &why))
}

async fn read_file(component: &ComponentConfig) -> Result<Vec<u8>, String> {
    let read = tokio::fs::read(&component.source).await;
    read.map_err(|error| {
        let hint = if component.build.is_some() {
            "; `--build` builds it"
        } else {
            ""
        };
        format!("it cannot be read: {error}{hint}")
    })
}

fn refused(id: &str, path: &Path, why: &dyn std::fmt::Display) -> HostError {
    HostError::Component {
        id: id.to_owned(),
        path: path.display().to_string(),
        why: why.to_string(),
    }
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
