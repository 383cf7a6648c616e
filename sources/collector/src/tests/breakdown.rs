fn cpu() -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}
use crate::{batch::*, check::*, decode::*, fields::Field, scan::*, sent::*};
use bumpalo::Bump;
use trueup_operators::hash::{Domain, HashKey, partition};

fn body() -> Vec<u8> {
    let mut s = String::from("{\"events\":[");
    for i in 0..5000u64 {
        let r = trueup_operators::hash::mix(i, 1);
        let r2 = trueup_operators::hash::mix(i, 2);
        if i > 0 {
            s.push(',')
        }
        let c = (r % 1000) * (r % 997) / 1000;
        s += &format!(
            r#"{{"eventId":"{r:016x}{r2:016x}","eventType":"{}","occurredAt":"2023-11-14T22:14:{:02}.{:03}Z","campaignId":"cmp_{c}","adId":"ad_{}","publisherId":"pub_{}","placementId":"pl_{}","country":"{}","deviceType":"{}""#,
            if r % 20 == 0 { "click" } else { "impression" },
            i / 100 % 60,
            r % 1000,
            c * 10 + r2 % 10,
            r2 % 500,
            r2 / 500 % 20,
            ["US", "DE", "FR", "GB"][(r2 >> 20) as usize % 4],
            ["ios", "android", "desktop", "ctv", "tablet"][(r2 >> 30) as usize % 5]
        );
        if r % 20 == 0 {
            s += &format!(r#","priceMicros":{}"#, 10000 + r % 490000);
        }
        s.push('}');
    }
    s += "]}";
    s.into_bytes()
}

fn time(name: &str, mut f: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..9 {
        let t = cpu();
        for _ in 0..20 {
            f()
        }
        best = best.min((cpu() - t) / 100_000.0);
    }
    println!("{name:<30} {best:.1} ns/event");
}

#[test]
fn breakdown() {
    let b = body();
    println!("{} bytes", b.len() / 5000);
    time("utf8", || {
        std::hint::black_box(std::str::from_utf8(&b).unwrap());
    });
    let mut memo = Memo::default();
    fn each(b: &[u8], memo: &mut Memo, mut f: impl FnMut(&Sent<'_>, &Bump)) {
        let arena = Bump::new();
        let mut sc = Scanner::new(b, &arena);
        let mut sent = Sent::default();
        sc.at = 11;
        loop {
            read(&mut sc, memo, &mut sent).unwrap();
            f(&sent, &arena);
            if sc.byte() == Some(b',') { sc.at += 1 } else { break }
        }
    }
    time("scan", || {
        each(&b, &mut memo, |s, _| {
            std::hint::black_box(s.present);
        })
    });
    let key = HashKey([7; 16]);
    let mut checker = Checker::new(key);
    let terms =
        Terms { now_us: 2_000_000_000_000_000, future_skew_us_max: 0, publishers: &[], stamped: 0 };
    time("scan+siphash", || {
        each(&b, &mut memo, |s, _| {
            std::hint::black_box(key.hash(Domain::Event, s.text(Field::EventId).unwrap()));
        })
    });
    time("scan+check", || {
        each(&b, &mut memo, |s, a| {
            std::hint::black_box(checker.check(s, &terms, a).unwrap().payload_hash);
        })
    });
    let mut batches: Vec<Batch> = (0..4).map(|_| Batch::default()).collect();
    let none = |_: &str| None;
    time("scan+check+push", || {
        batches.iter_mut().for_each(Batch::clear);
        each(&b, &mut memo, |s, a| {
            let c = checker.check(s, &terms, a).unwrap();
            let cx = Context {
                key,
                advertiser_of: &none,
                hashes: &checker.hashes,
                invalid_reason: None,
            };
            batches[partition(&c.id_hash, 4) as usize].push(s, &c, &cx)
        });
    });
    time("finish", || {
        batches.iter_mut().for_each(|b| {
            std::hint::black_box(b.finish().unwrap());
        })
    });
    let mut d = Decoder::new(key, 4);
    let rules = Rules {
        now_us: 2_000_000_000_000_000,
        future_skew_us_max: 0,
        events_max: 10000,
        publishers: &[],
        advertiser_of: &none,
    };
    time("all", || {
        std::hint::black_box(d.decode(&b, Format::Json, &rules).unwrap());
    });
}
