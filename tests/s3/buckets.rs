//! Buckets of the service that the environment names.

use std::{
    process::id,
    sync::atomic::{AtomicU32, Ordering},
    time::UNIX_EPOCH,
};

/// Where the service is, as `http://host:port`.
pub(crate) fn endpoint() -> String {
    let named = std::env::var("AWS_ENDPOINT");
    named.expect("AWS_ENDPOINT names a service that speaks S3; `.ci/run s3` starts one")
}

/// A name that no other test and no other run has.
pub(crate) fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = UNIX_EPOCH.elapsed().unwrap().as_millis();
    format!("trueup-{}-{now}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A new bucket's name.
pub(crate) fn fresh() -> String {
    let name = fresh_name();
    let made = ureq::put(format!("{}/{name}", endpoint())).send_empty().unwrap();
    assert_eq!(made.status(), 200, "the bucket {name}");
    name
}

/// What the service says of the uploads of a bucket that were begun and not ended.
pub(crate) fn uploads(bucket: &str) -> String {
    let asked = ureq::get(format!("{}/{bucket}?uploads", endpoint())).call();
    asked.unwrap().body_mut().read_to_string().unwrap()
}
