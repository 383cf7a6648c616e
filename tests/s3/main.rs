//! Checkpoints in a bucket, against a service that speaks S3: what the store promises holds there,
//! a server that was killed goes on from it, and what is wrong with it is told. `.ci/run s3` starts
//! a service (moto) and sets what an operator sets (`AWS_ENDPOINT`, `AWS_ACCESS_KEY_ID`, …);
//! without these the tests fail.
//!
//! What moto cannot show is who wins of two conditional writes at the very same instant: it looks
//! first and writes then. So the tests publish one after the other, and the race is left to the
//! service's own promise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "what the end-to-end tests share is not all needed here")]

#[path = "../it/client.rs"]
mod client;
#[path = "../it/mesh/proxy.rs"]
mod proxy;
#[path = "../it/server.rs"]
mod server;
#[path = "../it/traffic.rs"]
mod traffic;

mod buckets;
mod lives;
mod promises;
mod wrong;
