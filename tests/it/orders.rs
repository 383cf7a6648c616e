//! The second job, which has nothing to do with ads: the `orders` example is killed with -9 at
//! random instants, started again each time, and at the end has to show what a few lines of
//! arithmetic give.

use crate::{
    seed::{count, random},
    server::TRUEUP,
};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// `cargo test` builds the examples; a single test target does not.
fn binary() -> PathBuf {
    let path = Path::new(TRUEUP).with_file_name("examples").join("orders");
    assert!(path.exists(), "{} is not built; run `cargo build --examples`", path.display());
    path
}

/// Orders, refunds and cents of each shop: order *i* is of shop *i* mod 7 and costs 100 + *i*
/// cents; every tenth is refunded.
fn expected(orders: i64) -> Vec<String> {
    let mut lines: Vec<String> = (0..7)
        .map(|shop| {
            let of_shop = || (shop..orders).step_by(7);
            let refunded = || of_shop().filter(|i| i % 10 == 0);
            let cents: i64 =
                of_shop().map(|i| 100 + i).sum::<i64>() - refunded().map(|i| 100 + i).sum::<i64>();
            let figures = vec![of_shop().count() as i64, refunded().count() as i64, cents];
            format!("shop {shop} {figures:?}")
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn orders_killed_at_random_instants_are_right_in_the_end() {
    let mut random = random("orders_killed_at_random_instants_are_right_in_the_end");
    let kills = count("TRUEUP_IT_KILLS", 5);
    let orders = 400;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("orders");
    let command = || {
        let mut command = Command::new(binary());
        command.arg(&data).arg(orders.to_string()).stdin(Stdio::null());
        command
    };
    let mut survived = 0;
    for _ in 0..kills {
        let mut child = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(400_000)));
        child.kill().unwrap();
        survived += u64::from(child.wait().unwrap().success());
    }
    assert!(survived < kills, "every run was over before it was killed");

    let output = command().output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    let mut lines: Vec<_> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, expected(orders), "{stderr}");

    // It has checkpoints without a line of its own, and the next run begins with one.
    let manifests = || std::fs::read_dir(data.join("checkpoints/manifests")).unwrap().count();
    assert!(manifests() > 0);
    let output = command().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut again: Vec<_> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    again.sort();
    assert_eq!(again, expected(orders));
}
