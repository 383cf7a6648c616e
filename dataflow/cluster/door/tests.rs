//! Who comes to a door: members at the right and at the wrong time, and people who are none.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::cluster::handshake::connect;
use std::io::{Read, Write};

const PATIENCE: Duration = Duration::from_secs(20);

fn secret() -> Secret {
    Secret::new("a secret of the whole town").unwrap()
}

fn identity(process: u32, purpose: Purpose, generation: u64) -> Identity {
    let (cluster, version) = ("town".into(), "1".into());
    Identity { purpose, process, processes: 3, threads: 1, generation, cluster, version }
}

/// The door of a process that was last in generation 4; closed with the test.
struct House {
    door: Arc<Door>,
    thread: Option<JoinHandle<()>>,
}

impl House {
    fn new(process: u32, patience: Duration) -> House {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mine = identity(process, Purpose::Meet, 4);
        let (door, thread) = Door::open(listener, mine, secret(), patience).unwrap();
        House { door, thread: Some(thread) }
    }

    fn dial(&self) -> TcpStream {
        TcpStream::connect(self.door.address().unwrap()).unwrap()
    }

    fn come(&self, as_whom: Identity) -> Result<TcpStream, Refused> {
        let socket = self.dial();
        match connect(&socket, &secret(), &as_whom, Instant::now() + PATIENCE) {
            Ok(_) => Ok(socket),
            Err(HandshakeError::Refused(refusal)) => Err(refusal.refused),
            Err(error) => panic!("{error}"),
        }
    }

    fn arrived(&self) -> Arrived {
        self.door.arrivals(Instant::now() + PATIENCE).pop().unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.door.close();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn each_purpose_has_its_time() {
    let house = House::new(0, PATIENCE);
    let meet = || house.come(identity(1, Purpose::Meet, 0)).err();
    let data = |generation| house.come(identity(1, Purpose::Data, generation)).err();
    assert_eq!(meet(), Some(Refused::NotNow), "before a meeting");
    assert_eq!(data(4), Some(Refused::NotNow), "before a generation");

    house.door.meet();
    assert_eq!(meet(), None);
    assert_eq!(house.arrived().identity.process, 1);
    assert_eq!(meet(), Some(Refused::Present), "twice");
    house.door.gone(1);
    assert_eq!(meet(), None, "again, after the first has gone");

    house.door.begin(6);
    assert_eq!(meet(), Some(Refused::NotNow), "in a generation");
    assert_eq!(data(5), Some(Refused::Generation), "of an older generation");
    assert_eq!(data(7), Some(Refused::NotNow), "of one that is not known yet");
    assert_eq!(data(6), None);
    assert_eq!(house.arrived().identity.purpose, Purpose::Data);
    assert_eq!(data(6), Some(Refused::Present), "twice");

    house.door.end_of(5);
    assert!(house.come(identity(2, Purpose::Data, 6)).is_ok(), "the end of another generation");
    house.door.end_of(6);
    assert_eq!(data(6), Some(Refused::NotNow), "after the generation");
}

#[test]
fn who_is_no_leader_holds_no_meeting_and_nobody_comes_as_oneself() {
    let house = House::new(1, PATIENCE);
    house.door.meet();
    let come = |process| house.come(identity(process, Purpose::Meet, 0)).err();
    assert_eq!(come(2), Some(Refused::Process));
    assert_eq!(come(1), Some(Refused::Process));
    assert_eq!(come(3), Some(Refused::Process));
}

#[test]
fn what_was_said_to_one_proves_nothing_to_another() {
    let house = House::new(0, PATIENCE);
    house.door.meet();
    // Records all that a member sends, through a listener in the middle.
    let middle = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = middle.local_addr().unwrap();
    let member = std::thread::spawn(move || {
        let socket = TcpStream::connect(address).unwrap();
        connect(&socket, &secret(), &identity(1, Purpose::Meet, 0), Instant::now() + PATIENCE)
    });
    let (near, far) = (middle.accept().unwrap().0, house.dial());
    let (mut said, mut answer) = (vec![0; 40], vec![0; 40]);
    (&near).read_exact(&mut said).unwrap();
    (&far).write_all(&said).unwrap();
    (&far).read_exact(&mut answer).unwrap();
    (&near).write_all(&answer).unwrap();
    let mut hello = vec![0; 8];
    (&near).read_exact(&mut hello).unwrap();
    let n = u32::from_le_bytes(hello[..4].try_into().unwrap()) as usize;
    hello.resize(8 + n, 0);
    (&near).read_exact(&mut hello[8..]).unwrap();
    // Said again to the door, which has asked something else this time.
    let replayed = house.dial();
    (&replayed).write_all(&[said, hello].concat()).unwrap();
    let mut verdict = [0; 40 + 9 + 1];
    (&replayed).read_exact(&mut verdict).unwrap();
    assert_eq!(verdict[40 + 9], Refused::Secret as u8);
    drop((near, far));
    assert!(matches!(member.join().unwrap(), Err(HandshakeError::Io(_))));
    assert!(house.door.arrivals(Instant::now()).is_empty());
}

#[test]
fn one_who_hears_only_an_echo_is_not_convinced() {
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = echo.local_addr().unwrap();
    let echoing = std::thread::spawn(move || {
        let (socket, _) = echo.accept().unwrap();
        std::io::copy(&mut &socket, &mut &socket)
    });
    let socket = TcpStream::connect(address).unwrap();
    let mine = identity(1, Purpose::Meet, 0);
    let error = connect(&socket, &secret(), &mine, Instant::now() + PATIENCE).unwrap_err();
    assert!(error.to_string().contains("a frame Hello where Verdict is due"), "{error}");
    drop(socket);
    drop(echoing.join().unwrap());
}

#[test]
fn who_fills_the_door_with_silence_keeps_nobody_out_for_long() {
    let house = House::new(0, Duration::from_millis(300));
    house.door.meet();
    let silent: Vec<TcpStream> = (0..GUESTS_MAX + 20).map(|_| house.dial()).collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let socket = house.dial();
        let mine = identity(1, Purpose::Meet, 0);
        if connect(&socket, &secret(), &mine, Instant::now() + PATIENCE).is_ok() {
            break;
        }
        assert!(Instant::now() < until, "the door stays full");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(silent);
}
