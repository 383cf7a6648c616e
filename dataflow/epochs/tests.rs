//! Two servers that both close epochs of one log: whoever began last goes on, the other one ends,
//! and nobody's workers ever get a row that does not count.
#![allow(clippy::unwrap_used)]

mod backlog;
mod lag;
mod refused;

use super::{cut::covers, *};
use std::sync::mpsc::{Receiver, channel};
use trueup_log::{Fsync, Journal, Settings, system_clock};
use trueup_operators::{
    log::{Done, End, Frame, LogLayer, append_and_wait},
    time::LogTime,
};

/// A journal that does not know that all who append to it are one process.
pub(crate) struct Shared(pub(crate) Journal);

impl LogLayer for Shared {
    fn below(&self) -> &dyn Log {
        &self.0
    }
    fn is_shared(&self) -> bool {
        true
    }
}

/// One server's closing thread, and a worker that takes what it gets.
struct Server {
    epochs: Arc<Epochs>,
    plans: Receiver<Plan>,
    thread: std::thread::JoinHandle<()>,
}

impl Server {
    fn start(log: &Arc<dyn Log>) -> Server {
        Server::with(log, None)
    }

    fn with(log: &Arc<dyn Log>, checkpoints: Option<Arc<Checkpoints>>) -> Server {
        let settings = EpochSettings {
            tick: Duration::from_millis(2),
            epoch_bytes_max: 1 << 20,
            epochs_in_flight_max: u64::MAX,
            cut: Cut::Live,
        };
        let from = Cursor::origin(&**log);
        let (log, seat) = (Arc::clone(log), Seat::alone(1));
        let epochs = Epochs::open(log, settings, seat, &from, checkpoints).unwrap();
        let (sender, plans) = channel();
        let feeders = [Feeder { plans: sender, thread: std::thread::current() }];
        let running = Arc::clone(&epochs);
        let thread = std::thread::spawn(move || running.run(from, &feeders, |_| {}));
        Server { epochs, plans, thread }
    }

    /// Whether the last row that it knows to count is its own.
    fn leads(&self) -> bool {
        self.epochs.state.lock().closed.row.writer == self.epochs.writer
    }

    /// Everything that its worker got.
    fn end(self) -> (Vec<RemapRow>, Option<String>) {
        self.epochs.stop();
        self.thread.join().unwrap();
        let rows = self.plans.try_iter().map(|plan| (*plan.row).clone()).collect();
        (rows, self.epochs.fault())
    }
}

fn event() -> Append {
    Append {
        topic: Topic::Events,
        partition: 0,
        schema_version: 1,
        records: 1,
        payload: b"any".to_vec().into(),
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_second_server_supersedes_the_first_and_every_row_that_was_fed_counts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { fsync: Fsync::Never, ..Settings::default() };
    let (journal, _) = Journal::open(dir.path(), settings, system_clock()).unwrap();
    let log: Arc<dyn Log> = Arc::new(Shared(journal));
    let mut servers = Vec::new();
    for round in 1..=4_u64 {
        let server = Server::start(&log);
        let target = server.epochs.lag().closed + 5 * round;
        wait_for("epochs of the server that leads", || {
            append_and_wait(&*log, vec![event()]).unwrap();
            server.epochs.lag().closed >= target && server.leads()
        });
        servers.push(server);
    }
    // What a zombie would still write: for an epoch to come, in a generation that is over.
    let last = Cursor::origin(&*log).tip(&*log).unwrap();
    let late =
        RemapRow { epoch: last.row.epoch + 1, writer: Writer::default(), ..(*last.row).clone() };
    let frame = Append { topic: Topic::Remap, payload: late.encode().into(), ..event() };
    append_and_wait(&*log, vec![frame]).unwrap();
    let leads = servers.pop().unwrap();
    wait_for("the leader to go on", || {
        append_and_wait(&*log, vec![event()]).unwrap();
        leads.epochs.lag().closed > last.row.epoch + 3
    });

    let generation = leads.epochs.writer.generation;
    let (fed, fault) = leads.end();
    assert_eq!(fault, None);
    let (mut read, end, mut counted) = (Cursor::origin(&*log), remap::end(&*log), Vec::new());
    while read.next < end {
        counted.extend(read.advance(&*log, end).unwrap().into_iter().map(|c| (*c.row).clone()));
    }
    assert!(counted.windows(2).all(|pair| pair[1].epoch == pair[0].epoch + 1));
    assert!(counted.windows(2).all(|p| p[1].writer.generation >= p[0].writer.generation));
    assert_eq!((counted.last().unwrap().writer.generation, generation), (4, 4));
    assert_eq!(fed, counted[..fed.len()], "what the leader fed");
    assert!(fed.len() as u64 > last.row.epoch);
    for (place, server) in servers.into_iter().enumerate() {
        wait_for("a server that was superseded to end", || server.epochs.fault().is_some());
        let (fed, fault) = server.end();
        assert!(fault.unwrap().contains("another server closes epochs"), "server {place}");
        assert_eq!(fed, counted[..fed.len()], "what server {place} fed");
    }
}
