//! The sockets of a node: one listener for the collector, the queries and the live page, and the
//! way a server ends. SIGTERM and SIGINT drain: nothing more is taken, what was taken becomes
//! visible, exit 0; the second one, or the first while the log is still being opened or read again,
//! does not wait for that. A fault ends the process with 70 at once; the log has everything.

use crate::{
    cluster::ClusterError,
    config::Config,
    connections,
    host::HostError,
    node::{Node, NodeError},
    waiting,
};
use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use trueup_operators::access::Access;
use trueup_queries::Queries;

/// How long requests that are under way may take when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// The name of the threads that answer requests. What panics there is one request.
pub const HTTP_THREAD: &str = "http";

/// Why a server did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The node cannot start.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; `--listen` chooses another")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The run could not go on.
    #[error("{0}")]
    Fault(String),
    /// The runtime or a signal handler could not be set up.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// A server that listens.
pub struct Running {
    /// Where.
    pub address: SocketAddr,
    /// What.
    pub node: Arc<Node>,
}

/// What is to be done when a server is told to stop, while it still answers.
pub type Farewell = Box<dyn FnOnce() + Send>;

/// Runs a server until it is told to stop, or `until` resolves. `ready` is called once it listens;
/// what that returns is called on a thread that may block.
///
/// # Errors
/// When it cannot start, or a fault ends it.
pub fn serve(
    config: Config,
    until: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(Running) -> Farewell,
) -> Result<(), ServeError> {
    // What the configuration names is looked at before anything is taken of the machine.
    check_place(&config).map_err(|error| NodeError::from(HostError::from(error)))?;
    let address = config.server.listen;
    let access = Arc::new(Access::new(config.auth.tokens.clone()));
    if access.is_open() {
        tracing::warn!(
            %address,
            "no token is configured: whoever reaches the loopback may do anything"
        );
    }
    if let Some(pg_listen) = config.server.pg_listen {
        tracing::warn!(%pg_listen, "PostgreSQL's protocol is not spoken yet: nobody listens");
    }
    let limits = config.queries.clone();
    let connections = connections::Limits {
        connections_max: config.server.connections_max,
        head_max: Duration::from_millis(config.server.head_ms_max),
        unread_max: Duration::from_millis(config.server.unread_ms_max),
    };
    // Before the log is opened: a port that is taken should change nothing.
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| ServeError::Listen { address, error })?;
    let mut until = Box::pin(until);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name(HTTP_THREAD)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        // A log is read to its end, and brokers or a place of checkpoints may be away: the signals
        // and the listener have to be heard meanwhile.
        let node = {
            let told = std::pin::pin!(signals.next_or(until.as_mut()));
            match waiting::open(&config, &access, &listener, connections, told).await? {
                Some(node) => node,
                None => return Ok(()),
            }
        };
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let tables = Arc::clone(node.host.tables());
        let queries =
            Queries::new(tables, Arc::clone(&access), Arc::clone(&node) as Arc<_>, limits);
        let app = trueup_queries::router(Arc::clone(&queries))
            .merge(node.collector().router())
            .fallback(trueup_queries::unknown_route)
            .method_not_allowed_fallback(trueup_queries::unknown_method);
        let app = trueup_queries::same_site(app, Arc::clone(&access));
        let (faulty, fault) = oneshot::channel();
        let watched = Arc::clone(&node);
        let watch = std::thread::Builder::new().name("watch".into()).spawn(move || {
            // Nobody waits any more once the server drains.
            let _drained = faulty.send(watched.watch());
        })?;
        let farewell = ready(Running { address, node: Arc::clone(&node) });
        let told = Told { signals: &mut signals, until: until.as_mut(), fault, farewell };
        let ended = listen(listener, app, &queries, connections, told).await;
        let drained = match ended {
            Ok(()) => {
                let node = Arc::clone(&node);
                let drained = tokio::task::spawn_blocking(move || node.drain());
                tokio::select! {
                    drained = drained => {
                        drained.map_err(std::io::Error::other)?.map_err(ServeError::Fault)
                    }
                    () = signals.next() => {
                        tracing::warn!("told to stop again: what is in the log is shown later");
                        Ok(())
                    }
                }
            }
            Err(error) => Err(error),
        };
        if drained.is_ok() && watch.join().is_err() {
            return Err(ServeError::Fault("the watching thread ended by a panic".into()));
        }
        drained
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Whether this process can prove that it is one of its cluster's, and knows which.
fn check_place(config: &Config) -> Result<(), ClusterError> {
    config.own_place().map_err(|error| ClusterError::Settings(error.0))?;
    config.secret().map(|_| ())
}

/// What ends a server, and what it does first.
struct Told<'s> {
    signals: &'s mut Signals,
    until: Pin<&'s mut (dyn Future<Output = ()> + Send)>,
    fault: oneshot::Receiver<Option<String>>,
    farewell: Farewell,
}

/// Serves until a signal, the end of `until`, or a fault.
async fn listen(
    listener: TcpListener,
    app: axum::Router,
    queries: &Queries,
    limits: connections::Limits,
    told: Told<'_>,
) -> Result<(), ServeError> {
    let Told { signals, until, fault, farewell } = told;
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // An error means that the sender is gone: stop as well.
        let _stopped = stopped.await;
    };
    let mut server = tokio::spawn(connections::serve(listener, app, limits, stopped));
    let fault = tokio::select! {
        () = signals.next_or(until) => None,
        fault = fault => fault.ok().flatten(),
    };
    if let Some(fault) = fault {
        return Err(ServeError::Fault(fault));
    }
    tokio::select! {
        said = tokio::task::spawn_blocking(farewell) => said.map_err(std::io::Error::other)?,
        () = signals.next() => tracing::warn!("told to stop again: nothing more is waited for"),
    }
    tracing::info!("draining");
    // The server ends with its last request. Subscriptions are told to, the rest has its grace.
    queries.close();
    let _told = stop.send(());
    if tokio::time::timeout(GRACE, &mut server).await.is_err() {
        server.abort();
    }
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        let term = signal(SignalKind::terminate())?;
        Ok(Signals { term, interrupt: signal(SignalKind::interrupt())? })
    }

    /// One of them, or the end of `until`.
    async fn next_or(&mut self, until: Pin<&mut (dyn Future<Output = ()> + Send)>) {
        tokio::select! {
            () = self.next() => {}
            () = until => {}
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
