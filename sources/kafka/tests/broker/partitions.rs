//! An operator adds partitions while the log runs.

use crate::world::{await_end, beside, grow, open, settings, until};
use trueup_kafka::KafkaSettings;
use trueup_operators::log::{Log, Topic, append_and_wait, contract};

#[test]
fn new_partitions_are_picked_up_while_running() {
    let _beside = beside();
    let settings = KafkaSettings { metadata_refresh_ms: 100, ..settings() };
    let log = open(&settings);
    let expected = contract::fill(&log, 30);
    let before = log.ends(Topic::Events);
    grow(&settings.events_topic, 5);
    until("there are five", || log.partitions(Topic::Events) == 5);
    let ends = log.ends(Topic::Events);
    assert_eq!(ends.len(), 5);
    assert!(ends[4].complete_to >= before[0].complete_to, "no time goes back");
    let at = append_and_wait(&log, vec![contract::append(Topic::Events, 4, b"new")]).unwrap();
    assert_eq!(at[0].offset, 0);
    await_end(&log, Topic::Events, 4, 1);
    let frames = log.read(Topic::Events, 4, 0, 1, 0).unwrap();
    assert_eq!(frames[0].payload.as_slice(), b"new");
    contract::assert_holds(&log, &expected);
    assert!(append_and_wait(&log, vec![contract::append(Topic::Events, 5, b"x")]).is_err());
}
