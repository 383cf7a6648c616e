//! The ledger as a timely operator. It holds the two inputs together by epoch and keeps the order
//! that the rules need: an epoch's events are entered as they come, but not before all earlier
//! epochs are done; its verdicts are applied when neither input can bring anything more of it, in
//! as many activations as reading the batches back takes ([`Ledger::carry_out`]).
//!
//! A capability is held for each epoch that is waiting, so the frontier behind the operator passes
//! an epoch exactly when everything about it has been said. How many epochs wait is the source's
//! limit: it sends no more of them than it lets be in flight.
//!
//! An image of the ledger is of the end of an epoch: it is taken when the epoch is done and before
//! the next one is opened, whatever of the next one has come already.

use super::{Judging, Ledger, LedgerFault, LedgerImage, LedgerSettings, Ledgered};
use crate::{
    accumulate::Times,
    event::EventBatch,
    feed::{Feed, Judgement, ReadBack},
    time::Epoch,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, btree_map::Entry},
    rc::Rc,
    sync::Arc,
};
use timely::{
    dataflow::{
        StreamVec,
        channels::pact::{Exchange, Pipeline},
        operators::{Capability, InputCapability, generic::operator::Operator},
    },
    progress::frontier::MutableAntichain,
};

/// Everything of an epoch that is not done.
struct Pending<B> {
    capability: Capability<Epoch>,
    opened: bool,
    feeds: Vec<Feed<B>>,
    judgements: Vec<Judgement>,
    /// What they change, once all are there.
    judging: Option<Judging>,
}

/// Takes the images of the ends of epochs.
pub type OnImage = Rc<dyn Fn(Epoch, LedgerImage)>;

/// The operator's state beside the ledger.
struct Epochs<B> {
    pending: BTreeMap<Epoch, Pending<B>>,
    settings: LedgerSettings,
    times: Times,
    on_image: OnImage,
    /// A fault was reported. Capabilities are held for good, and nothing is emitted.
    stopped: bool,
}

/// Builds the operator. `events` are where the vnodes of their ids are owned, in the order of the
/// log, each epoch begun by a [`Feed::Open`]; `verdicts` go to the worker that they name. On a
/// fault `fault` is called once with what happened; the operator then holds its frontier.
///
/// The ledger is new or loaded. At the end of each epoch that `times` marks for an image,
/// `on_image` gets it, within the step of the worker in which the epoch is done.
///
/// The ledger is shared with the caller for look-ups between steps of the worker.
#[expect(clippy::type_complexity, reason = "a stream and a shared ledger, both plain")]
pub fn ledger<'scope, B, R>(
    events: StreamVec<'scope, Epoch, Feed<B>>,
    verdicts: StreamVec<'scope, Epoch, Judgement>,
    ledger: Ledger,
    mut read_back: R,
    times: Times,
    on_image: OnImage,
    fault: Rc<dyn Fn(String)>,
) -> (StreamVec<'scope, Epoch, Arc<Ledgered<B>>>, Rc<RefCell<Ledger>>)
where
    B: EventBatch,
    R: ReadBack<B>,
{
    let settings = ledger.settings;
    let ledger = Rc::new(RefCell::new(ledger));
    let state = Rc::clone(&ledger);
    let to_worker = Exchange::new(|j: &Judgement| u64::from(j.worker));
    let pending = BTreeMap::<Epoch, Pending<B>>::new();
    let mut epochs = Epochs { pending, settings, times, on_image, stopped: false };
    let scope = events.scope();
    let stream = events.binary_frontier(verdicts, Pipeline, to_worker, "Ledger", |_, info| {
        let again = scope.activator_for(info.address);
        move |(feeds, feeds_frontier), (judgements, judgements_frontier), output| {
            feeds.for_each(|capability, data: &mut Vec<Feed<B>>| {
                if let Some(epoch) = epochs.of(&capability) {
                    epoch.feeds.append(data);
                }
            });
            judgements.for_each(|capability, data: &mut Vec<Judgement>| {
                if let Some(epoch) = epochs.of(&capability) {
                    epoch.judgements.append(data);
                }
            });
            if epochs.stopped {
                return;
            }
            let frontiers = [feeds_frontier, judgements_frontier];
            let mut ledger = state.borrow_mut();
            let emit = |capability: &Capability<Epoch>, ledgered| {
                let mut session = output.session(capability);
                session.give(Arc::new(ledgered));
            };
            match epochs.advance(&mut ledger, frontiers, &mut read_back, emit) {
                Ok(true) => {}
                Ok(false) => again.activate(),
                Err(reason) => {
                    epochs.stopped = true;
                    fault(reason.to_string());
                }
            }
        }
    });
    (stream.container::<Vec<_>>(), ledger)
}

impl<B: EventBatch> Epochs<B> {
    /// The epoch that a message is of. `None`: it is not wanted any more.
    fn of(&mut self, capability: &InputCapability<Epoch>) -> Option<&mut Pending<B>> {
        if self.stopped {
            return None;
        }
        // A message without a time carries nothing.
        let epoch = *capability.least()?;
        match self.pending.entry(epoch) {
            Entry::Occupied(pending) => Some(pending.into_mut()),
            Entry::Vacant(vacant) => {
                let capability = capability.retain_least(0)?;
                let (feeds, judgements) = (Vec::new(), Vec::new());
                let (opened, judging) = (false, None);
                Some(vacant.insert(Pending { capability, opened, feeds, judgements, judging }))
            }
        }
    }

    /// Does what can be done: earliest epoch first, none before all earlier ones are done. `false`:
    /// there is more that could be done at once, when those behind the ledger had their turn.
    fn advance(
        &mut self,
        ledger: &mut Ledger,
        frontiers: [&MutableAntichain<Epoch>; 2],
        read_back: &mut impl ReadBack<B>,
        mut emit: impl FnMut(&Capability<Epoch>, Ledgered<B>),
    ) -> Result<bool, LedgerFault> {
        while let Some(mut first) = self.pending.first_entry() {
            let epoch = *first.key();
            if frontiers.iter().any(|f| f.less_than(&epoch)) {
                break;
            }
            let pending = first.get_mut();
            let Pending { capability, opened, feeds, judgements, judging } = pending;
            for feed in feeds.drain(..) {
                match feed {
                    Feed::Open(times) if times.epoch == epoch && !*opened => {
                        *opened = true;
                        ledger.open(times)?;
                    }
                    Feed::Batch(batch) if *opened => emit(capability, ledger.enter(&batch)?),
                    Feed::Foreign(incident) if *opened => {
                        emit(capability, Ledgered::aside(incident))
                    }
                    Feed::Open(times) => return Err(misplaced(epoch, &format!("{times:?}"))),
                    Feed::Batch(_) | Feed::Foreign(_) => {
                        return Err(misplaced(epoch, "a batch before its Open"));
                    }
                }
            }
            if frontiers.iter().any(|f| f.less_equal(&epoch)) {
                break;
            }
            if !*opened {
                return Err(misplaced(epoch, "verdicts, and no Open"));
            }
            let judging = match judging {
                Some(judging) => judging,
                None => judging.insert(judge(&self.settings, ledger, epoch, judgements)?),
            };
            if !ledger.carry_out(judging, read_back, &mut |out| emit(capability, out))? {
                return Ok(false);
            }
            first.remove();
            let marked = self.times.borrow().get(&epoch).and_then(|under_way| under_way.image);
            if let Some(kind) = marked {
                (self.on_image)(epoch, ledger.image(kind));
            }
        }
        Ok(true)
    }
}

/// Gives the ledger all verdicts of an epoch.
fn judge(
    settings: &LedgerSettings,
    ledger: &mut Ledger,
    epoch: Epoch,
    judgements: &mut Vec<Judgement>,
) -> Result<Judging, LedgerFault> {
    let LedgerSettings { worker, peers, .. } = settings;
    if let Some(stray) = judgements.iter().find(|j| j.worker != *worker) {
        let stray = format!("on worker {worker} of {peers}: {stray:?}");
        return Err(misplaced(epoch, &stray));
    }
    ledger.judge(std::mem::take(judgements))
}

fn misplaced(epoch: Epoch, what: &str) -> LedgerFault {
    LedgerFault::Feed(format!("epoch {epoch} was fed {what}"))
}
