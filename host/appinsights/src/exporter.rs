//! The SDK's exporters, over one [`Transport`].

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use opentelemetry::Key;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::convert::{self, Common};
use crate::transport::Transport;

/// Exports spans, logs and metrics. Clones share one transport.
#[derive(Clone, Debug)]
pub struct Exporter {
    transport: Transport,
    common: Arc<RwLock<Common>>,
}

impl Exporter {
    /// An exporter for the resource with this instrumentation key.
    pub fn new(transport: Transport, instrumentation_key: &str) -> Self {
        let common = Common {
            key: instrumentation_key.to_owned(),
            ..Common::default()
        };
        Self {
            transport,
            common: Arc::new(RwLock::new(common)),
        }
    }

    fn common(&self) -> Common {
        let common = self.common.read().unwrap_or_else(PoisonError::into_inner);
        common.clone()
    }

    fn resource(&self, resource: &Resource) {
        let text = |name: &'static str| {
            let value = resource.get(&Key::from_static_str(name));
            value.map_or(String::new(), |value| value.as_str().into_owned())
        };
        let mut common = self.common.write().unwrap_or_else(PoisonError::into_inner);
        common.role = text("service.name");
        common.instance = text("service.instance.id");
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let common = self.common();
        for span in &batch {
            for item in convert::span(&common, span) {
                self.transport.offer(item);
            }
        }
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource(resource);
    }
}

impl LogExporter for Exporter {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let common = self.common();
        for (record, scope) in batch.iter() {
            self.transport.offer(convert::log(&common, record, scope));
        }
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource(resource);
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let common = self.common();
        for item in convert::metrics(&common, metrics) {
            self.transport.offer(item);
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        // The transport is flushed once, when all exporters are done.
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        // The service adds values up by itself.
        Temporality::Delta
    }
}
