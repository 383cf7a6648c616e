//! What a chunk costs on its way to another process: rewriting symbols to texts, writing, reading,
//! rewriting to symbols. One thread, sums of the ad job's four dimensions.
//!
//! ```text
//! cargo run --release -p trueup-operators --example chunk_rate -- [sums of a chunk]
//! ```
//!
//! Every fourth sum has a text that no other has; the other dimensions have a hundred each.

use std::{hint::black_box, sync::Arc, time::Instant};
use timely::{bytes::arc::BytesMut, dataflow::channels::ContainerBytes};
use trueup_operators::{
    hash::mix,
    metrics::Metrics,
    money::Nanos,
    sum::{
        Chunk, Sum,
        crossing::{Crossing, Form},
    },
    symbols::Symbols,
    time::Bucket,
};

type Chunks = Vec<Chunk<4, Metrics>>;

const ROUNDS: u64 = 20;

fn chunk(symbols: &Symbols, sums: u64) -> Chunk<4, Metrics> {
    let sum = |i: u64| {
        let common = |d: u64| symbols.intern(&format!("dimension_{d}_value_{}", mix(i, d) % 100));
        let rare = symbols.intern(&format!("campaign_{:06}", i / 4));
        let metrics = Metrics { impressions: 1, spend: Nanos(i as i64), ..Metrics::default() };
        Sum { key: [rare, common(1), common(2), common(3)], bucket: Bucket(9), metrics }
    };
    let sums = (0..sums).map(sum).collect();
    Chunk { target: 1, rollup: 0, granularity: None, overflows: 0, form: Form::Here, sums }
}

fn main() {
    let sums = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000_u64);
    let (here, there) = (Arc::new(Symbols::default()), Arc::new(Symbols::default()));
    let mut departing = Crossing::new(Arc::clone(&here), 0, 1);
    let mut arriving = Crossing::new(there, 1, 1);
    let original = chunk(&here, sums);
    let (mut ns, mut bytes_sent) = ([0_u128; 4], 0);
    for round in 0..=ROUNDS {
        let chunk = original.clone();
        let start = Instant::now();
        let chunk: Chunks = vec![departing.depart(chunk)];
        let departed = start.elapsed();
        let mut bytes = Vec::with_capacity(chunk.length_in_bytes());
        chunk.into_bytes(&mut bytes);
        let written = start.elapsed();
        bytes_sent = bytes.len();
        let bytes = BytesMut::from(bytes).freeze();
        let before = start.elapsed();
        let mut chunk = Chunks::from_bytes(bytes);
        let read = start.elapsed();
        black_box(chunk.drain(..).map(|chunk| arriving.arrive(chunk)).count());
        let arrived = start.elapsed();
        // The first round meets new texts and cold caches.
        if round > 0 {
            ns[0] += departed.as_nanos();
            ns[1] += (written - departed).as_nanos();
            ns[2] += (read - before).as_nanos();
            ns[3] += (arrived - read).as_nanos();
        }
    }
    let each = ns.map(|ns| ns as f64 / (ROUNDS * sums) as f64);
    println!("{sums} sums, {:.1} bytes each", bytes_sent as f64 / sums as f64);
    println!(
        "ns a sum: {:.1} to texts, {:.1} written, {:.1} read, {:.1} to symbols",
        each[0], each[1], each[2], each[3]
    );
}
