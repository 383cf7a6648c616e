use super::*;
use trueup_generator::ads1::*;
#[test]
fn speed() {
    let n: u64 = std::env::var("N").unwrap().parse().unwrap();
    let ads = Ads1::new();
    let mut made = Made::new();
    let mut i = 0;
    while i < n {
        let j = (i + 10_000).min(n);
        let t = stream_time_ms(j) * 1000;
        made.append_all(ads.frames(i..j, &made.layout, 0), t);
        if let Some(v) = ads.verdict_frame(i..j, &made.layout, 0) {
            made.append_all(vec![v], t);
        }
        made.close(t);
        i = j;
    }
    let mut s = settings();
    s.lateness.correction_horizon_us = 24 * 3600 * SECOND_US;
    let start = std::time::Instant::now();
    let r = recompute(&made.log, &s, None).unwrap();
    let e = start.elapsed().as_secs_f64();
    let rows: usize = r.views.values().map(|v| v.len()).sum();
    let rss = std::fs::read_to_string("/proc/self/status").unwrap();
    let hwm = rss.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    println!(
        "{n} events {e:.2} s {:.0} ns/event rows {rows} {hwm} {:?}",
        e * 1e9 / n as f64,
        r.counts
    );
    let a = ads.reference_with_verdicts(n);
    let (mut imp, mut cl, mut inv, mut sp) = (0, 0, 0, 0);
    for row in r.views["audience_minute"].values() {
        imp += row.figures[0];
        cl += row.figures[1];
        inv += row.figures[4];
        sp += row.figures[5];
    }
    assert_eq!(
        (imp as u64, cl as u64, inv as u64, sp as u64),
        (a.impressions, a.clicks, a.invalid_clicks, a.spend_micros)
    );
}
