//! The brokers, and what is done to them.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio, id},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::UNIX_EPOCH,
};

static BROKERS: RwLock<()> = RwLock::new(());

/// Held by a test that only uses the brokers.
pub(crate) fn beside() -> RwLockReadGuard<'static, ()> {
    BROKERS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that breaks them.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    BROKERS.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn addresses() -> String {
    std::env::var("TRUEUP_KAFKA_BROKERS")
        .expect("TRUEUP_KAFKA_BROKERS names brokers; `.ci/run kafka` starts some")
}

/// How many brokers there are.
pub(crate) fn count() -> usize {
    addresses().split(',').count()
}

/// Tells `.ci/kafka` to do something to a broker, the first one being 1.
pub(crate) fn control(what: &str, broker: usize) {
    assert!(std::env::var("KAFKA_DIR").is_ok(), "KAFKA_DIR is where .ci/kafka keeps its brokers");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".ci/kafka");
    let status = Command::new(script).args([what, &broker.to_string()]).status().unwrap();
    assert!(status.success(), "{what} {broker}: {status}");
}

/// A configuration with topics that no other test and no other run has, and their names' beginning.
pub(crate) fn configured(more: &str, encoding: &str) -> (String, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = UNIX_EPOCH.elapsed().unwrap().as_millis();
    let name = format!("s-{}-{now}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let config = format!(
        r#"
{more}
[log]
kind = "kafka"
partitions = 4
[kafka]
brokers = "{}"
events_topic = "{name}-events"
verdicts_topic = "{name}-verdicts"
metadata_topic = "{name}-metadata"
remap_topic = "{name}-remap"
replication_factor = {}
delivery_timeout = "5s"
encoding = "{encoding}"
"#,
        addresses(),
        count().min(3),
    );
    (config, name)
}

/// Somebody else's producer, kcat: a message a line, to one partition.
pub(crate) fn produce(topic: &str, partition: usize, lines: &[String]) {
    produce_as(topic, partition, &[], lines);
}

/// The same with more options of kcat's.
pub(crate) fn produce_as(topic: &str, partition: usize, options: &[&str], lines: &[String]) {
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", &addresses(), "-t", topic, "-p", &partition.to_string()])
        .args(options)
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is installed by `.ci/run kafka`");
    let mut text = lines.join("\n");
    text.push('\n');
    kcat.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(kcat.wait().unwrap().success());
}

/// What is in the partition of a topic that has one, a message a line, for somebody else.
pub(crate) fn messages(topic: &str) -> Vec<String> {
    let read = Command::new("kcat")
        .args(["-C", "-e", "-q", "-b", &addresses(), "-t", topic, "-p", "0"])
        .output()
        .expect("kcat is installed by `.ci/run kafka`");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    String::from_utf8_lossy(&read.stdout).lines().map(str::to_owned).collect()
}

/// All brokers, killed; back when this is dropped, however the test ends.
pub(crate) struct Away;

impl Away {
    pub(crate) fn begin() -> Away {
        for broker in 1..=count() {
            control("kill", broker);
        }
        Away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        for broker in 1..=count() {
            control("restart", broker);
        }
    }
}
