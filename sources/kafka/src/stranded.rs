//! Clients that have no broker left to ask.
//!
//! Brokers whose sessions ran out all at once (one that was alone and stood still, a quorum that
//! did) answer for a moment that the cluster has no brokers. A client of librdkafka that hears it
//! lets go of those that it had, the ones that it was configured with among them, and can be left
//! with none for good, while any new client finds them at once. It then neither reads nor sends
//! until the process is started again.
//!
//! So when a client has no answer, a new one is asked the same. If that one is answered, the
//! brokers are there, and the old clients are given their addresses once more. A client that does
//! not need them lets go of them with the next answer; it keeps the addresses, a line each time.

use crate::clients::Traced;
use rdkafka::{
    bindings as c,
    client::{Client, ClientContext},
    consumer::{BaseConsumer, Consumer},
};
use std::{ffi::CString, time::Duration};

/// Whether the cluster answers one who asks for the first time, and says that it has brokers.
pub(crate) fn has_brokers(client: &BaseConsumer<Traced>, timeout: Duration) -> bool {
    let answer = client.fetch_metadata(None, timeout);
    answer.is_ok_and(|metadata| !metadata.brokers().is_empty())
}

/// Gives a client addresses of brokers, besides those that it has.
pub(crate) fn give_brokers<C: ClientContext>(client: &Client<C>, brokers: &str) {
    // The settings were taken by this very client once, so that they hold no null.
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the client lives as long as it is borrowed, and librdkafka copies the text.
    let taken = unsafe { c::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    tracing::debug!(taken, "a client was given brokers");
}
