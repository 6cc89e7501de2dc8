//! What one instance owns on the host's side, and the host functions that a
//! guest reaches through it.

use std::collections::BTreeSet;
use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::bindings::{queue, telemetry, types};
use crate::compose::Capability;
use crate::guest_log::{GuestLog, Level};
use crate::limits::MemoryLimit;
use crate::outbound::{AllowedHosts, OutboundHooks};
use crate::outbox::{Outbox, OutboxError, OutboxMessage, OutboxReceipt};
use crate::variables::Variables;

/// Messages that one `send-many` may hold.
const SEND_MANY_MAX: usize = 1_000;

/// What the manifest lets a component see. Without it: nothing.
#[derive(Clone, Default)]
pub struct Grants {
    /// Variables, read through `wasi:config/store` or Spin's own interfaces.
    pub variables: Arc<Variables>,
    /// Environment variables.
    pub environment: Arc<[(String, String)]>,
    /// Hosts it may call over HTTP.
    pub allowed_hosts: AllowedHosts,
}

impl Grants {
    /// Grants of a manifest's component.
    pub fn new(
        variables: impl IntoIterator<Item = (String, String)>,
        environment: impl IntoIterator<Item = (String, String)>,
        allowed_hosts: AllowedHosts,
    ) -> Self {
        Self {
            variables: Arc::new(variables.into_iter().collect()),
            environment: environment.into_iter().collect(),
            allowed_hosts,
        }
    }

    /// Which kinds of things it grants any of.
    pub fn capabilities(&self) -> BTreeSet<Capability> {
        [
            (
                Capability::AllowedOutboundHosts,
                !self.allowed_hosts.is_empty(),
            ),
            (Capability::Environment, !self.environment.is_empty()),
            (Capability::Variables, !self.variables.is_empty()),
        ]
        .into_iter()
        .filter_map(|(capability, is_granted)| is_granted.then_some(capability))
        .collect()
    }
}

/// The data of one store.
pub(crate) struct GuestState {
    wasi: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    hooks: OutboundHooks,
    variables: Arc<Variables>,
    pub memory: MemoryLimit,
    pub log: GuestLog,
    outbox: Option<Outbox>,
}

impl GuestState {
    pub fn new(
        grants: &Grants,
        memory_bytes_max: usize,
        log: GuestLog,
        outbox: Option<Outbox>,
    ) -> Self {
        let mut wasi = WasiCtx::builder();
        wasi.stdout(log.stream(Level::Stdout))
            .stderr(log.stream(Level::Stderr));
        // Sockets would go around `allowed_outbound_hosts`.
        wasi.allow_tcp(false).allow_udp(false);
        if !grants.environment.is_empty() {
            wasi.envs(&grants.environment);
        }
        Self {
            wasi: wasi.build(),
            table: ResourceTable::new(),
            http: WasiHttpCtx::new(),
            hooks: OutboundHooks {
                allowed: grants.allowed_hosts.clone(),
                traceparent: None,
            },
            variables: grants.variables.clone(),
            memory: MemoryLimit::new(memory_bytes_max),
            log,
            outbox,
        }
    }

    /// What the guest calls from now on belongs to this trace.
    pub fn trace(&mut self, traceparent: Option<&str>) {
        self.hooks.traceparent = traceparent.and_then(|text| text.parse().ok());
    }

    pub fn variables(&self) -> &Variables {
        &self.variables
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for GuestState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

impl types::Host for GuestState {}

impl telemetry::Host for GuestState {
    fn log(&mut self, level: telemetry::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            telemetry::Level::Debug => Level::Debug,
            telemetry::Level::Info => Level::Info,
            telemetry::Level::Warn => Level::Warn,
            telemetry::Level::Error => Level::Error,
        };
        self.log.log(level, &message);
        Ok(())
    }

    fn log_error(&mut self, message: String) -> wasmtime::Result<()> {
        self.log.log(Level::Error, &message);
        Ok(())
    }

    fn log_metric(&mut self, name: String, value: f64) -> wasmtime::Result<()> {
        self.log.metric(&name, value);
        Ok(())
    }
}

impl queue::Host for GuestState {}

type SendResult = Result<queue::Receipt, queue::SendError>;

impl queue::HostWithStore<GuestState> for HasSelf<GuestState> {
    async fn send(
        accessor: &Accessor<GuestState, Self>,
        message: types::Message,
    ) -> wasmtime::Result<SendResult> {
        let mut answers = send_all(accessor, vec![message]).await;
        Ok(answers.pop().unwrap_or_else(|| Err(unanswered())))
    }

    async fn send_many(
        accessor: &Accessor<GuestState, Self>,
        messages: Vec<types::Message>,
    ) -> wasmtime::Result<Vec<SendResult>> {
        if messages.len() > SEND_MANY_MAX {
            let refusal = format!(
                "{} messages at once; at most {SEND_MANY_MAX} are taken",
                messages.len()
            );
            return Ok(messages
                .iter()
                .map(|_| Err(queue::SendError::Invalid(refusal.clone())))
                .collect());
        }
        Ok(send_all(accessor, messages).await)
    }
}

async fn send_all(
    accessor: &Accessor<GuestState, HasSelf<GuestState>>,
    messages: Vec<types::Message>,
) -> Vec<SendResult> {
    let Some(outbox) = accessor.with(|mut access| access.get().outbox.clone()) else {
        return messages.iter().map(|_| Err(unanswered())).collect();
    };
    let answers = outbox
        .send(messages.into_iter().map(outbox_message).collect())
        .await;
    answers
        .into_iter()
        .map(|answer| answer.map(receipt).map_err(send_error))
        .collect()
}

fn unanswered() -> queue::SendError {
    queue::SendError::Unavailable("this host has no queue for this component".to_owned())
}

fn outbox_message(message: types::Message) -> OutboxMessage {
    OutboxMessage {
        id: message.id,
        job_type: message.job_type,
        payload: message.payload,
        content_type: message.content_type,
        properties: message
            .properties
            .into_iter()
            .map(|p| (p.name, p.value))
            .collect(),
        delay_ms: message.delay_ms.unwrap_or(0),
        queue: message.queue,
        traceparent: message.traceparent,
    }
}

fn receipt(receipt: OutboxReceipt) -> queue::Receipt {
    queue::Receipt {
        id: receipt.id,
        duplicate: receipt.duplicate,
    }
}

fn send_error(error: OutboxError) -> queue::SendError {
    match error {
        OutboxError::Invalid(why) => queue::SendError::Invalid(why),
        OutboxError::Full => queue::SendError::Full,
        OutboxError::Unavailable(why) => queue::SendError::Unavailable(why),
    }
}
