//! Sampling by trace id, with the score that Application Insights' own SDKs
//! use: every node of a trace comes to the same decision without asking.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

use crate::convert::SAMPLE_RATE;

/// Keeps this share of all traces, whole.
#[derive(Clone, Copy, Debug)]
pub struct TraceIdSampler {
    ratio: f64,
}

impl TraceIdSampler {
    /// `ratio` from 0 to 1.
    pub fn new(ratio: f64) -> Self {
        Self {
            ratio: ratio.clamp(0.0, 1.0),
        }
    }
}

/// DJB2 over the trace id's 32 hexadecimal characters, from 0 to 1.
fn score(trace_id: TraceId) -> f64 {
    let hash = trace_id.to_string().bytes().fold(5_381_i32, |hash, byte| {
        hash.wrapping_mul(33).wrapping_add(i32::from(byte))
    });
    f64::from(hash.checked_abs().unwrap_or(i32::MAX)) / f64::from(i32::MAX)
}

impl ShouldSample for TraceIdSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let is_kept = self.ratio >= 1.0 || score(trace_id) < self.ratio;
        let state = parent.map(|parent| parent.span().span_context().trace_state().clone());
        SamplingResult {
            decision: if is_kept {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::Drop
            },
            attributes: vec![KeyValue::new(SAMPLE_RATE, self.ratio * 100.0)],
            trace_state: state.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_official_exporters_formula() {
        // Computed with the formula in Python: hash = hash * 33 + ord(c), as a
        // wrapping 32-bit number.
        let id = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").expect("hexadecimal");
        let mut hash: i64 = 5_381;
        for byte in "0af7651916cd43dd8448eb211c80319c".bytes() {
            hash = (hash * 33 + i64::from(byte) + (1 << 31)).rem_euclid(1 << 32) - (1 << 31);
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
        let expected = hash.unsigned_abs() as f64 / f64::from(i32::MAX);
        assert!((score(id) - expected).abs() < 1e-12);
    }

    #[test]
    fn a_share_is_kept() {
        let kept = (1..=10_000_u128)
            .filter(|n| {
                score(TraceId::from(
                    n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
                )) < 0.25
            })
            .count();
        assert!((2_200..2_800).contains(&kept), "{kept} of 10,000");
    }
}
