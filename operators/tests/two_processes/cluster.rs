//! Processes of a cluster within one: sets of threads that share nothing but sockets.

use std::{
    any::Any,
    net::{TcpListener, TcpStream},
};
use timely::communication::{
    Hooks,
    allocator::{
        AllocatorBuilder, ProcessBuilder, zero_copy::initialize::initialize_networking_from_sockets,
    },
};

/// What a set of workers is built of: a builder each, and the threads that serve their sockets.
pub(crate) type Process = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

/// Processes of `threads` workers each. One process has no sockets.
pub(crate) fn processes(processes: usize, threads: usize) -> Vec<Process> {
    let typed = || {
        let hooks = Hooks::default();
        ProcessBuilder::new_typed_vector(threads, hooks.refill, hooks.spill)
    };
    if processes == 1 {
        let builders = typed().into_iter().map(AllocatorBuilder::Process).collect();
        return vec![(builders, Box::new(()))];
    }
    let joined = |(process, sockets)| -> Process {
        let (builders, others) = initialize_networking_from_sockets(
            typed(),
            sockets,
            process,
            threads,
            Hooks::default(),
        )
        .unwrap();
        (builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(others))
    };
    sockets(processes).into_iter().enumerate().map(joined).collect()
}

/// The sockets of each process, by the process at their other end.
fn sockets(processes: usize) -> Vec<Vec<Option<TcpStream>>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let none = || (0..processes).map(|_| None).collect();
    let mut sockets: Vec<Vec<Option<TcpStream>>> = (0..processes).map(|_| none()).collect();
    for (a, b) in (0..processes).flat_map(|b| (0..b).map(move |a| (a, b))) {
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (two, _) = listener.accept().unwrap();
        one.set_nodelay(true).unwrap();
        two.set_nodelay(true).unwrap();
        (sockets[a][b], sockets[b][a]) = (Some(one), Some(two));
    }
    sockets
}
