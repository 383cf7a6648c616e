//! Flipped, cut and lost bytes are all noticed, and the checkpoint before is the one then.

use super::{
    State, claim, key, newest, pack,
    simulated::{Disk, Simulated},
    state, take,
};
use crate::checkpoint::{
    keeper::{Sections, manifests, read_manifest},
    manifest::{Manifest, ManifestName},
    pack::{KEY_BYTES_MAX, PackOf},
    store::{Objects, Store, StoreError},
};
use std::sync::Arc;

/// Two checkpoints; the second is an increment on the first. The state of each.
fn two(store: &Arc<dyn Store>) -> [State; 2] {
    let mut keeper = claim(store);
    let first = state(9, 1);
    take(&mut keeper, 5, &first, None).unwrap();
    let mut second = first.clone();
    second.remove(&key(3));
    second.insert(key(4), vec![77; 500]);
    second.insert(key(100), Vec::new());
    take(&mut keeper, 6, &second, Some(&[key(4), key(100)])).unwrap();
    [first, second]
}

#[test]
fn every_byte_counts() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    let [first, second] = two(&store);
    assert_eq!(newest(&*store), (Some((6, 1, second.clone())), vec![]));
    let whole = disk.lock().clone();
    let (mut noticed, mut dead) = (0, 0);
    for (name, object) in &whole {
        for (at, &byte) in object.iter().enumerate() {
            disk.lock().get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            let (found, broken) = newest(&*store);
            // What is dead, or an index that a later one has replaced, nobody reads.
            let unread = broken.is_empty();
            assert_eq!(unread, found == Some((6, 1, second.clone())), "{name} {at}");
            let is_of_first = found == Some((5, 1, first.clone()));
            let in_both = name.starts_with("packs/") && name.contains("005-");
            assert!(unread || is_of_first || in_both && found.is_none(), "{name} {at}");
            (noticed, dead) = if unread { (noticed, dead + 1) } else { (noticed + 1, dead) };
            disk.lock().get_mut(name).unwrap()[at] = byte;
        }
        for cut in 0..object.len() {
            disk.lock().get_mut(name).unwrap().truncate(cut);
            let (found, broken) = newest(&*store);
            assert!(found != Some((6, 1, second.clone())) || broken.is_empty(), "{name} {cut}");
            *disk.lock().get_mut(name).unwrap() = object.clone();
        }
        disk.lock().remove(name);
        let (found, broken) = newest(&*store);
        assert!(found.is_none_or(|(epoch, ..)| epoch == 5) || broken.is_empty(), "{name}");
        disk.lock().insert(name.clone(), object.clone());
    }
    assert!(noticed > 1_000 && dead > 100, "{noticed} bytes were noticed, {dead} are dead");
}

#[test]
fn a_broken_newest_one_falls_back_and_does_not_push_out_the_good_one() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    let [first, _] = two(&store);
    let broken = ManifestName { generation: 1, epoch: 6 };
    let name = PackOf { epoch: 6, generation: 1, writer: 0 }.name();
    disk.lock().get_mut(&name).unwrap()[40] ^= 1;
    let (found, reasons) = newest(&*store);
    assert_eq!(found, Some((5, 1, first.clone())));
    let [reason] = &reasons[..] else { panic!("{reasons:?}") };
    assert!(reason.contains(&name) && reason.contains("checksum"), "{reason}");

    let mut keeper = claim(&store);
    keeper.condemn(broken);
    take(&mut keeper, 6, &state(2, 9), None).unwrap();
    let left: Vec<_> = manifests(&*store).unwrap();
    let named = |names: &[(u64, u64)]| -> Vec<ManifestName> {
        names.iter().map(|&(generation, epoch)| ManifestName { generation, epoch }).collect()
    };
    // It is not among the two that are kept, nor is it the first to go.
    let kept = named(&[(2, 6), (1, 6), (1, 5)]);
    assert_eq!(left, kept);
    take(&mut keeper, 7, &state(2, 9), None).unwrap();
    assert_eq!(manifests(&*store).unwrap(), named(&[(2, 7), (2, 6)]));
    disk.lock().remove(&named(&[(2, 7)])[0].to_string());
    assert_eq!(newest(&*store).0.unwrap().0, 6);
}

#[test]
fn the_good_one_below_a_broken_one_is_kept() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    let [first, _] = two(&store);
    let name = PackOf { epoch: 6, generation: 1, writer: 0 }.name();
    disk.lock().get_mut(&name).unwrap()[40] ^= 1;
    let mut keeper = claim(&store);
    keeper.condemn(ManifestName { generation: 1, epoch: 6 });
    take(&mut keeper, 6, &state(2, 9), None).unwrap();
    let kept = manifests(&*store).unwrap();
    disk.lock().remove(&kept[0].to_string());
    assert_eq!(newest(&*store).0, Some((5, 1, first)));
}

#[test]
fn what_is_too_large_is_refused_and_nothing_is_published() {
    let store = Simulated::lasting(&Disk::default());
    let keeper = claim(&store);
    let long = vec![1; KEY_BYTES_MAX + 1];
    let error = pack(&keeper, 1, &State::from([(long, vec![])]), None).unwrap_err().to_string();
    assert!(error.contains("key has 256; at most 255"), "{error}");
    assert_eq!(newest(&*store), (None, vec![]));
}

#[test]
fn a_manifest_of_another_checkpoint_or_format_is_none() {
    let disk = Disk::default();
    let store = Simulated::lasting(&disk);
    two(&store);
    let [newer, older] = manifests(&*store).unwrap()[..] else { panic!("two are kept") };
    let bytes = disk.lock()[&older.to_string()].clone();
    disk.lock().insert(newer.to_string(), bytes.clone());
    let error = read_manifest(&*store, newer).unwrap_err().to_string();
    assert!(error.contains("another checkpoint"), "{error}");

    let text = String::from_utf8(bytes).unwrap();
    let inner = text.split_once("\"manifest\":").unwrap().1.strip_suffix('}').unwrap();
    let inner = inner.replace("\"format\":1", "\"format\":2");
    let crc = crc32c::crc32c(inner.as_bytes());
    let text = format!("{{\"crc32c\":\"{crc:08x}\",\"manifest\":{inner}}}");
    let error = Manifest::decode(text.as_bytes()).unwrap_err();
    assert!(error.contains("format 2"), "{error}");
}

#[test]
fn a_directory_keeps_what_was_published_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made/for/it");
    let objects = Objects::in_dir(&dir).unwrap();
    // Larger than all parts that may be under way.
    let large = vec![5; 40 << 20];
    {
        let mut unfinished = objects.create("packs/lost").unwrap();
        unfinished.write(large.clone().into()).unwrap();
    }
    let store: Arc<dyn Store> = Arc::new(objects);
    assert_eq!(store.list("packs").unwrap(), []);
    let [first, mut second] = two(&store);
    assert_eq!(newest(&*store), (Some((6, 1, second.clone())), vec![]));

    let mut keeper = claim(&store);
    second.insert(key(0), large);
    let published = take(&mut keeper, 9, &second, None).unwrap();
    assert_eq!((published.garbage.manifests, published.garbage.failed), (1, None));
    assert_eq!(newest(&*store).0, Some((9, 2, second)));
    let sections = Sections::open(&*store, &published.manifest).unwrap();
    sections.check(&*store).unwrap();
    assert!(newest(&*store).0.is_some_and(|(_, _, state)| state != first));

    let missing = store.read("packs/none", 0..1).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    let name = published.manifest.name();
    let exists = store.publish(&name, vec![1]).unwrap_err();
    assert!(matches!(exists, StoreError::Exists { .. }), "{exists}");
    let short = store.read(&name, 0..1 << 40).unwrap_err();
    assert!(matches!(short, StoreError::Short { .. }), "{short}");
    let beyond = store.read(&name, 1 << 39..1 << 40).unwrap_err();
    assert!(matches!(beyond, StoreError::Short { .. }), "{beyond}");
    store.delete("packs/none").unwrap();
}

#[test]
fn files_of_a_writer_that_was_killed_go() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::in_dir(dir.path()).unwrap();
    objects.remove_unfinished("packs").unwrap();
    std::fs::create_dir(dir.path().join("packs")).unwrap();
    std::fs::write(dir.path().join("packs/1.pack#1"), "half").unwrap();
    std::fs::write(dir.path().join("packs/2.pack"), "whole").unwrap();
    objects.remove_unfinished("packs").unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path().join("packs")).unwrap().collect();
    assert_eq!(left.len(), 1);
}
