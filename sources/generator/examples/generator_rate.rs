//! How fast the generators are, on one thread: `cargo run --release -p trueup-generator --example
//! generator_rate [events]`. What measures others must not be what is measured.

use std::{hint::black_box, time::Instant};
use trueup_generator::{ads1::Ads1, demo::Demo, frames::Layout, ysb::Ysb};
use trueup_operators::hash::HashKey;

fn rate(what: &str, events: u64, run: impl FnOnce() -> usize) {
    let start = Instant::now();
    let bytes = run();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{what:<24} {:>6.2} M events/s {:>7.0} ns/event {:>6.1} bytes/event",
        events as f64 / seconds / 1e6,
        seconds * 1e9 / events as f64,
        bytes as f64 / events as f64,
    );
}

fn main() {
    let events = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2_000_000u64);
    let ads = Ads1::new();
    let layout = Layout { partitions: 4, key: HashKey([1; 16]) };
    rate("ads1 events", events, || {
        for i in 0..events {
            black_box(ads.event(i));
        }
        0
    });
    rate("ads1 JSON bodies", events, || {
        ads.bodies(events, 5_000, 0).map(|body| black_box(body).len()).sum()
    });
    rate("ads1 Arrow bodies", events, || {
        let body = |n| ads.arrow_body(n..events.min(n + 5_000), 0);
        (0..events).step_by(5_000).map(|n| black_box(body(n)).len()).sum()
    });
    rate("ads1 frames", events, || {
        let frames = |n| ads.frames(n..events.min(n + 5_000), &layout, 0);
        (0..events).step_by(5_000).flat_map(frames).map(|f| black_box(f).payload.len()).sum()
    });
    rate("ysb lines", events, || {
        let (ysb, mut line, mut bytes) = (Ysb::new(1), Vec::new(), 0);
        for i in 0..events {
            line.clear();
            ysb.line(i, 0, &mut line);
            bytes += black_box(&line).len();
        }
        bytes
    });
    let (mut demo, mut demo_events, mut bytes) = (Demo::new(1, 100_000.0), 0, 0);
    let start = Instant::now();
    for n in 0..20 {
        let tick = demo.tick(1_792_929_600_000_000 + n * 100_000, 100);
        demo_events += tick.events as u64;
        bytes += black_box(tick.bodies).iter().map(Vec::len).sum::<usize>();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{:<24} {:>6.2} M events/s {:>7.0} ns/event {:>6.1} bytes/event",
        "demo bodies",
        demo_events as f64 / seconds / 1e6,
        seconds * 1e9 / demo_events as f64,
        bytes as f64 / demo_events as f64
    );
}
