//! A server of its own for a test: the built binary on a directory and a port that nobody else
//! has, killed when the test is over.
//!
//! Ports are taken from below the range that the kernel gives to outgoing connections, so that no
//! client of another test takes the port while the server is down between two of its lives. What
//! the server writes to stderr goes to a file; a test that fails prints the end of it.

use crate::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File, OpenOptions},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const TRUEUP: &str = env!("CARGO_BIN_EXE_trueup");

/// How long a server may take to be ready, or to end. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
const STDERR_SHOWN_BYTES: usize = 6_000;

/// A directory, a configuration and a port: what stays when a server dies.
pub(crate) struct Home {
    dir: TempDir,
    listen: SocketAddr,
}

impl Home {
    /// With this configuration.
    pub(crate) fn new(config: &str) -> Home {
        let home = Home { dir: TempDir::new().unwrap(), listen: free_port() };
        home.configure(config);
        home
    }

    /// Replaces the configuration; the next start reads it.
    pub(crate) fn configure(&self, config: &str) {
        fs::write(self.config_path(), config).unwrap();
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("trueup.toml")
    }

    fn stderr_path(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    /// The end of what the servers here have written to stderr.
    pub(crate) fn stderr(&self) -> String {
        let text = fs::read(self.stderr_path()).unwrap_or_default();
        let from = text.len().saturating_sub(STDERR_SHOWN_BYTES);
        String::from_utf8_lossy(&text[from..]).into_owned()
    }

    /// A client of the server here, whether it lives or not.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.listen)
    }

    /// The command that starts the server here.
    pub(crate) fn serve(&self) -> Command {
        let mut command = Command::new(TRUEUP);
        self.serve_args(&mut command);
        command
    }

    /// The same, behind a shell that does something before.
    pub(crate) fn serve_after(&self, shell: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg("-c").arg(format!("{shell}; exec \"$0\" \"$@\"")).arg(TRUEUP);
        self.serve_args(&mut command);
        command
    }

    fn serve_args(&self, command: &mut Command) {
        forget_environment(command);
        let stderr = OpenOptions::new().create(true).append(true).open(self.stderr_path());
        command
            .arg("serve")
            .arg("--data")
            .arg(self.data())
            .args(["--listen", &self.listen.to_string()])
            .arg("--config")
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(File::create(self.dir.path().join("stdout")).unwrap())
            .stderr(stderr.unwrap());
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start(&self) -> Server<'_> {
        self.start_with(&[])
    }

    /// The same, with further arguments.
    pub(crate) fn start_with(&self, args: &[&str]) -> Server<'_> {
        let mut command = self.serve();
        command.args(args);
        let mut server = Server::spawn(self, command);
        server.wait_until_ready();
        server
    }

    /// Runs another command on the data directory: its exit code, stdout and stderr.
    pub(crate) fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(TRUEUP);
        forget_environment(&mut command);
        let output = command
            .args(args)
            .arg("--data")
            .arg(self.data())
            .arg("--config")
            .arg(self.config_path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

/// A running server.
pub(crate) struct Server<'h> {
    home: &'h Home,
    child: Child,
}

impl<'h> Server<'h> {
    pub(crate) fn spawn(home: &'h Home, mut command: Command) -> Server<'h> {
        Server { home, child: command.spawn().unwrap() }
    }

    pub(crate) fn client(&self) -> Client {
        self.home.client()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn wait_until_ready(&mut self) {
        let (client, began) = (self.client(), Instant::now());
        loop {
            if let Some(status) = self.ended() {
                panic!("the server ended with {status}:\n{}", self.home.stderr());
            }
            let answer = client.try_get("/readyz");
            if answer.as_ref().is_ok_and(|a| a.status == 200) {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "not ready after {PATIENCE:?}; /readyz says {answer:?}\n{}",
                self.home.stderr()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// kill -9: no word, no last write.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.home.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", self.home.stderr());
        }
        // It may have ended already; then there is nothing to kill and nothing to wait for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Every flag has a twin in the environment; `TRUEUP_SEED` is one, and means something else here.
fn forget_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRUEUP_") {
            command.env_remove(name);
        }
    }
}

/// A port of this machine that nothing listens on and that no outgoing connection gets.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const PORTS: u16 = 12_000;
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    for _ in 0..PORTS {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_mul(7).wrapping_add(nth)) % PORTS;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port from {FIRST} on is free");
}

/// Copies a data directory, as a backup would of a server that does not run.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
