//! The engine, its instance pool, and the ticker that interrupts guests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{HasSelf, Linker};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Result,
};

use crate::bindings::{queue, telemetry, types};
use crate::compiled::CompiledCache;
use crate::state::GuestState;
use crate::variables;

/// How often running guests yield to the runtime. A busy guest holds a thread
/// for at most this long before others get their turn; shorter costs wake-ups.
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// Memory of a freed instance that is kept mapped (and zeroed) for the next
/// one. A small Rust guest touches less than this, so starting one faults no
/// page; measured, it makes a fresh instance four times as fast.
const KEEP_RESIDENT_BYTES: usize = 1024 * 1024;
/// The same for a guest's stack, which is touched far less.
const STACK_KEEP_RESIDENT_BYTES: usize = 64 * 1024;
/// Core modules, memories, tables per component: room for interpreters that
/// are linked from many modules, such as Python's.
const CORE_INSTANCES_PER_COMPONENT_MAX: u32 = 200;
const MEMORIES_PER_COMPONENT_MAX: u32 = 8;
const TABLES_PER_COMPONENT_MAX: u32 = 64;
/// Core instances to have ready for each component instance: a Rust component
/// has three (itself and two that its linker adds).
const CORE_INSTANCES_EACH: u32 = 4;
/// Instance metadata of one component, in bytes: enough for interpreters.
const INSTANCE_METADATA_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Entries of one table; the JavaScript and Python engines stay under 50,000.
const TABLE_ENTRIES_MAX: usize = 65_536;

/// What the engine must have room for.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Component instances that may live at one time, all components together.
    pub instances_max: u32,
    /// The largest memory limit of any component, in bytes.
    pub memory_bytes_max: usize,
    /// Where compiled code is kept, by digest. Created when missing.
    pub compiled_dir: PathBuf,
}

/// The engine that every component of this host runs on. Clones share it.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    engine: Engine,
    workers: Linker<GuestState>,
    http: Linker<GuestState>,
    compiled: CompiledCache,
    pooled: bool,
}

/// The engine could not be set up: the machine's fault, not a component's.
#[derive(Debug, thiserror::Error)]
#[error("the WebAssembly engine cannot start: {0}")]
pub struct RuntimeError(String);

impl Runtime {
    /// Sets up the engine and starts its ticker, which ends with the engine.
    pub fn new(config: &RuntimeConfig) -> std::result::Result<Self, RuntimeError> {
        // Where address space is rationed (containers with a limit on virtual
        // memory) the pool cannot be reserved; guests then start slower.
        let (engine, pooled) = match Engine::new(&settings(Some(config))) {
            Ok(engine) => (engine, true),
            Err(_) => (Engine::new(&settings(None)).map_err(runtime_error)?, false),
        };
        start_ticker(&engine).map_err(|error| RuntimeError(error.to_string()))?;
        let workers = worker_linker(&engine).map_err(runtime_error)?;
        let http = http_linker(&engine).map_err(runtime_error)?;
        let compiled = CompiledCache::new(&config.compiled_dir, &engine);
        Ok(Self(Arc::new(Inner {
            engine,
            workers,
            http,
            compiled,
            pooled,
        })))
    }

    /// False if instances are allocated one by one, which is slower.
    pub fn is_pooled(&self) -> bool {
        self.0.pooled
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(crate) fn worker_linker(&self) -> &Linker<GuestState> {
        &self.0.workers
    }

    pub(crate) fn http_linker(&self) -> &Linker<GuestState> {
        &self.0.http
    }

    pub(crate) fn compiled(&self) -> &CompiledCache {
        &self.0.compiled
    }
}

fn runtime_error(error: wasmtime::Error) -> RuntimeError {
    RuntimeError(format!("{error:#}"))
}

fn settings(pool: Option<&RuntimeConfig>) -> Config {
    let mut config = Config::new();
    config.wasm_component_model(true);
    config.wasm_component_model_async(true);
    config.epoch_interruption(true);
    if let Some(limits) = pool {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(limits.instances_max);
        pool.total_core_instances(
            limits.instances_max * CORE_INSTANCES_EACH + CORE_INSTANCES_PER_COMPONENT_MAX,
        );
        pool.total_memories(limits.instances_max + MEMORIES_PER_COMPONENT_MAX);
        pool.total_tables(limits.instances_max * CORE_INSTANCES_EACH + TABLES_PER_COMPONENT_MAX);
        pool.total_stacks(limits.instances_max * 2);
        pool.max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX);
        pool.max_memories_per_component(MEMORIES_PER_COMPONENT_MAX);
        pool.max_tables_per_component(TABLES_PER_COMPONENT_MAX);
        pool.max_component_instance_size(INSTANCE_METADATA_BYTES_MAX);
        pool.max_core_instance_size(INSTANCE_METADATA_BYTES_MAX);
        pool.table_elements(TABLE_ENTRIES_MAX);
        pool.max_memory_size(limits.memory_bytes_max);
        pool.linear_memory_keep_resident(KEEP_RESIDENT_BYTES);
        pool.table_keep_resident(KEEP_RESIDENT_BYTES);
        pool.async_stack_keep_resident(STACK_KEEP_RESIDENT_BYTES);
        // Asks the kernel which pages were touched and zeroes only those.
        // Keeping pages resident without it is slower than not keeping them.
        pool.pagemap_scan(Enabled::Auto);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// Advances the epoch for as long as the engine lives. A thread, not a task:
/// it must tick precisely when every runtime thread is held by a guest.
fn start_ticker(engine: &Engine) -> std::io::Result<()> {
    let engine = engine.weak();
    std::thread::Builder::new()
        .name("epoch-ticker".to_owned())
        .spawn(move || {
            while let Some(engine) = engine.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(TICK);
            }
        })?;
    Ok(())
}

/// What every guest gets. WASI 0.2 as well as 0.3, because the standard
/// libraries of guest languages still stand on 0.2.
fn standard_linker(engine: &Engine) -> Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    variables::add_to_linker(&mut linker)?;
    types::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    telemetry::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}

fn worker_linker(engine: &Engine) -> Result<Linker<GuestState>> {
    standard_linker(engine)
}

fn http_linker(engine: &Engine) -> Result<Linker<GuestState>> {
    let mut linker = standard_linker(engine)?;
    queue::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}
