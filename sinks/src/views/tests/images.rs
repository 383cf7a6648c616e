//! Images of shards: a store of sections stands for the checkpoint. Images are written late, after
//! the worker went on, so that what they share is written to meanwhile.

use super::{model::Line, *};
use crate::tables::Follow;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::channel,
    },
    time::{Duration, Instant},
};
use trueup_operators::{
    feed::ImageKind,
    metrics::Metrics,
    section::{Part, SectionKey, ShardId},
};

type Image = ShardImage<4, Metrics>;
type Sections = BTreeMap<SectionKey, Vec<u8>>;

fn write(image: Image) -> Sections {
    let mut sections = Sections::new();
    let mut put = |key: SectionKey, bytes: &[u8]| {
        assert_eq!(SectionKey::open(bytes).unwrap().0, key);
        match sections.insert(key, bytes.to_vec()) {
            None => Ok(()),
            Some(_) => Err(key),
        }
    };
    image.write(&mut put).unwrap();
    sections
}

/// Puts the sections of an image over those of its shard, and forgets what is no longer state.
fn lay_over(store: &mut Sections, image: Image) {
    let (shard, keys) = (image.shard(), image.keys().collect::<BTreeSet<_>>());
    store.extend(write(image));
    store.retain(|key, _| key.shard != shard || keys.contains(key));
    let kept = store.keys().filter(|key| key.shard == shard).count();
    assert_eq!(kept, keys.len(), "every section of the state is in the store");
}

/// The section of an accumulator that has nothing to say, byte by byte.
fn silent_accumulator(shard: ShardId, epoch: Epoch) -> Vec<u8> {
    let mut bytes = vec![1, 4, shard.stage, 0];
    bytes.extend(shard.worker.to_le_bytes());
    bytes.extend([0; 10]);
    bytes.extend(epoch.to_le_bytes());
    bytes.extend([4, 0, 0, 0]);
    bytes.extend([0; 8]);
    bytes
}

/// All sections of a checkpoint.
fn checkpoint(store: &Sections, epoch: Epoch) -> Vec<Vec<u8>> {
    let shards: BTreeSet<ShardId> = store.keys().map(|key| key.shard).collect();
    let accumulators = shards.into_iter().map(|shard| silent_accumulator(shard, epoch));
    store.values().cloned().chain(accumulators).collect()
}

fn model(seed: u64, epochs: u64) -> Model {
    println!("TRUEUP_SEED={seed}");
    Model::new(Settings { seed, epochs, images: true, ..Settings::default() })
}

#[test]
fn a_chain_of_increments_is_a_whole_image() {
    let (mut increments, mut saved) = (0, 0);
    for seed in seeds(8) {
        let mut model = model(seed, 80);
        let mut store = Sections::new();
        // Images that are not written yet, and what a whole one of the same moment says.
        let mut late: VecDeque<(Image, Sections)> = VecDeque::new();
        while let Some((shard, epoch)) = model.deliver_one() {
            if let Some(image) = model.images.lock().pop() {
                assert_eq!(image.epoch(), epoch);
                let mut state = model.views.shards[shard].0.write();
                let whole = model.views.image(shard, epoch, ImageKind::Whole, &mut state);
                late.push_back((image, write(whole)));
            }
            let patience = model.random.below(12) as usize;
            while late.len() > patience
                && let Some((image, whole)) = late.pop_front()
            {
                let shard = image.shard();
                increments += 1;
                let before = store.clone();
                lay_over(&mut store, image);
                let of_shard = |s: &Sections| -> Sections {
                    s.iter()
                        .filter(|(k, _)| k.shard == shard)
                        .map(|(k, b)| (*k, b.clone()))
                        .collect()
                };
                saved += whole.keys().filter(|k| before.get(k) == whole.get(k)).count();
                assert_eq!(of_shard(&store), whole);
            }
        }
    }
    assert!(increments > 100 && saved > 1_000, "{increments} images, {saved} sections left out");
}

/// A checkpoint that grows by the images of a run.
#[derive(Default)]
struct Chain {
    store: Sections,
    /// Images of epochs that not all shards have reached.
    taken: BTreeMap<Epoch, Vec<Image>>,
}

impl Chain {
    /// Delivers once more. The epoch whose image is complete by that.
    fn deliver(&mut self, model: &mut Model) -> Option<Epoch> {
        model.deliver();
        if let Some(image) = model.images.lock().pop() {
            self.taken.entry(image.epoch()).or_default().push(image);
        }
        let first = self.taken.first_entry().filter(|of| of.get().len() == model.shards())?;
        let (epoch, images) = first.remove_entry();
        images.into_iter().for_each(|image| lay_over(&mut self.store, image));
        Some(epoch)
    }

    /// Delivers until so many more images are complete, or to the end.
    fn run(&mut self, model: &mut Model, images: u64) -> Option<Epoch> {
        let (mut complete, mut last) = (0, None);
        while complete < images && !model.delivered_all() {
            if let Some(epoch) = self.deliver(model) {
                complete += 1;
                last = Some(epoch);
            }
        }
        last.filter(|_| complete == images)
    }
}

#[test]
fn views_that_were_loaded_are_those_that_never_stopped() {
    let mut loads = 0;
    for seed in seeds(12) {
        let mut uninterrupted = model(seed, 80);
        while uninterrupted.deliver() {}
        let mut model = model(seed, 80);
        let (mut chain, mut loaded_at) = (Chain::default(), 0);
        loop {
            let images = model.random.below(3) + 1;
            let Some(epoch) = chain.run(&mut model, images) else { break };
            loads += 1;
            model.reload(epoch, checkpoint(&chain.store, epoch).into_iter()).unwrap();
            // The next image is whole whatever it is called: all that was loaded has changed.
            chain = Chain::default();
            assert_eq!(model.views.first_epoch(), Some(epoch));
            check_at(&mut model, epoch);
            for hash in loaded_at..=epoch {
                assert_eq!(model.views.epoch_hash(hash), None, "it was before the load");
            }
            loaded_at = epoch + 1;
            for _ in 0..model.random.below(60) {
                if model.delivered_all() {
                    break;
                }
                chain.deliver(&mut model);
                let visible = model.views.visible().unwrap().epoch;
                let read = model.random.between(model.views.first_epoch().unwrap(), visible);
                check_at(&mut model, read);
            }
        }
        assert!(model.delivered_all());
        for epoch in loaded_at..80 {
            let hash = model.views.epoch_hash(epoch);
            assert_eq!(hash, uninterrupted.views.epoch_hash(epoch), "epoch {epoch}");
            assert!(hash.is_some());
        }
    }
    assert!(loads > 20, "{loads} loads");
}

fn check_at(model: &mut Model, epoch: Epoch) {
    check_newest(model);
    check_tables(model, epoch);
    check_sums(model, epoch);
    check_incidents(model, epoch);
}

/// What a follower has when it reached an epoch.
fn follow_to_end(follower: &mut dyn Follow, rows: &mut BTreeMap<Line, i64>) -> Epoch {
    let (mut block, mut incidents) = (RowBlock::default(), Vec::new());
    loop {
        match follower.step(10, &mut block, &mut incidents).unwrap() {
            crate::tables::Step::Idle => return follower.at().unwrap().epoch,
            _ => {
                for row in block.rows() {
                    *rows.entry(model::line(&row)).or_default() += i64::from(row.diff);
                }
                rows.retain(|_, diff| *diff != 0);
            }
        }
    }
}

#[test]
fn subscribers_resume_at_the_epoch_of_the_image_and_older_ones_are_told() {
    for seed in seeds(6) {
        let mut model = model(seed, 60);
        let mut chain = Chain::default();
        let epoch = chain.run(&mut model, 5).unwrap();
        model.reload(epoch, checkpoint(&chain.store, epoch).into_iter()).unwrap();
        for view in model.views.catalog().views().to_vec() {
            let older = Start::After(Some(epoch - 1));
            let refused = Arc::clone(&model.views).follow(view.id, Filter::default(), older);
            assert_eq!(refused.err(), Some(ReadError::Gone { epoch: epoch - 1, first: epoch }));
        }
        let table = rollup::tables(&model.settings.rollups)[0];
        let known: Vec<Line> = model.table(table, epoch);
        let mut rows: BTreeMap<Line, i64> = known.into_iter().map(|line| (line, 1)).collect();
        let view = model.views.catalog().views()[0].id;
        let start = Start::After(Some(epoch));
        let mut follower = Arc::clone(&model.views).follow(view, Filter::default(), start).unwrap();
        while model.deliver() {
            let reached = follow_to_end(&mut *follower, &mut rows);
            let found: Vec<Line> = rows.keys().cloned().collect();
            assert_eq!(found, model.table(table, reached), "epoch {reached}");
            assert!(rows.values().all(|&diff| diff == 1));
        }
    }
}

/// Readers at older epochs while shards go on, images are taken, and others write them.
#[test]
fn readers_see_their_epoch_while_images_are_taken_and_written() {
    let mut model = model(3, 400);
    let tables = rollup::tables(&model.settings.rollups);
    let expected: Vec<Vec<Vec<Line>>> =
        (0..400).map(|epoch| tables.iter().map(|&t| model.table(t, epoch)).collect()).collect();
    let (views, done, reads) =
        (Arc::clone(&model.views), AtomicBool::new(false), AtomicU64::new(0));
    let (to_writer, images) = channel::<Image>();
    std::thread::scope(|scope| {
        scope.spawn(move || images.into_iter().map(|image| write(image).len()).sum::<usize>());
        for reader in 0..2 {
            let (views, expected, done, reads) = (&views, &expected, &done, &reads);
            scope.spawn(move || {
                let mut random = model::Random(reader << 40);
                while !done.load(Ordering::Acquire) {
                    let Some(first) = views.first_epoch() else { continue };
                    let epoch = random.between(first, views.visible().unwrap().epoch.max(first));
                    for (view, rows) in
                        views.catalog().views().iter().zip(&expected[epoch as usize])
                    {
                        match read_all(views, view.id, epoch) {
                            Ok(found) => assert_eq!(&found, rows, "{} at {epoch}", view.name),
                            Err(ReadError::Gone { .. }) => break,
                            Err(error) => panic!("{error}"),
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut delivered = 0;
        while model.deliver() {
            model.images.lock().drain(..).for_each(|image| to_writer.send(image).unwrap());
            delivered += 1;
            // However busy the machine is, readers come to read in between.
            let until = Instant::now() + Duration::from_secs(30);
            while reads.load(Ordering::Relaxed) * 8 + 100 < delivered && Instant::now() < until {
                std::thread::yield_now();
            }
        }
        drop(to_writer);
        done.store(true, Ordering::Release);
    });
    assert!(reads.into_inner() > 50);
}

fn read_all(views: &model::TestViews, view: ViewId, epoch: Epoch) -> Result<Vec<Line>, ReadError> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = views.page(view, &Filter::default(), Some(epoch), from, 7)?;
        found.extend(page.rows.rows().map(|row| model::line(&row)));
        from = page.next;
        if from.is_none() {
            found.sort();
            return Ok(found);
        }
    }
}

/// A state as it was written before duplicates were listed: it does not say how many lists there
/// are, and has three.
fn of_before(mut state: Vec<u8>) -> Vec<u8> {
    assert_eq!(state[26..28], 4_u16.to_le_bytes());
    state[26..28].fill(0);
    let lists = 32 + 8 * Counts::NUMBERS;
    state.drain(lists + 3 * 16..lists + 4 * 16);
    state
}

#[test]
fn a_checkpoint_from_before_duplicates_were_listed_is_loaded() {
    let mut copies = 0;
    for seed in seeds(6) {
        let mut model = model(seed, 60);
        let mut chain = Chain::default();
        let epoch = chain.run(&mut model, 5).unwrap();
        chain.store.retain(|key, _| !matches!(key.part, Part::List { list: 3, .. }));
        for (_, state) in chain.store.iter_mut().filter(|(key, _)| key.part == Part::State) {
            *state = of_before(std::mem::take(state));
        }
        model.reload(epoch, checkpoint(&chain.store, epoch).into_iter()).unwrap();
        for fates in [LATE_FATES, QUARANTINE_FATES] {
            let page = model.views.incidents(fates, Some(epoch), None, 100).unwrap();
            assert_eq!((page.incidents, page.total), model.incidents(fates, epoch));
        }
        // Those of before are counted; those that come are listed.
        let page = model.views.incidents(&[Fate::Duplicate], Some(epoch), None, 100).unwrap();
        let (_, total) = model.incidents(&[Fate::Duplicate], epoch);
        assert_eq!((page.incidents.len(), page.total), (0, total));
        while model.deliver() {}
        let (all, total) = model.incidents(&[Fate::Duplicate], 59);
        let page = model.views.incidents(&[Fate::Duplicate], Some(59), None, 100).unwrap();
        let since: Vec<_> = all.into_iter().filter(|((of, _), _)| *of > epoch).collect();
        copies += since.len();
        assert_eq!((page.incidents, page.total), (since, total));
    }
    assert!(copies > 20, "{copies}");
}

#[test]
fn what_is_not_a_whole_checkpoint_is_refused() {
    let mut model = model(5, 60);
    let mut chain = Chain::default();
    let epoch = chain.run(&mut model, 6).unwrap();
    let sections = checkpoint(&chain.store, epoch);
    let mut load = |sections: Vec<Vec<u8>>| model.reload(epoch, sections.into_iter());
    for at in 0..sections.len() {
        let mut missing = sections.clone();
        missing.remove(at);
        let error = load(missing).unwrap_err();
        assert!(error.ends_with("is missing") || error.contains("no part of"), "{error}");
    }
    let twice = sections.iter().cloned().chain([sections[3].clone()]).collect();
    assert!(load(twice).unwrap_err().ends_with("comes twice"));
    let table = TableId { rollup: 0, granularity: Granularity::Day };
    let key = SectionKey {
        shard: ShardId { worker: 0, stage: 0 },
        part: Part::Rows { table, bucket: Bucket(99), segment: 0 },
    };
    let stale = [&key.encode()[..], &[4, 0, 36, 0], &[0; 8]].concat();
    let more = sections.iter().cloned().chain([stale]).collect();
    let error = load(more).unwrap_err();
    let named = "worker 0, stage 0, rollup 0, day 99, segment 0: is no part of the state";
    assert_eq!(error, named);
    assert_eq!(load(sections), Ok(()));
}

#[test]
fn sections_that_are_cut_short_or_damaged_never_panic() {
    let mut model = model(5, 60);
    let mut chain = Chain::default();
    let epoch = chain.run(&mut model, 6).unwrap();
    let times = model.times(epoch);
    let sections = checkpoint(&chain.store, epoch);
    for kind in 1..=4 {
        // Of each kind one that is neither empty nor so long that this takes minutes.
        let mut of_kind: Vec<_> = sections.iter().filter(|section| section[1] == kind).collect();
        of_kind.sort_by_key(|section| section.len());
        let section = of_kind[of_kind.len() / 2];
        let take = |bytes: &[u8]| model.views.load(times).take(bytes);
        assert_eq!(take(section), Ok(()));
        for cut in 0..section.len() {
            let error = take(&section[..cut]).unwrap_err().to_string();
            assert!(error.contains("cut short"), "{error}");
        }
        let longer = [&section[..], &[0]].concat();
        assert!(take(&longer).unwrap_err().to_string().contains("ends at byte"));
        for at in 0..section.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut wrong = section.clone();
                wrong[at] ^= flip;
                // Checksums are the file's: some damage says something else. None may panic, also
                // not when all that is missing is looked for.
                let mut loader = model.views.load(times);
                if loader.take(&wrong).is_ok() {
                    drop(loader.finish().unwrap_err());
                }
            }
        }
    }
}
