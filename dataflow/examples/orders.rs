//! A whole job in one file: the revenue of shops by day. Orders are sometimes sent twice, refunds
//! come later. Kill it at any instant and start it again: the revenue is right.
//!
//!     cargo run --release -p trueup --example orders -- orders-data 2000

use serde::{Deserialize, Serialize};
use std::{error::Error, path::Path, time::UNIX_EPOCH};
use trueup::{
    Event, EventTime, Granularity, Host, Job, Output, PerEvent, RollupSpec, Rows, Source,
    config::Config,
};

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    number: String,
    shop: String,
    at_us: i64,
    cents: i64, // negative: a refund
}

impl Event for Order {
    const DIMENSIONS: &'static [&'static str] = &["shop"];

    fn id(&self) -> String {
        self.number.clone()
    }
    fn time(&self) -> EventTime {
        EventTime(self.at_us)
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.shop]
    }
}

trueup::group! { struct Revenue { orders, refunds, cents } counting orders | refunds }

struct Shops;

impl Job<1> for Shops {
    type Batch = Rows<Order>;
    type Metrics = Revenue;

    fn rollups(&self) -> Vec<RollupSpec> {
        let by_day = vec![Granularity::Day];
        vec![RollupSpec { granularities: by_day, ..RollupSpec::new("revenue", &["shop"]) }]
    }
    fn topology<'s>(&self, orders: Source<'s, Rows<Order>>) -> Output<'s, 1, Revenue> {
        let revenue = |o: &Order, _valid| {
            let refund = i64::from(o.cents < 0);
            Revenue { orders: 1 - refund, refunds: refund, cents: o.cents }
        };
        orders.dedupe().sum(PerEvent::new(&self.rollups(), revenue)).accumulate().views()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let place = args.next().ok_or("usage: orders DIR|CONFIG.toml [ORDERS]")?;
    let orders: i64 = args.next().map_or(Ok(2_000), |n| n.parse())?;
    let host = Host::configured(&Config::at(Path::new(&place))?, Shops)?;
    let at_us = UNIX_EPOCH.elapsed()?.as_micros() as i64;
    for i in 0..orders {
        let (number, shop) = (format!("order {i}"), format!("shop {}", i % 7));
        let order =
            Order { number, shop, at_us: at_us / 86_400_000_000 * 86_400_000_000, cents: 100 + i };
        let refund = Order { number: format!("refund {i}"), cents: -order.cents, ..order.clone() };
        host.send(&[order.clone(), order])?; // sent twice, counts once
        if i % 10 == 0 {
            host.send(&[refund])?;
        }
    }
    host.settle()?;
    for row in host.rows("revenue_day")? {
        println!("{} {:?}", row.dimensions[0], row.figures);
    }
    host.close();
    Ok(())
}
