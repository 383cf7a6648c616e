//! A replay that publishes. A job that reckoned wrongly leaves its figures in a checkpoint; the job
//! that is right goes on from there and shows them, until a replay of the log takes their place: in
//! one step, to whoever reads, while events go on coming. What is right is a few lines of
//! arithmetic.

use crate::{
    dear,
    server::{Home, copy_dir},
    sse::{EventStream, Known},
    traffic::{click, now_us, verdict},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use trueup::{
    CheckpointSettings, EngineSettings, Event, EventTime, Host, Job, Output, PerEvent, RollupSpec,
    Rows, Source, host::CHECKPOINTS, open_log::OpenLog,
};
use trueup_sinks::{Filter, ReadError, RowBlock, Start, Step, Tables, ViewSettings};

const SHOPS: i64 = 7;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Serialize, Deserialize)]
struct Sale {
    number: i64,
    at_us: i64,
}

impl Event for Sale {
    const DIMENSIONS: &'static [&'static str] = &["shop"];

    fn id(&self) -> String {
        self.number.to_string()
    }
    fn time(&self) -> EventTime {
        EventTime(self.at_us)
    }
    fn texts(&self) -> Vec<&str> {
        vec![["a", "b", "c", "d", "e", "f", "g"][(self.number % SHOPS) as usize]]
    }
}

trueup::group! { struct Sold { sales, cents } counting sales }

/// Each sale is of `cents`; that is what the wrong one has wrong.
struct Shops {
    cents: i64,
}

impl Job<1> for Shops {
    type Batch = Rows<Sale>;
    type Metrics = Sold;

    fn rollups(&self) -> Vec<RollupSpec> {
        vec![RollupSpec::new("sold", &["shop"])]
    }
    fn topology<'s>(&self, sales: Source<'s, Rows<Sale>>) -> Output<'s, 1, Sold> {
        let cents = self.cents;
        let sold = move |_: &Sale, _| Sold { sales: 1, cents };
        sales.dedupe().sum(PerEvent::new(&self.rollups(), sold)).accumulate().views()
    }
}

const WRONG: i64 = 1;
const RIGHT: i64 = 100;

/// Checkpoints are taken when they are asked for.
const SELDOM: Duration = Duration::from_secs(3_600);

fn engine(workers: usize, interval: Duration) -> EngineSettings {
    let checkpoint = CheckpointSettings { interval, ..Default::default() };
    EngineSettings { workers, checkpoint, ..EngineSettings::default() }
}

fn open(dir: &Path, cents: i64, workers: usize) -> Host {
    open_with(dir, cents, workers, SELDOM)
}

fn open_with(dir: &Path, cents: i64, workers: usize, interval: Duration) -> Host {
    Host::open(dir, Shops { cents }, Default::default(), engine(workers, interval)).unwrap()
}

fn sell(host: &Host, numbers: std::ops::Range<i64>) {
    let at_us = now_us();
    let sales: Vec<Sale> = numbers.map(|number| Sale { number, at_us }).collect();
    host.send(&sales).unwrap();
}

/// Sales and cents of all rows of a view.
fn sum(host: &Host, view: &str) -> [i64; 2] {
    let rows = host.rows(view).unwrap();
    rows.iter().fold([0, 0], |[sales, cents], row| [sales + row.figures[0], cents + row.figures[1]])
}

/// What a subscriber has added up: by bucket and shop, every row with its multiplicity.
type Added = BTreeMap<(i64, String, Vec<i64>, u64), i64>;

/// Follows a view until it is told to stop and has the newest epoch. Its sums at each epoch that it
/// reached, and all that it has in the end.
fn follow(
    tables: &Arc<dyn Tables>,
    view: &str,
    filter: Filter,
    stop: &AtomicBool,
) -> (Vec<(u64, [i64; 2])>, Added) {
    let id = tables.catalog().view(view).unwrap().id;
    let mut follow = Arc::clone(tables).follow(id, filter, Start::Snapshot(None)).unwrap();
    let (mut reached, mut added) = (Vec::new(), Added::new());
    let (mut block, mut incidents) = (RowBlock::default(), Vec::new());
    loop {
        let stopping = stop.load(Ordering::SeqCst);
        match follow.step(3, &mut block, &mut incidents).unwrap() {
            Step::Idle if stopping => break,
            Step::Idle => std::thread::sleep(Duration::from_millis(1)),
            step => {
                for row in block.rows() {
                    let shop = tables.symbols().text(row.key[0]).to_string();
                    let key = (row.start_us, shop, row.values.to_vec(), row.version);
                    *added.entry(key).or_default() += i64::from(row.diff);
                }
                if let Step::Reached(at) = step {
                    added.retain(|_, count| *count != 0);
                    assert!(added.values().all(|&count| count == 1), "{added:?}");
                    let of = |i: usize| added.keys().map(|(_, _, figures, _)| figures[i]).sum();
                    reached.push((at.epoch, [of(0), of(1)]));
                }
            }
        }
    }
    (reached, added)
}

fn replay(dir: &Path, cents: i64, workers: usize, upto: u64) -> Host {
    let engine = engine(workers, SELDOM);
    let views = ViewSettings::new(workers, Shops { cents }.rollups(), engine.lateness);
    let log = OpenLog::embedded_read_only(dir).unwrap();
    let host =
        Host::replay_to_offer(dir, CHECKPOINTS, log, Shops { cents }, engine, views, upto).unwrap();
    host.engine().catch_up(PATIENCE).unwrap();
    host
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_replay_has_found_comes_in_one_step_and_stays() {
    let (dir, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let wrong = open(dir, WRONG, 2);
    sell(&wrong, 0..500);
    wrong.settle().unwrap();
    wrong.close();

    // With checkpoints all the time, of which none may have one's figures and the other's epoch.
    let host = open_with(dir, RIGHT, 1, Duration::from_millis(10));
    host.settle().unwrap();
    assert_eq!(sum(&host, "sold_minute"), [500, 500 * WRONG], "it goes on from the checkpoint");
    let before = host.tables().visible().unwrap().epoch;
    let (stop, selling) = (AtomicBool::new(false), AtomicBool::new(true));
    let one_shop = Filter { dimensions: vec![(0, "c".into())], ..Filter::default() };
    let (all, some, sold) = std::thread::scope(|scope| {
        let readers = [("sold_minute", Filter::default()), ("sold_hour", one_shop)]
            .map(|(view, filter)| scope.spawn(|| follow(host.tables(), view, filter, &stop)));
        let seller = scope.spawn(|| {
            let mut next = 500;
            while selling.load(Ordering::SeqCst) {
                sell(&host, next..next + 10);
                next += 10;
                std::thread::sleep(Duration::from_millis(5));
            }
            next
        });
        let replayed = replay(dir, RIGHT, 2, before);
        assert_eq!(sum(&replayed, "sold_minute"), [500, 500 * RIGHT]);
        let id = replayed.offer().unwrap();
        replayed.close();
        host.take_up().unwrap();
        wait("the replay is shown", || host.replayed().is_some_and(|shown| shown.id == id));
        let shown = host.replayed().unwrap();
        // What a kill at this instant leaves.
        copy_dir(dir, killed.path());
        assert!(shown.since_epoch > before && shown.rows_changed.unwrap() >= 3 * 7, "{shown:?}");
        std::thread::sleep(Duration::from_millis(300));
        selling.store(false, Ordering::SeqCst);
        let sold = seller.join().unwrap();
        host.settle().unwrap();
        stop.store(true, Ordering::SeqCst);
        let [all, some] = readers.map(|reader| reader.join().unwrap());
        (all, some, sold)
    });
    assert!(sold > 600, "nothing was sold meanwhile");
    for view in ["sold_minute", "sold_hour", "sold_day"] {
        assert_eq!(sum(&host, view), [sold, sold * RIGHT], "{view}");
    }
    // Before the replay was shown, what was sold after the checkpoint was reckoned rightly.
    let since = host.replayed().unwrap().since_epoch;
    let (reached, added) = all;
    for (epoch, [sales, cents]) in &reached {
        let expected = match *epoch < since {
            true => 500 * WRONG + (sales - 500) * RIGHT,
            false => sales * RIGHT,
        };
        assert_eq!(*cents, expected, "epoch {epoch} of {since}, {sales} sales");
    }
    assert!(reached.iter().any(|(epoch, _)| *epoch < since));
    assert_eq!(reached.last().unwrap().1, [sold, sold * RIGHT]);
    let rows = host.rows("sold_minute").unwrap();
    let shown: Vec<_> = rows
        .into_iter()
        .map(|row| (row.bucket.0, row.dimensions[0].clone(), row.figures, row.version))
        .collect();
    assert_eq!(added.into_keys().collect::<Vec<_>>(), shown);
    assert_eq!(some.0.last().unwrap().1[1], some.0.last().unwrap().1[0] * RIGHT);

    // An epoch of the old figures cannot be gone on from, nor read.
    let id = host.tables().catalog().view("sold_minute").unwrap().id;
    let resumed =
        Arc::clone(host.tables()).follow(id, Filter::default(), Start::After(Some(before)));
    let gone = ReadError::Gone { epoch: before, first: since };
    assert_eq!(resumed.err(), Some(gone.clone()));
    let page = host.tables().page(id, &Filter::default(), Some(before), None, 10);
    assert_eq!(page.err(), Some(gone));

    // It stays so, with the checkpoint that the replay has become and with the ones after it.
    host.close();
    let host = open(killed.path(), RIGHT, 2);
    host.settle().unwrap();
    wait("the views of what was killed", || host.tables().visible().is_some());
    let [sales, cents] = sum(&host, "sold_day");
    assert!(sales >= 500 && cents == sales * RIGHT, "{sales} sales, {cents} cents");
    host.close();
    for _ in 0..2 {
        let host = open(dir, RIGHT, 2);
        host.settle().unwrap();
        assert_eq!(sum(&host, "sold_day"), [sold, sold * RIGHT]);
        host.close();
    }
}

/// Killed at once after the offer, or between the runs: the next start has it.
#[test]
fn an_offer_is_taken_up_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let wrong = open(dir, WRONG, 1);
    sell(&wrong, 0..100);
    let upto = wrong.settle().unwrap();
    wrong.checkpoint().unwrap().unwrap();
    let replayed = replay(dir, RIGHT, 1, upto);
    let id = replayed.offer().unwrap();
    replayed.close();
    wrong.close();
    let host = open(dir, RIGHT, 2);
    wait("the replay is shown", || host.replayed().is_some_and(|shown| shown.id == id));
    assert_eq!(sum(&host, "sold_day"), [100, 100 * RIGHT]);
    assert_eq!(host.loaded().unwrap().epoch, upto);
    host.close();
}

#[test]
fn what_is_not_offered_leaves_nothing_and_what_is_broken_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let host = open(dir, WRONG, 1);
    sell(&host, 0..100);
    let upto = host.settle().unwrap();
    host.checkpoint().unwrap().unwrap();
    let count = |folder: &str| match dir.join(CHECKPOINTS).join(folder).read_dir() {
        Ok(found) => found.count(),
        Err(_) => 0,
    };
    let packs = count("packs");
    replay(dir, RIGHT, 1, upto).close();
    assert_eq!((count("packs"), count("replays")), (packs, 0));

    let replayed = replay(dir, RIGHT, 1, upto);
    let id = replayed.offer().unwrap();
    replayed.close();
    let offer = dir.join(CHECKPOINTS).join("replays").join(format!("{id}.json"));
    let mut bytes = std::fs::read(&offer).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&offer, bytes).unwrap();
    host.take_up().unwrap();
    wait("it is refused", || host.refused().is_some_and(|refused| refused.id == id));
    host.settle().unwrap();
    assert_eq!(sum(&host, "sold_day"), [100, 100 * WRONG]);
    assert_eq!((host.replayed(), host.fault(), count("replays")), (None, None, 0));
    host.close();
}

/// The built program: `verify` finds that a server shows ten times the spend, `replay` puts it
/// right while a subscriber looks on, and `verify` is content.
#[test]
fn the_command_puts_a_server_right() {
    let home = Home::new("[checkpoint]\ninterval = \"1h\"\n");
    let events: Vec<Value> = (0..80).map(|n| click(&format!("r{n}"), now_us())).collect();
    let server = home.start();
    server.client().collect(&events).expect(202);
    server.client().judge(&[verdict("r3", "invalid", now_us())]).expect(202);
    server.client().settled();
    assert_eq!(server.terminate().code(), Some(0));
    std::fs::remove_dir_all(home.data().join(CHECKPOINTS)).unwrap();
    dear::run(&[&home]);

    let server = home.start();
    let client = server.client();
    let url = format!("http://{}", client.address());
    let spend = || client.view("audience_day", None).1[0]["spendMicros"].as_i64().unwrap();
    let dear = spend();
    let mut stream = EventStream::subscribe(&client, "/v1/views/audience_minute/subscribe");
    let mut known = Known::default();
    while !known.take(&stream.next().unwrap()) {}
    let (code, out, _) = home.run(&["verify", "--server", &url]);
    assert_eq!(code, Some(1), "{out}");
    let (code, out, _) = home.run(&["replay", "--dry-run", "--server", &url]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("would change") && spend() == dear, "{out}");
    let (code, out, err) =
        home.run(&["replay", "--server", &url, "--view", "audience_day,audience_hour"]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(err.contains("nothing was published") && spend() == dear, "{out}{err}");

    let (code, out, err) = home.run(&["replay", "--server", &url]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("published: since epoch") && err.contains("100 %"), "{out}{err}");
    assert_eq!(spend() * 10, dear);
    let (code, out, err) = home.run(&["verify", "--server", &url]);
    assert_eq!(code, Some(0), "{out}{err}");
    let (code, out, err) = home.run(&["replay", "--server", &url]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(": 0 rows change"), "{out}");

    let (at, rows) = client.view("audience_minute", None);
    let until = Instant::now() + PATIENCE;
    while known.epoch.is_none_or(|epoch| epoch < at) {
        known.take(&stream.next().unwrap());
        assert!(Instant::now() < until, "the subscriber has epoch {:?} of {at}", known.epoch);
    }
    known.assert_is(&rows);
    assert_eq!(server.terminate().code(), Some(0));
}
