//! (being written)
use clap::Parser;
#[derive(Parser)]
struct Cli { #[command(flatten)] bench: trueup::bench::Bench }
fn main() {
    for line in Cli::parse().bench.run_engine().unwrap() { println!("{line}"); }
}
