//! `trueup`: reads the command line, runs one command, and turns its end into an exit code:
//! 0 done, 1 a check failed, 2 wrong use, 70 internal error.

use clap::Parser;
use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use std::{ffi::c_long, io::IsTerminal, process::ExitCode};
use trueup::{
    cli::{Cli, Command},
    commands::{self, Failure},
    ipc,
    server::HTTP_THREAD,
};

/// An epoch's sums and changes are vectors of megabytes that come and go ten times a second. The
/// system's allocator gives such memory back and faults it in again, page by page (BENCHMARKS.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long freed memory stays with the process, ms. By itself mimalloc gives it back after one
/// second, and what an epoch takes again later is faulted in again (BENCHMARKS.md).
const KEPT_MS: c_long = 10_000;
/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;

fn main() -> ExitCode {
    // SAFETY: sets a number that the allocator reads. What `MIMALLOC_PURGE_DELAY` says goes first.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT_MS) };
    if let Err(missing) = processor() {
        eprintln!("error: {missing}");
        return ExitCode::from(2);
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("TRUEUP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    end_with_the_first_panic();
    let result = match Cli::parse().command {
        Command::Demo(demo) => commands::demo(demo),
        Command::Serve(common) => commands::serve(common.load()),
        Command::Worker(worker) => commands::serve(worker.load()),
        Command::Generate(generate) => commands::generate(&generate),
        Command::Replay(replay) => commands::replay(&replay),
        Command::Verify(verify) => commands::verify(&verify),
        Command::Bench(bench) => commands::bench(&bench),
        Command::Doctor(doctor) => commands::doctor(&doctor),
        Command::Config(common) => commands::config(&common),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text().is_empty() {
                eprintln!("error: {}", failure.text());
            }
            ExitCode::from(match failure {
                Failure::Check(_) => 1,
                Failure::Use(_) => 2,
                Failure::Internal(_) => 70,
            })
        }
    }
}

/// A worker, the epochs' thread or the log's writer that panicked would leave the others waiting
/// for it: the process ends instead, and the next start goes on from the log. A thread that answers
/// requests takes only its request with it, and a stream that Arrow cannot read only its message,
/// which would otherwise end every start as well.
fn end_with_the_first_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if ipc::is_reading() {
            return;
        }
        report(panic);
        if std::thread::current().name() != Some(HTTP_THREAD) {
            std::process::exit(70);
        }
    }));
}

/// The build asks for x86-64-v3 (`.cargo/config.toml`); an older processor would stop at some
/// instruction without a word.
#[cfg(target_arch = "x86_64")]
fn processor() -> Result<(), &'static str> {
    // `is_x86_feature_detected!` is constant in a build that assumes the feature, so ask the
    // processor: leaf 7, EBX bit 5 is AVX2.
    let has_leaf_7 = std::arch::x86_64::__cpuid(0).eax >= 7;
    match has_leaf_7 && std::arch::x86_64::__cpuid_count(7, 0).ebx >> 5 & 1 == 1 {
        true => Ok(()),
        false => Err("this processor has no AVX2, which this build needs; build with \
                      RUSTFLAGS=\"-C target-cpu=x86-64\""),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> Result<(), &'static str> {
    Ok(())
}
