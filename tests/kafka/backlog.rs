//! What was in a topic before anybody read it: days of it perhaps, and no longer from its
//! beginning.

use crate::{
    brokers::{addresses, beside, configured, count, produce},
    server::Home,
    traffic::{click, now_us},
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
use std::time::{Duration, Instant};

const EVENTS: usize = 10_000;
/// What the brokers deleted of partition 1.
const DELETED: usize = 2_500;

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", addresses()).create().unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn what_others_left_before_the_first_start_goes_through_in_small_epochs() {
    let _brokers = beside();
    let (config, name) = configured("[flow]\nepoch_bytes_max = \"1MiB\"", "json");
    let topic = format!("{name}-events");
    let replication = TopicReplication::Fixed(count().min(3) as i32);
    let events =
        NewTopic::new(&topic, 4, replication).set("message.timestamp.type", "LogAppendTime");
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    for made in wait(admin().create_topics([&events], &options)).unwrap() {
        made.unwrap();
    }
    let now = now_us();
    for partition in 0..4 {
        let line = |n| click(&format!("b{partition}-{n}"), now - n as i64 * 1_000).to_string();
        produce(&topic, partition, &(0..EVENTS).map(line).collect::<Vec<_>>());
    }
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(&topic, 1, Offset::Offset(DELETED as i64)).unwrap();
    wait(admin().delete_records(&places, &options)).unwrap();

    let home = Home::new(&config);
    let mut server = home.start();
    let left = (4 * EVENTS - DELETED) as i64;
    let until = Instant::now() + Duration::from_secs(90);
    let all = loop {
        let counts = server.client().settled();
        if counts.counted >= left {
            break counts;
        }
        assert!(Instant::now() < until, "{counts:?} of {left}\n{}", home.stderr());
        std::thread::sleep(Duration::from_millis(100));
    };
    all.check();
    assert_eq!((all.accepted, all.counted), (left, left), "{all:?}");
    // 12 MB in parts of one.
    let epoch = |server: &crate::server::Server<'_>| {
        let status = server.client().get("/v1/status").expect(200).json;
        status["epoch"].as_u64().unwrap_or_else(|| panic!("{status}"))
    };
    assert!(epoch(&server) > 8, "{} epochs", epoch(&server));
    // From the checkpoint, and without one from where the log began.
    server.kill();
    server = home.start();
    assert_eq!(server.client().settled(), all);
    let url = format!("http://{}", server.client().address());
    let (code, out, err) = home.run(&["verify", "--server", &url]);
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert!(server.terminate().success(), "{}", home.stderr());
    let (code, out, err) = home.run(&["verify"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}
