//! Placeholder.
use crate::decode::Intake;
use trueup_operators::problem::Problem;

pub(crate) fn read(_: &mut Intake<'_>, _: &[u8]) -> Result<(), Problem> {
    Ok(())
}
