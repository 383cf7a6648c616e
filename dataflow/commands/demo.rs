//! `trueup demo`: a server on the loopback in a directory of its own, and traffic that looks alive.

use super::{Failure, generate::send, remote::Remote};
use crate::{
    cli,
    config::Span,
    server::{self, Running},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use trueup_generator::demo::Demo;
use trueup_operators::access::{Action, Token};

/// How often traffic is made.
const TICK: Duration = Duration::from_millis(100);

/// Runs the demo until it is told to stop or its time is over.
///
/// # Errors
/// When the server cannot start, or a fault ends it.
pub fn demo(command: cli::Demo) -> Result<(), Failure> {
    let mut config = command.common.load()?;
    let token = token_of(&config.auth.tokens)?;
    let own = command.common.data.is_none() && command.common.config.is_none();
    if own {
        // Each demo begins empty; a run that should last names a directory.
        let name = format!("trueup-demo-{}", std::process::id());
        config.data_dir = std::env::temp_dir().join(name);
    }
    let dir = config.data_dir.clone();
    let over = Arc::new(Notify::new());
    let (driven, ended) = mpsc::channel();
    let until = {
        let (over, duration) = (Arc::clone(&over), command.duration);
        async move {
            match duration {
                Some(Span(duration)) => tokio::time::sleep(duration).await,
                None => over.notified().await,
            }
        }
    };
    let served = server::serve(config, until, |running| {
        introduce(&running, &command, token.is_some());
        let stop = Arc::new(AtomicBool::new(false));
        let (base, stopping) = (format!("http://{}", running.address), Arc::clone(&stop));
        let (rate, seed) = (command.rate, command.seed);
        let traffic = std::thread::spawn(move || {
            let remote = Remote::new(&base, token.as_deref());
            let result = drive(&remote, rate, seed, &stopping);
            over.notify_one();
            result
        });
        // The traffic ends before the server does: then nothing of it is refused.
        Box::new(move || {
            stop.store(true, Ordering::Release);
            let _nobody_asks = driven.send(traffic.join());
        })
    });
    // A server that could not start has made nothing.
    if own
        && dir.exists()
        && let Err(error) = std::fs::remove_dir_all(&dir)
    {
        tracing::warn!(dir = %dir.display(), %error, "the demo's directory could not be removed");
    }
    served?;
    match ended.try_recv() {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Failure::Internal("the traffic ended by a panic".into())),
        // The server was told to stop twice.
        Err(_) => Ok(()),
    }
}

/// A token that may do what the traffic does: put metadata, and send events of all publishers and
/// verdicts. None where nobody needs one.
fn token_of(tokens: &[Token]) -> Result<Option<String>, Failure> {
    let actions = [Action::Operate, Action::Collect, Action::Judge];
    let may = |token: &&Token| {
        token.publishers.is_empty() && actions.iter().all(|&action| token.role.may(action))
    };
    match tokens.iter().find(may) {
        Some(token) => Ok(Some(token.token.clone())),
        None if tokens.is_empty() => Ok(None),
        None => Err(Failure::Use(format!(
            "the configuration has {} in `auth.tokens` and none of an operator: the demo puts \
             metadata and sends events and verdicts; add one with `role = \"operator\"`, or leave \
             all tokens out",
            tokens.len()
        ))),
    }
}

fn introduce(running: &Running, command: &cli::Demo, with_token: bool) {
    let base = format!("http://{}", running.address);
    if with_token {
        eprintln!(
            "\n  the server asks for a token: add -H 'authorization: Bearer …' with one of \
             `auth.tokens`"
        );
    }
    eprintln!(
        "\n  live page   {base}/\n  \
         report      curl '{base}/v1/reports/top?metric=clicks&by=adId&window=15m&limit=5'\n  \
         corrections curl -N '{base}/v1/views/region_minute/subscribe?snapshot=false'\n  \
         status      curl '{base}/v1/status'\n\n  \
         about {} events a second, seed {}; stop with Ctrl-C\n",
        command.rate, command.seed
    );
}

/// Sends traffic until told to stop. What the collector cannot take now it gets again.
fn drive(remote: &Remote, rate: f64, seed: u64, stop: &AtomicBool) -> Result<(), Failure> {
    let mut demo = Demo::new(seed, rate);
    wait_until_ready(remote, stop)?;
    for (path, body) in demo.metadata() {
        let answer = remote
            .send("PUT", &path, "application/json", body.to_string().as_bytes())
            .map_err(Failure::Internal)?;
        if !(200..300).contains(&answer.status) {
            return Err(Failure::Internal(format!("PUT {path}: {}", answer.body)));
        }
    }
    let mut next = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let tick = demo.tick(jiff::Timestamp::now().as_microsecond(), TICK.as_millis() as u64);
        if let Err(failure) = send(remote, &tick, stop) {
            // What was refused once is not sent again when it is time to stop.
            return if stop.load(Ordering::Acquire) { Ok(()) } else { Err(failure) };
        }
        next += TICK;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        // Behind by more than a tick: do not hurry after it.
        next = next.max(Instant::now() - TICK);
    }
    Ok(())
}

fn wait_until_ready(remote: &Remote, stop: &AtomicBool) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(600);
    while !stop.load(Ordering::Acquire) {
        match remote.send("GET", "/readyz", "application/json", b"") {
            Ok(answer) if answer.status == 200 => return Ok(()),
            _ if Instant::now() > until => {
                return Err(Failure::Internal("the server is not ready after 600 s".into()));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    Ok(())
}
