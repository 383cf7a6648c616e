//! What [`trueup::checkpoint::store::Store`] promises, of a bucket.

use crate::buckets::{fresh, uploads};
use std::path::Path;
use trueup::checkpoint::store::{Objects, Store, StoreError};

/// Larger than all parts that may be under way, and no multiple of one.
const LARGE_BYTES: usize = (20 << 20) + 4_321;

fn open(place: &str) -> Objects {
    Objects::open(Path::new("."), place).unwrap()
}

fn large() -> Vec<u8> {
    (0..LARGE_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn of_two_who_publish_a_name_one_learns_that_it_was_second() {
    let place = format!("s3://{}/some/prefix", fresh());
    let (one, other) = (open(&place), open(&place));
    one.publish("manifests/1.json", b"the first".to_vec()).unwrap();
    for late in [&other, &one] {
        let error = late.publish("manifests/1.json", b"the second".to_vec()).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    }
    assert_eq!(&other.read("manifests/1.json", 0..9).unwrap()[..], b"the first");
    // Free again, for whoever is first.
    other.delete("manifests/1.json").unwrap();
    other.publish("manifests/1.json", b"again".to_vec()).unwrap();
    let error = one.publish("manifests/1.json", Vec::new()).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
}

#[test]
fn an_object_of_many_parts_is_read_as_it_was_written() {
    let bucket = fresh();
    let store = open(&format!("s3://{bucket}/of-one"));
    let (large, mut at) = (large(), 0);
    let mut object = store.create("packs/large").unwrap();
    for bytes in [1, 3 << 20, 9 << 20, LARGE_BYTES - (12 << 20) - 1] {
        object.write(large[at..at + bytes].to_vec().into()).unwrap();
        at += bytes;
    }
    assert_eq!((at, store.list("packs").unwrap()), (LARGE_BYTES, vec![]), "not before its end");
    object.finish().unwrap();
    let listed = store.list("packs").unwrap();
    let [pack] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((&pack.name[..], pack.bytes), ("packs/large", LARGE_BYTES as u64));

    let part = 8 << 20;
    let (all, end) = (0..LARGE_BYTES, LARGE_BYTES - 7..LARGE_BYTES);
    for range in [0..1, part - 3..part + 3, 2 * part - 1..2 * part, all, end, 5..5] {
        let read = store.read("packs/large", range.start as u64..range.end as u64).unwrap();
        assert!(read[..] == large[range.clone()], "{range:?}");
    }
    for beyond in [LARGE_BYTES as u64 - 1..LARGE_BYTES as u64 + 1, 1 << 40..(1 << 40) + 1] {
        assert!(store.read("packs/large", beyond.clone()).is_err(), "{beyond:?}");
    }
    let missing = store.read("packs/none", 0..1).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");

    // Another prefix of the bucket is another place.
    let other = open(&format!("s3://{bucket}/of-another"));
    assert_eq!(other.list("packs").unwrap(), []);
    store.delete("packs/large").unwrap();
    store.delete("packs/large").unwrap();
    assert_eq!(store.list("packs").unwrap(), []);
}

#[test]
fn what_is_given_up_leaves_nothing_that_is_paid_for() {
    let bucket = fresh();
    let store = open(&format!("s3://{bucket}"));
    {
        let mut object = store.create("packs/lost").unwrap();
        object.write(large().into()).unwrap();
        assert!(uploads(&bucket).contains("packs/lost"), "{}", uploads(&bucket));
    }
    assert!(!uploads(&bucket).contains("packs/lost"), "{}", uploads(&bucket));
    store.remove_unfinished("packs").unwrap();
    assert_eq!(store.list("packs").unwrap(), []);
    let mut object = store.create("packs/small").unwrap();
    object.write(b"less than a part".to_vec().into()).unwrap();
    object.finish().unwrap();
    assert!(!uploads(&bucket).contains("packs/"), "{}", uploads(&bucket));
    assert_eq!(&store.read("packs/small", 5..9).unwrap()[..], b"than");
}

/// More than a service lists at once.
#[test]
fn a_long_list_is_whole() {
    let store = open(&format!("s3://{}/long", fresh()));
    let mut names: Vec<String> = (0..1_050).map(|n| format!("generations/{n:020}")).collect();
    for name in &names {
        store.publish(name, Vec::new()).unwrap();
    }
    let mut listed: Vec<String> =
        store.list("generations").unwrap().into_iter().map(|listed| listed.name).collect();
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
}
