//! Several processes as one cluster, on real sockets: each test starts members, which are this very
//! binary, running [`member`] under an environment variable, and does to them what machines and
//! networks do.
//!
//! A member meets, runs workers that exchange numbers without a pause and check every sum, reports
//! what happens on stdout, and when its generation is over meets again in the same process. After
//! each generation it says how many threads of timely's and of the links are left, and how many
//! sockets: none may be. A panic anywhere in it fails its test.

mod member;
mod proxy;

use crate::server::free_port;
use member::{Member, Plan, THREADS, TIMEOUT};
use proxy::Proxy;
use rustix::process::Signal;
use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Members of one cluster, whose files are in one directory.
struct Town {
    dir: TempDir,
    hosts: Vec<String>,
}

impl Town {
    fn new(processes: usize) -> Town {
        let hosts = (0..processes).map(|_| free_port().to_string()).collect();
        Town { dir: TempDir::new().unwrap(), hosts }
    }

    fn plan(&self, process: usize) -> Plan {
        Plan {
            cluster: "town".into(),
            secret: "a secret of the whole town".into(),
            version: "1".into(),
            process,
            hosts: self.hosts.clone(),
            listen: self.hosts[process].clone(),
            threads: THREADS,
            number_path: self.dir.path().join(format!("generation-{process}")),
        }
    }

    fn start(&self, process: usize) -> Member {
        Member::start(self.plan(process))
    }

    fn start_all(&self) -> Vec<Member> {
        (0..self.hosts.len()).map(|process| self.start(process)).collect()
    }
}

/// The generation that all of these run in, with workers at work.
fn met(members: &mut [Member]) -> u64 {
    let numbers: Vec<u64> = members.iter_mut().map(|member| member.number("met")).collect();
    assert!(numbers.iter().all(|n| *n == numbers[0]), "they met in {numbers:?}");
    members.iter_mut().for_each(|member| drop(member.wait_for("visible")));
    numbers[0]
}

/// Waits until a member says that its generation is over, and that nothing is left of it.
fn over(member: &mut Member) -> String {
    let failure = member.wait_for("over");
    assert_eq!(member.wait_for("left"), "threads 0, sockets 0", "after {failure}");
    failure
}

#[track_caller]
fn assert_says(text: &str, part: &str) {
    assert!(text.contains(part), "`{text}` does not say `{part}`");
}

#[test]
fn a_killed_member_is_found_at_once_and_all_meet_again() {
    let town = Town::new(3);
    let mut members = town.start_all();
    let mut last = met(&mut members);
    for victim in [2, 0, 1] {
        members[victim].kill();
        let killed = Instant::now();
        for (process, member) in members.iter_mut().enumerate().filter(|(i, _)| *i != victim) {
            let failure = over(member);
            assert_says(&failure, &format!("process {victim} closed its connection"));
            // Its silence would have taken longer.
            assert!(killed.elapsed() < TIMEOUT, "process {process} took {:?}", killed.elapsed());
        }
        members[victim] = town.start(victim);
        let next = met(&mut members);
        assert!(next > last, "generation {next} came after {last}");
        last = next;
    }
}

#[test]
fn a_stopped_member_is_found_by_its_silence_and_comes_back() {
    let town = Town::new(2);
    let mut members = town.start_all();
    let first = met(&mut members);

    // Slow is not lost: shorter than the timeout, again and again.
    for _ in 0..3 {
        members[1].signal(Signal::STOP);
        std::thread::sleep(TIMEOUT / 3);
        members[1].signal(Signal::CONT);
        members.iter_mut().for_each(|member| drop(member.wait_for("visible")));
    }
    members[1].signal(Signal::STOP);
    let failure = over(&mut members[0]);
    assert_says(&failure, "process 1 is silent");
    members[1].signal(Signal::CONT);
    // It finds its connections closed, or has still been told why.
    assert_says(&over(&mut members[1]), "generation");
    assert!(met(&mut members) > first);
}

#[test]
fn a_network_that_swallows_everything_is_silence_on_both_sides() {
    let town = Town::new(2);
    let proxy = Proxy::start(town.hosts[0].clone());
    let far = Plan { hosts: vec![proxy.address(), town.hosts[1].clone()], ..town.plan(1) };
    let mut members = vec![town.start(0), Member::start(far)];
    let first = met(&mut members);
    proxy.swallow(true);
    assert_says(&over(&mut members[0]), "process 1 is silent");
    assert_says(&over(&mut members[1]), "process 0 is silent");
    proxy.swallow(false);
    assert!(met(&mut members) > first);
}

#[test]
fn a_link_between_two_members_is_missed_by_all_and_named() {
    let town = Town::new(3);
    let proxy = Proxy::start(town.hosts[1].clone());
    let mut hosts = town.hosts.clone();
    hosts[1] = proxy.address();
    let far = Plan { hosts, ..town.plan(2) };
    let mut members = vec![town.start(0), town.start(1), Member::start(far)];
    let first = met(&mut members);
    proxy.swallow(true);
    // Each may be told by the other two before its own patience is over.
    for member in &mut members {
        assert_says(&over(member), " is silent");
    }
    proxy.swallow(false);
    assert!(met(&mut members) > first);
}

#[test]
fn who_does_not_belong_is_refused_with_both_values_and_the_others_meet() {
    let town = Town::new(2);
    let mut leader = town.start(0);
    leader.wait_for("opened");
    let plan = || town.plan(1);
    let strangers = [
        (Plan { secret: "another secret of a town".into(), ..plan() }, vec!["another secret"]),
        (Plan { cluster: "city".into(), ..plan() }, vec!["cluster id `city`", "`town`"]),
        (Plan { version: "2".into(), ..plan() }, vec!["version `2`", "`1`"]),
        (Plan { threads: 5, ..plan() }, vec!["threads of `5`", "`2`"]),
        (
            Plan { hosts: [&town.hosts[..], &["127.0.0.1:1".into()]].concat(), ..plan() },
            vec!["processes of `3`", "`2`"],
        ),
    ];
    for (stranger, says) in strangers {
        let refused = Member::start(stranger).wait_for("refused");
        says.iter().for_each(|part| assert_says(&refused, part));
    }
    let mut members = vec![leader, town.start(1)];
    assert_eq!(met(&mut members), 1);
}

#[test]
fn strangers_and_a_slow_start_do_not_disturb_the_meeting() {
    let town = Town::new(3);
    // The last first; nobody listens at the leader's address yet.
    let mut third = town.start(2);
    third.wait_for("opened");
    let mut leader = town.start(0);
    leader.wait_for("opened");
    let mut strangers = Vec::new();
    for host in [&town.hosts[0], &town.hosts[2]] {
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xFF; 4096], b"TRUEUPM1", &[0; 8]] {
            let mut stranger = TcpStream::connect(host).unwrap();
            // One that is refused at once may be closed before it has sent all.
            drop(stranger.write_all(bytes));
            strangers.push(stranger);
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut members = vec![leader, town.start(1), third];
    assert_eq!(met(&mut members), 1);
    drop(strangers);
    members.iter_mut().for_each(|member| drop(member.wait_for("visible")));
}

#[test]
fn a_number_is_never_used_again_whoever_forgets_it() {
    let town = Town::new(2);
    std::fs::write(&town.plan(1).number_path, "generation 4100000041\n").unwrap();
    let mut members = town.start_all();
    assert_eq!(met(&mut members), 4_100_000_042);
    members.iter_mut().for_each(Member::kill);
    // The leader has lost its disk, and the member still knows.
    std::fs::remove_file(&town.plan(0).number_path).unwrap();
    assert_eq!(met(&mut town.start_all()), 4_100_000_043);
}

#[test]
fn a_fault_and_a_farewell_are_told_by_name() {
    let town = Town::new(2);
    let mut members = town.start_all();
    met(&mut members);
    members[1].say("fault");
    assert_says(&over(&mut members[0]), "process 1 has a fault: the test says so");
    over(&mut members[1]);
    met(&mut members);
    members[0].say("leave");
    assert_says(&over(&mut members[1]), "process 0 has left");
    over(&mut members[0]);
    met(&mut members);
}

#[test]
fn questions_are_answered_within_their_limits() {
    let town = Town::new(2);
    let mut members = town.start_all();
    met(&mut members);
    members[0].say("ask");
    assert_eq!(members[0].wait_for("asked"), "all as expected");
}
