//! The names of the collector's metrics, in one place. All are counted per request, never per
//! event, and no label has more values than there are codes.

use metrics::{counter, histogram};
use std::time::Duration;

/// A metric of the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Counter: events in answers of 202, and clicks and pixels.
    EventsAccepted,
    /// Counter by `reason`: events that broke a rule.
    EventsRejected,
    /// Counter by `status`: answered requests.
    Requests,
    /// Counter: bytes of bodies as they came.
    BodyBytes,
    /// Histogram: from the last byte of a body to its frames.
    DecodeSeconds,
    /// Histogram: from the frames to the log's word that they are durable.
    AppendSeconds,
    /// Counter by `reason`: clicks and pixels that were kept as invalid.
    PixelsInvalid,
    /// Counter by `reason`: clicks and pixels that were not taken.
    PixelsRefused,
    /// Counter: pixels of an ad without metadata whose campaign nobody named.
    PixelsUnknownCampaign,
    /// Counter: clicks of IPs that found no room among the watched ones.
    IpsUnwatched,
    /// Counter: verdicts taken.
    VerdictsAccepted,
    /// Counter: verdicts that broke a rule.
    VerdictsRejected,
    /// Counter: answers given again for their `Idempotency-Key`.
    AnswersRepeated,
}

impl Metric {
    /// As Prometheus shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::EventsAccepted => "trueup_collector_events_accepted_total",
            Metric::EventsRejected => "trueup_collector_events_rejected_total",
            Metric::Requests => "trueup_collector_requests_total",
            Metric::BodyBytes => "trueup_collector_body_bytes_total",
            Metric::DecodeSeconds => "trueup_collector_decode_seconds",
            Metric::AppendSeconds => "trueup_collector_append_seconds",
            Metric::PixelsInvalid => "trueup_collector_pixels_invalid_total",
            Metric::PixelsRefused => "trueup_collector_pixels_refused_total",
            Metric::PixelsUnknownCampaign => "trueup_collector_pixels_unknown_campaign_total",
            Metric::IpsUnwatched => "trueup_collector_ips_unwatched_total",
            Metric::VerdictsAccepted => "trueup_collector_verdicts_accepted_total",
            Metric::VerdictsRejected => "trueup_collector_verdicts_rejected_total",
            Metric::AnswersRepeated => "trueup_collector_answers_repeated_total",
        }
    }

    pub(crate) fn add(self, n: usize) {
        counter!(self.name()).increment(n as u64);
    }

    pub(crate) fn add_by(self, label: &'static str, value: &'static str, n: usize) {
        counter!(self.name(), label => value).increment(n as u64);
    }

    pub(crate) fn observe(self, time: Duration) {
        histogram!(self.name()).record(time.as_secs_f64());
    }
}
