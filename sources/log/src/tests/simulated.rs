//! A disk in memory that can lose power, run full, write short and fail to sync.
//!
//! For each file it keeps the bytes that a process sees and those that are on the medium. A sync
//! carries over the sectors that were written since the last one; a *failed* sync carries over
//! some of them and calls all of them clean, as Linux does. A crash keeps any subset of the
//! sectors that were not synced, any length between the two, and any prefix of the changes of
//! names since the directory was synced.

use super::Rng;
use crate::disk::{Access, Disk, DiskFile, Lock};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind, IoSlice},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

const SECTOR_BYTES: usize = 512;

type Inode = usize;
type Names = BTreeMap<PathBuf, Inode>;

#[derive(Clone, Default)]
struct Bytes {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    size_dirty: bool,
}

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, Inode),
    Remove(PathBuf),
}

struct State {
    files: Vec<Bytes>,
    live: Names,
    durable: Names,
    changes: Vec<NameChange>,
    /// Directories that were synced.
    synced: BTreeSet<PathBuf>,
    rng: Rng,
    faults: Faults,
    operations: u64,
    crashed: bool,
    lock: Arc<AtomicBool>,
}

/// What is to go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// The power fails in the middle of this operation, counted from the start.
    pub(super) crash_at: Option<u64>,
    /// No more bytes than this fit.
    pub(super) bytes_max: Option<u64>,
    /// Writes write less than they were asked to.
    pub(super) short_writes: bool,
    /// This many of the next syncs fail.
    pub(super) syncs_failing: u32,
    /// Cutting files fails.
    pub(super) cuts_failing: bool,
    /// Renames fail.
    pub(super) renames_failing: bool,
    /// No file can be opened any more: the process has too many open.
    pub(super) opens_failing: bool,
    /// The root directory is not for this user.
    pub(super) root_denied: bool,
    /// The medium does not give its bytes.
    pub(super) reads_failing: bool,
}

/// A disk; clones are the same disk.
#[derive(Clone)]
pub(super) struct SimulatedDisk(Arc<Mutex<State>>);

impl SimulatedDisk {
    pub(super) fn new(seed: u64) -> SimulatedDisk {
        SimulatedDisk(Arc::new(Mutex::new(State {
            files: Vec::new(),
            live: Names::new(),
            durable: Names::new(),
            changes: Vec::new(),
            synced: BTreeSet::new(),
            rng: Rng::new(seed),
            faults: Faults::default(),
            operations: 0,
            crashed: false,
            lock: Arc::default(),
        })))
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// The directories that were synced.
    pub(super) fn synced(&self) -> Vec<String> {
        let state = self.0.lock();
        state.synced.iter().map(|dir| dir.display().to_string()).collect()
    }

    pub(super) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// What a new process finds after the power failed at this moment.
    pub(super) fn after_crash(&self) -> SimulatedDisk {
        let mut state = self.0.lock();
        let State { files, durable, changes, rng, .. } = &mut *state;
        let mut names = durable.clone();
        let kept = rng.below(changes.len() as u64 + 1) as usize;
        changes[..kept].iter().for_each(|change| apply(&mut names, change));
        let files = files.iter().map(|file| survivor(file, rng)).collect();
        SimulatedDisk(Arc::new(Mutex::new(State {
            files,
            live: names.clone(),
            durable: names,
            changes: Vec::new(),
            synced: BTreeSet::new(),
            rng: rng.split(),
            faults: Faults::default(),
            operations: 0,
            crashed: false,
            lock: Arc::default(),
        })))
    }

    /// What a new process finds after kill -9: everything that the old one wrote.
    pub(super) fn after_kill(&self) -> SimulatedDisk {
        let mut state = self.0.lock();
        state.lock = Arc::default();
        state.faults = Faults::default();
        state.crashed = false;
        self.clone()
    }

    /// Changes bytes behind everybody's back, durably.
    pub(super) fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let inode = state.live[path];
        let file = &mut state.files[inode];
        change(&mut file.live);
        file.durable = file.live.clone();
        file.dirty.clear();
    }

    pub(super) fn bytes_of(&self, path: &Path) -> Vec<u8> {
        let state = self.0.lock();
        state.files[state.live[path]].live.clone()
    }

    /// Files whose names end so, in order.
    pub(super) fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let state = self.0.lock();
        let ends = |path: &&PathBuf| path.to_string_lossy().ends_with(suffix);
        state.live.keys().filter(ends).cloned().collect()
    }
}

/// What is left of a file when the power fails.
fn survivor(file: &Bytes, rng: &mut Rng) -> Bytes {
    let (old, new) = (file.durable.len(), file.live.len());
    let bytes = if file.size_dirty {
        old.min(new) + rng.below((old.abs_diff(new) + 1) as u64) as usize
    } else {
        // Nothing is dirty, or what was dirty was dropped by a sync that failed.
        old
    };
    let mut left = file.durable.clone();
    left.resize(bytes, 0);
    // A crash may keep nearly all, nearly nothing, or some.
    let odds = [1, 50, 99][rng.below(3) as usize];
    for &sector in &file.dirty {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(bytes).min(file.live.len());
        if start < end && rng.below(100) < odds {
            left[start..end].copy_from_slice(&file.live[start..end]);
        }
    }
    Bytes { live: left.clone(), durable: left, ..Bytes::default() }
}

fn apply(names: &mut Names, change: &NameChange) {
    match change {
        NameChange::Set(path, inode) => {
            names.retain(|name, at| name == path || at != inode);
            names.insert(path.clone(), *inode);
        }
        NameChange::Remove(path) => drop(names.remove(path)),
    }
}

impl State {
    /// Counts an operation that changes something; an error if the power is gone.
    fn step(&mut self) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        if self.faults.crash_at.is_some_and(|at| self.operations >= at) {
            self.crashed = true;
        }
        Ok(())
    }

    fn step_whole(&mut self) -> io::Result<()> {
        self.step()?;
        if self.crashed { Err(io::Error::other("the power failed")) } else { Ok(()) }
    }

    fn change_name(&mut self, change: NameChange) {
        apply(&mut self.live, &change);
        self.changes.push(change);
    }

    fn bytes_used(&self) -> u64 {
        self.live.values().map(|&inode| self.files[inode].live.len() as u64).sum()
    }

    /// How much of a write is done.
    fn writable(&mut self, inode: Inode, wanted: usize, at: usize) -> io::Result<usize> {
        let mut writable = wanted;
        if self.crashed || (self.faults.short_writes && wanted > 1) {
            writable = self.rng.below(wanted as u64 + 1).max(1) as usize;
        }
        if let Some(bytes_max) = self.faults.bytes_max {
            let grown = |bytes: usize| (at + bytes).saturating_sub(self.files[inode].live.len());
            let left = bytes_max.saturating_sub(self.bytes_used()) as usize;
            let over = grown(writable).saturating_sub(left);
            writable = writable.saturating_sub(over);
            if writable == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
        }
        Ok(writable)
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        if state.faults.opens_failing {
            return Err(rustix::io::Errno::MFILE.into());
        }
        let found = state.live.get(path).copied();
        let inode = match (access, found) {
            (Access::Read | Access::Write, Some(inode)) => inode,
            (Access::Read | Access::Write, None) => return Err(ErrorKind::NotFound.into()),
            (Access::Create, Some(inode)) => {
                state.step_whole()?;
                state.files[inode].live.clear();
                state.files[inode].size_dirty = true;
                inode
            }
            (Access::Create, None) => {
                state.step_whole()?;
                state.files.push(Bytes::default());
                let inode = state.files.len() - 1;
                state.change_name(NameChange::Set(path.into(), inode));
                inode
            }
        };
        Ok(Arc::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let names = state.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_whole()?;
        if state.faults.renames_failing {
            return Err(io::Error::other("a rename failed"));
        }
        let inode = *state.live.get(from).ok_or(ErrorKind::NotFound)?;
        state.change_name(NameChange::Set(to.into(), inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_whole()?;
        if !state.live.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        state.change_name(NameChange::Remove(path.into()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_whole()?;
        if state.faults.root_denied && dir == Path::new("/") {
            return Err(ErrorKind::PermissionDenied.into());
        }
        state.synced.insert(dir.into());
        let State { changes, durable, .. } = &mut *state;
        // Changes of names become durable in their order, whatever the directory.
        let of_dir = |change: &NameChange| match change {
            NameChange::Set(path, _) | NameChange::Remove(path) => path.parent() == Some(dir),
        };
        let synced = changes.iter().rposition(of_dir).map_or(0, |last| last + 1);
        changes.drain(..synced).for_each(|change| apply(durable, &change));
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Lock>> {
        let lock = Arc::clone(&self.0.lock().lock);
        let free = !lock.swap(true, SeqCst);
        Ok(free.then(|| Box::new(Unlock(lock)) as Lock))
    }
}

struct Unlock(Arc<AtomicBool>);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    inode: Inode,
}

impl DiskFile for SimulatedFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[self.inode].live.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.0.lock();
        if state.faults.reads_failing {
            return Err(rustix::io::Errno::IO.into());
        }
        let bytes = state.files[self.inode].live.get(at as usize..).unwrap_or_default();
        let read = bytes.len().min(into.len());
        into[..read].copy_from_slice(&bytes[..read]);
        Ok(read)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        state.step()?;
        let bytes = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        let at = at as usize;
        let writable = state.writable(self.inode, bytes.len(), at)?;
        let crashed = state.crashed;
        let file = &mut state.files[self.inode];
        let end = at + writable;
        if end > file.live.len() {
            file.live.resize(end, 0);
            file.size_dirty = true;
        }
        file.live[at..end].copy_from_slice(&bytes[..writable]);
        file.dirty.extend(at / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        if crashed { Err(io::Error::other("the power failed")) } else { Ok(writable) }
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.step_whole()?;
        if state.faults.cuts_failing {
            return Err(io::Error::other("a cut failed"));
        }
        let file = &mut state.files[self.inode];
        file.live.resize(bytes as usize, 0);
        file.size_dirty = true;
        Ok(())
    }

    fn preallocate(&self, _at: u64, _bytes: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.step()?;
        let crashed = state.crashed;
        let failing = state.faults.syncs_failing > 0;
        if failing {
            state.faults.syncs_failing -= 1;
        }
        let State { files, rng, .. } = &mut *state;
        let file = &mut files[self.inode];
        if crashed {
            // Some of it may have got there.
            return Err(io::Error::other("the power failed"));
        }
        if failing {
            // Some sectors were written, and none is dirty any more.
            let left = survivor(file, rng);
            file.durable = left.durable;
        } else {
            let Bytes { live, durable, dirty, .. } = file;
            durable.resize(live.len(), 0);
            for &sector in dirty.iter() {
                let start = (sector * SECTOR_BYTES).min(live.len());
                let end = (start + SECTOR_BYTES).min(live.len());
                durable[start..end].copy_from_slice(&live[start..end]);
            }
        }
        file.dirty.clear();
        file.size_dirty = false;
        if failing { Err(io::Error::other("a sync failed")) } else { Ok(()) }
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}
