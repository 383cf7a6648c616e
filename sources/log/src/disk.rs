//! The file system as the journal uses it: the seam at which tests put a disk that loses power,
//! writes short, runs full or fails to sync.
//!
//! What the journal relies on, and the simulated disk of the tests takes away wherever it can:
//! * bytes are durable after `sync_data` of their file returned without an error, not before;
//! * a name is durable after `sync_dir` of its directory returned, and a rename is atomic;
//! * before that, any subset of sectors and any prefix of the changes of names may survive;
//! * after a *failed* sync nothing is known about any byte written since the last good one, and
//!   a later sync that succeeds proves nothing about them (Linux drops the dirty pages).

use std::{
    any::Any,
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, IoSlice},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

/// Holds the lock on a data directory until it is dropped.
pub(crate) type Lock = Box<dyn Any + Send + Sync>;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A new, empty file, readable by its owner only; what had the name is emptied.
    Create,
}

/// A file system.
pub(crate) trait Disk: Send + Sync {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// `None` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;
}

/// An open file.
pub(crate) trait DiskFile: Send + Sync {
    fn bytes(&self) -> io::Result<u64>;
    /// May read less than asked for; 0 is the end of the file.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;
    /// May write less than asked for.
    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize>;
    /// Cuts the file, and gives back what was preallocated behind that.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
    /// Reserves space behind the end of the file, which stays where it is.
    fn preallocate(&self, at: u64, bytes: u64) -> io::Result<()>;
    /// Makes the bytes durable, and the size if it grew.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes everything durable, a smaller size included.
    fn sync_all(&self) -> io::Result<()>;
}

/// Writes all of the slices at a position.
pub(crate) fn write_all(
    file: &dyn DiskFile,
    mut slices: &mut [IoSlice<'_>],
    mut at: u64,
) -> io::Result<()> {
    // Empty slices would make a write of nothing look like a full disk.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_at(slices, at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut slices, written);
                at += written as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills as much of `into` as the file has; the number of bytes that were read.
pub(crate) fn read_full(file: &dyn DiskFile, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// All bytes of a file, if it has no more than `bytes_max`.
pub(crate) fn read_small(file: &dyn DiskFile, bytes_max: u64) -> io::Result<Vec<u8>> {
    let bytes = file.bytes()?;
    if bytes > bytes_max {
        let message = format!("the file has {bytes} bytes, at most {bytes_max} are expected");
        return Err(io::Error::new(ErrorKind::InvalidData, message));
    }
    let mut out = vec![0; bytes as usize];
    let read = read_full(file, &mut out, 0)?;
    out.truncate(read);
    Ok(out)
}

/// Creates a file with these bytes so that it is there whole, durably, or not at all.
pub(crate) fn create_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_added_extension("new");
    let file = disk.open(&new, Access::Create)?;
    write_all(&*file, &mut [IoSlice::new(bytes)], 0)?;
    file.sync_data()?;
    disk.rename(&new, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Puts a file of these bytes in the place of another, or of none: after a crash there is the old
/// one or the new one, whole. Until it is on disk it lies beside, with `.new` behind its name.
///
/// # Errors
/// When the system cannot; then the old one may be there still.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_whole(&RealDisk, path, bytes)
}

/// The real one.
pub(crate) struct RealDisk;

/// The most slices that one system call takes.
const SLICES_MAX: usize = 1_024;

impl Disk for RealDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read).mode(0o600);
        options.create(access == Access::Create).truncate(access == Access::Create);
        Ok(Arc::new(options.open(path)?))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            // A name that is no text is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // A relative path of one part has the parent "".
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, into, at)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        Ok(rustix::io::pwritev(self, slices, at)?)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    #[cfg(target_os = "linux")]
    fn preallocate(&self, at: u64, bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(self, rustix::fs::FallocateFlags::KEEP_SIZE, at, bytes)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn preallocate(&self, _at: u64, _bytes: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}
