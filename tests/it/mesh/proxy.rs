//! A network between two members that can swallow everything: connections stay open, and nothing
//! that is sent over them arrives, in either direction.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A listener that passes on to another.
pub(crate) struct Proxy {
    address: String,
    swallows: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) fn start(to: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (swallows, over) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let (s, o) = (Arc::clone(&swallows), Arc::clone(&over));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if o.load(Ordering::Relaxed) {
                    return;
                }
                // Nobody listens yet: the one who connected comes again.
                let Ok(far) = TcpStream::connect(&to) else { continue };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let (s, o) = (Arc::clone(&s), Arc::clone(&o));
                    std::thread::spawn(move || pass(from, into, &s, &o));
                }
            }
        });
        Proxy { address, swallows, over }
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    pub(crate) fn swallow(&self, swallows: bool) {
        self.swallows.store(swallows, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the listener.
        drop(TcpStream::connect(&self.address));
    }
}

/// One direction. What was swallowed once stays swallowed: that connection is dead, as one is whose
/// packets were lost for longer than anyone waited.
fn pass(mut from: TcpStream, mut into: TcpStream, swallows: &AtomicBool, over: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (mut block, mut dead) = (vec![0; 1 << 16], false);
    while !over.load(Ordering::Relaxed) {
        dead |= swallows.load(Ordering::Relaxed);
        match from.read(&mut block) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // A reset is swallowed too.
            Ok(0) | Err(_) if dead => return std::thread::park_timeout(Duration::from_secs(60)),
            Ok(0) | Err(_) => break,
            Ok(_) if dead => {}
            Ok(n) => {
                if into.write_all(&block[..n]).is_err() {
                    break;
                }
            }
        }
    }
    // The other direction may have closed it before.
    drop(into.shutdown(std::net::Shutdown::Both));
    drop(from.shutdown(std::net::Shutdown::Both));
}
