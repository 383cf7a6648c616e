//! Where checkpoints are kept: a directory, or a bucket of an object store. The seam at which tests
//! put a store that stops after any number of operations.
//!
//! What the rest relies on, and nothing more:
//! * an object that [`NewObject::finish`] returned for is durable and whole; before that it may be
//!   there whole, or not at all;
//! * [`Store::publish`] is a compare-and-set: of all who publish one name, one succeeds, and the
//!   others learn it;
//! * objects never change; they are there until they are deleted, and then gone for good.
//!
//! `object_store` gives the second and the third for every store that it knows. It does not sync
//! files, so for a directory this module does: the file, then the names above it. What a power cut
//! leaves of a file before that (nothing, or zeros) its checksum tells.
//!
//! The calls block; they come from the threads that write and load checkpoints, never from a worker
//! or from a thread that answers requests.

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, WriteMultipart, local::LocalFileSystem,
    path::Path as ObjectPath, prefix::PrefixStore,
};
use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::runtime::Runtime;

/// What is sent to the store at a time. (S3 takes parts of at least 5 MiB.)
const PART_BYTES: usize = 8 << 20;
/// How many of those may be under way: with the one that fills up, what writing takes in memory.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// A place that keeps objects by name. Names are folders and a file, with `/` between them.
pub trait Store: Send + Sync {
    /// Begins an object that is written piece by piece. Its name must be new.
    ///
    /// # Errors
    /// When the store cannot.
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError>;

    /// Makes a small object, unless there is one of this name.
    ///
    /// # Errors
    /// `Exists` if another was first; else when the store cannot, and then it may be there or not.
    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError>;

    /// Bytes of an object: all that were asked for, or an error.
    ///
    /// # Errors
    /// `Missing` if there is no such object; else when it is shorter, or cannot be read.
    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// The objects in a folder, in no order.
    ///
    /// # Errors
    /// When the store cannot say.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError>;

    /// Deletes an object, if it is there.
    ///
    /// # Errors
    /// When the store cannot, and then it may be there or not.
    fn delete(&self, name: &str) -> Result<(), StoreError>;
}

/// An object that is being written. Dropped before it is finished, it never was.
pub trait NewObject {
    /// Appends bytes.
    ///
    /// # Errors
    /// When the store cannot take them.
    fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes the object durable, and visible.
    ///
    /// # Errors
    /// When the store cannot; the object may be there or not.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// An object of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name, with its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is an object of this name.
    #[error("{name}: is there already")]
    Exists {
        /// Which.
        name: String,
    },
    /// There is no object of this name.
    #[error("{name}: is missing")]
    Missing {
        /// Which.
        name: String,
    },
    /// Something else.
    #[error("{name}: {reason}")]
    Failed {
        /// Which object.
        name: String,
        /// What the store says.
        reason: String,
    },
}

/// A store behind the `object_store` crate.
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The directory, if it is one: what is written there is synced.
    dir: Option<PathBuf>,
    /// Drives the store's futures: on the thread that calls, with this one for timers and parts.
    runtime: Runtime,
}

impl Objects {
    /// A place as the configuration names it: a URL, or a directory, which is one of `base` if it
    /// is relative.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(base: &Path, place: &str) -> Result<Objects, StoreError> {
        if place.contains("://") {
            Objects::at_url(place)
        } else {
            Objects::in_dir(&base.join(place))
        }
    }

    /// The same as it is: changes nothing. `None` if it is a directory and not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_existing(base: &Path, place: &str) -> Result<Option<Objects>, StoreError> {
        if place.contains("://") && !place.starts_with("file://") {
            return Objects::at_url(place).map(Some);
        }
        let dir = base.join(place.strip_prefix("file://").unwrap_or(place));
        if dir.exists() { Objects::of_dir(&dir).map(Some) } else { Ok(None) }
    }

    /// A directory, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn in_dir(dir: &Path) -> Result<Objects, StoreError> {
        let failed = |error: io::Error| failed(&dir.display().to_string(), error);
        let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        fs::create_dir_all(dir).map_err(failed)?;
        for made in missing {
            sync_dir(made.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        }
        Objects::of_dir(dir)
    }

    fn of_dir(dir: &Path) -> Result<Objects, StoreError> {
        let name = dir.display().to_string();
        let store = LocalFileSystem::new_with_prefix(dir).map_err(|e| failed(&name, e))?;
        Ok(Objects { store: Arc::new(store), dir: Some(dir.to_owned()), runtime: runtime(&name)? })
    }

    /// A bucket or a directory by its URL, with what the environment says about access
    /// (`AWS_ACCESS_KEY_ID` and so on).
    ///
    /// # Errors
    /// When it is no URL, or none of a store that this build knows.
    pub fn at_url(url: &str) -> Result<Objects, StoreError> {
        let parsed = url::Url::parse(url).map_err(|e| failed(url, e))?;
        if parsed.scheme() == "file" {
            let dir = parsed.to_file_path().map_err(|()| failed(url, "is no path of a file"))?;
            return Objects::in_dir(&dir);
        }
        if parsed.scheme() == "s3" && !cfg!(feature = "s3") {
            let reason = "this build knows no S3; build with `--features s3`, or give a `file://`";
            return Err(failed(url, reason));
        }
        let options = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let (store, prefix) =
            object_store::parse_url_opts(&parsed, options).map_err(|e| failed(url, e))?;
        let store = Arc::new(PrefixStore::new(store, prefix));
        Ok(Objects { store, dir: None, runtime: runtime(url)? })
    }

    /// Makes the name and the bytes of a file durable.
    fn sync(&self, name: &str) -> Result<(), StoreError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.join(name);
        let folder = path.parent().unwrap_or(dir);
        // The folder may have been made for this file.
        let synced = File::open(&path)
            .and_then(|file| file.sync_all())
            .and_then(|()| sync_dir(folder))
            .and_then(|()| sync_dir(dir));
        synced.map_err(|e| failed(name, e))
    }

    /// Files of writers that did not come to their end: `object_store` writes under another name
    /// first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn remove_unfinished(&self, folder: &str) -> Result<(), StoreError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let entries = match fs::read_dir(dir.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(folder, error)),
        };
        for entry in entries {
            let path = entry.map_err(|e| failed(folder, e))?.path();
            if path.to_string_lossy().contains('#') {
                fs::remove_file(&path).map_err(|e| failed(&path.display().to_string(), e))?;
            }
        }
        Ok(())
    }
}

impl Store for Objects {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        let path = ObjectPath::from(name);
        let upload =
            self.runtime.block_on(self.store.put_multipart(&path)).map_err(|e| named(name, e))?;
        let upload: Box<dyn MultipartUpload> = upload;
        let parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        Ok(Box::new(Upload { objects: self, name: name.to_owned(), parts }))
    }

    fn publish(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let path = ObjectPath::from(name);
        let put = self.store.put_opts(&path, bytes.into(), PutMode::Create.into());
        self.runtime.block_on(put).map_err(|e| named(name, e))?;
        self.sync(name)
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (path, wanted) = (ObjectPath::from(name), range.end - range.start);
        let read = self.runtime.block_on(self.store.get_range(&path, range));
        let bytes = read.map_err(|e| named(name, e))?;
        if bytes.len() as u64 != wanted {
            return Err(failed(name, format!("gave {} bytes of {wanted}", bytes.len())));
        }
        Ok(bytes)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let path = ObjectPath::from(folder);
        let listed = self.runtime.block_on(self.store.list(Some(&path)).try_collect::<Vec<_>>());
        let objects = listed.map_err(|e| named(folder, e))?;
        Ok(objects
            .into_iter()
            .map(|object| Listed { name: object.location.to_string(), bytes: object.size })
            .collect())
    }

    fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = ObjectPath::from(name);
        match self.runtime.block_on(self.store.delete(&path)).map_err(|e| named(name, e)) {
            Err(StoreError::Missing { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An object on its way.
struct Upload<'a> {
    objects: &'a Objects,
    name: String,
    parts: WriteMultipart,
}

impl NewObject for Upload<'_> {
    fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let parts = &mut self.parts;
        let written = self.objects.runtime.block_on(async {
            // In pieces: a section may be larger than all parts that may be under way.
            for at in (0..bytes.len()).step_by(PART_BYTES) {
                parts.wait_for_capacity(PARTS_IN_FLIGHT_MAX).await?;
                parts.put(bytes.slice(at..bytes.len().min(at + PART_BYTES)));
            }
            Ok(())
        });
        written.map_err(|e: object_store::Error| named(&self.name, e))
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Upload { objects, name, parts } = *self;
        objects.runtime.block_on(parts.finish()).map_err(|e| named(&name, e))?;
        objects.sync(&name)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    // A relative path of one part has the parent "".
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

fn runtime(name: &str) -> Result<Runtime, StoreError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("checkpoint-io").enable_all();
    builder.build().map_err(|e| failed(name, e))
}

fn named(name: &str, error: object_store::Error) -> StoreError {
    let name = name.to_owned();
    match error {
        object_store::Error::AlreadyExists { .. } => StoreError::Exists { name },
        object_store::Error::NotFound { .. } => StoreError::Missing { name },
        error => StoreError::Failed { name, reason: error.to_string() },
    }
}

fn failed(name: &str, reason: impl ToString) -> StoreError {
    StoreError::Failed { name: name.to_owned(), reason: reason.to_string() }
}
