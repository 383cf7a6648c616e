//! A job that is wrong: the ad job, but that spend is ten times what it should be. What it leaves
//! in checkpoints is what a bug would leave that was mended since.

use crate::server::Home;
use trueup::{
    Contribution, Host, Job, Key, Output, RollupSpec, RowDelta, Source,
    ads::{AD_DIMENSIONS_MAX, AdBatch, AdContribution},
    config::Config,
};
use trueup_operators::metrics::Metrics;

/// The job.
struct Dear(Vec<RollupSpec>);

struct TenTimes(AdContribution);

impl Job<AD_DIMENSIONS_MAX> for Dear {
    type Batch = AdBatch;
    type Metrics = Metrics;

    fn rollups(&self) -> Vec<RollupSpec> {
        self.0.clone()
    }
    fn topology<'s>(&self, source: Source<'s, AdBatch>) -> Output<'s, AD_DIMENSIONS_MAX, Metrics> {
        source.dedupe().sum(TenTimes(AdContribution::new(&self.0))).accumulate().views()
    }
}

impl<const N: usize> Contribution<AdBatch, N> for TenTimes {
    type Metrics = Metrics;

    fn rollups(&self) -> usize {
        Contribution::<AdBatch, N>::rollups(&self.0)
    }
    fn metrics(&self, batch: &AdBatch, row: usize, valid: bool) -> Metrics {
        let mut metrics = Contribution::<AdBatch, N>::metrics(&self.0, batch, row, valid);
        for _ in 0..9 {
            let again = Contribution::<AdBatch, N>::metrics(&self.0, batch, row, valid);
            metrics.spend.0 += again.spend.0;
        }
        metrics
    }
    fn keys(&self, rollup: usize, batch: &AdBatch, rows: &[RowDelta], keys: &mut Vec<Key<N>>) {
        self.0.keys(rollup, batch, rows, keys);
    }
}

/// Runs it in the place of the processes of these homes until it shows all that their log has, and
/// takes a checkpoint.
pub(crate) fn run(homes: &[&Home]) {
    let hosts: Vec<Host> = homes
        .iter()
        .map(|home| {
            let mut config = Config::at(&home.config_path()).unwrap();
            config.data_dir = home.data();
            let job = Dear(config.rollups.clone());
            Host::configured::<Dear, AD_DIMENSIONS_MAX>(&config, job).unwrap()
        })
        .collect();
    for host in &hosts {
        host.settle().unwrap();
    }
    // Each waits for the others.
    std::thread::scope(|scope| {
        for host in hosts {
            scope.spawn(|| host.close());
        }
    });
}
