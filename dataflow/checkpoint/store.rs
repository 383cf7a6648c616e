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

#[cfg(feature = "s3")]
use super::bucket::{self, Bucket};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayloadMut, local::LocalFileSystem,
    path::Path as ObjectPath,
};
use std::{
    fs::{self, File},
    io,
    ops::{Deref, Range},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{runtime::Runtime, task::JoinSet};

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
    /// `Missing` if there is no such object, `Short` if it ends before; `Failed` when it cannot be
    /// read, which says nothing of the object.
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

    /// Removes from a folder what writers left that did not come to their end, where a store keeps
    /// such things.
    ///
    /// # Errors
    /// When the store cannot.
    fn remove_unfinished(&self, _folder: &str) -> Result<(), StoreError> {
        Ok(())
    }
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
    /// An object ends before what was asked for.
    #[error("{name}: has {found} bytes, not {wanted}")]
    Short {
        /// Which.
        name: String,
        /// How many bytes it has.
        found: u64,
        /// How many it would need.
        wanted: u64,
    },
    /// Nobody answers for the place; another time somebody may.
    #[error("{name}: {reason}")]
    Unreachable {
        /// Which place.
        name: String,
        /// What was tried.
        reason: String,
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

/// Why something of a checkpoint was not read. What matters is whether asking again can help: what
/// is wrong stays so, and an older checkpoint takes its place; of what a store did not give nothing
/// is known, and who took that for broken would give a good checkpoint up.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It is not what was written, or is not there.
    #[error("{0}")]
    Wrong(String),
    /// The store did not give it; another time it may.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for Unread {
    fn from(error: StoreError) -> Unread {
        match error {
            StoreError::Exists { .. } | StoreError::Missing { .. } | StoreError::Short { .. } => {
                Unread::Wrong(error.to_string())
            }
            StoreError::Unreachable { .. } | StoreError::Failed { .. } => Unread::Store(error),
        }
    }
}

impl From<String> for Unread {
    fn from(reason: String) -> Unread {
        Unread::Wrong(reason)
    }
}

/// A store behind the `object_store` crate.
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The directory, if it is one: what is written there is synced.
    dir: Option<PathBuf>,
    /// Drives the store's futures: on the thread that calls, with this one for timers and parts.
    runtime: Driver,
}

/// A runtime that may be dropped anywhere, also on a thread that must not block: nothing is under
/// way in it between two calls.
struct Driver(Option<Runtime>);

impl Deref for Driver {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Objects {
    /// A place as the configuration names it: a URL, or a directory, which is one of `base` if it
    /// is relative.
    ///
    /// # Errors
    /// When it cannot be made or opened, or does not keep the promises above.
    pub fn open(base: &Path, place: &str) -> Result<Objects, StoreError> {
        if !place.contains("://") {
            return Objects::in_dir(&base.join(place));
        }
        let objects = Objects::at_url(place)?;
        #[cfg(feature = "s3")]
        if objects.dir.is_none() {
            bucket::refuse_unconditional(&objects, place)?;
        }
        Ok(objects)
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

    /// A bucket (`s3://`) or a directory (`file://`) by its URL, with what the environment says
    /// about access (`AWS_ACCESS_KEY_ID` and so on). A bucket is asked whether it is there.
    ///
    /// # Errors
    /// When it is neither, this build knows no S3, or the bucket cannot be used.
    pub fn at_url(url: &str) -> Result<Objects, StoreError> {
        let parsed = url::Url::parse(url).map_err(|e| failed(url, e))?;
        match parsed.scheme() {
            "file" => {
                let dir =
                    parsed.to_file_path().map_err(|()| failed(url, "is no path of a file"))?;
                Objects::in_dir(&dir)
            }
            "s3" => Objects::in_bucket(url, &parsed),
            _ => Err(failed(url, "is no place of checkpoints: give a directory, file:// or s3://")),
        }
    }

    #[cfg(feature = "s3")]
    fn in_bucket(url: &str, parsed: &url::Url) -> Result<Objects, StoreError> {
        let bucket = Bucket::of(parsed).map_err(|e| failed(url, e))?;
        let store = bucket::connect(&bucket).map_err(|e| failed(url, e))?;
        let store = object_store::prefix::PrefixStore::new(store, bucket.prefix.clone());
        let objects = Objects { store: Arc::new(store), dir: None, runtime: runtime(url)? };
        objects.runtime.block_on(bucket.ask(&*objects.store, url))?;
        Ok(objects)
    }

    #[cfg(not(feature = "s3"))]
    fn in_bucket(url: &str, _: &url::Url) -> Result<Objects, StoreError> {
        let reason = "this build knows no S3; build with `--features s3`, or give a `file://`";
        Err(failed(url, reason))
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
}

impl Store for Objects {
    fn create(&self, name: &str) -> Result<Box<dyn NewObject + '_>, StoreError> {
        let path = ObjectPath::from(name);
        let upload = self.runtime.block_on(self.store.put_multipart(&path));
        let (upload, name) = (upload.map_err(|e| named(name, e))?, name.to_owned());
        let (filling, under_way) = <(PutPayloadMut, JoinSet<_>)>::default();
        Ok(Box::new(Upload { objects: self, name, upload, filling, under_way, is_whole: false }))
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
        let read = self.runtime.block_on(self.store.get_range(&path, range.clone()));
        let failure = match read {
            Ok(bytes) if bytes.len() as u64 == wanted => return Ok(bytes),
            Ok(bytes) => failed(name, format!("gave {} bytes of {wanted}", bytes.len())),
            Err(error) => named(name, error),
        };
        if let StoreError::Missing { .. } = failure {
            return Err(failure);
        }
        // Stores have no common word for a range that is not there.
        let size = self.runtime.block_on(self.store.head(&path)).map(|object| object.size);
        match size {
            Ok(found) if found < range.end => {
                Err(StoreError::Short { name: name.to_owned(), found, wanted: range.end })
            }
            _ => Err(failure),
        }
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

    /// `object_store` writes under another name first.
    fn remove_unfinished(&self, folder: &str) -> Result<(), StoreError> {
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

/// An object on its way.
struct Upload<'a> {
    objects: &'a Objects,
    name: String,
    upload: Box<dyn MultipartUpload>,
    /// The part that fills up.
    filling: PutPayloadMut,
    /// Those that are sent, at most [`PARTS_IN_FLIGHT_MAX`].
    under_way: JoinSet<object_store::Result<()>>,
    is_whole: bool,
}

impl Upload<'_> {
    async fn take(&mut self, mut bytes: Bytes) -> object_store::Result<()> {
        while !bytes.is_empty() {
            let room = PART_BYTES - self.filling.content_length();
            self.filling.push(bytes.split_to(room.min(bytes.len())));
            if self.filling.content_length() == PART_BYTES {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn send_part(&mut self) -> object_store::Result<()> {
        while self.under_way.len() >= PARTS_IN_FLIGHT_MAX {
            self.await_part().await?;
        }
        let part = std::mem::take(&mut self.filling).freeze();
        self.under_way.spawn(self.upload.put_part(part));
        Ok(())
    }

    /// Waits for one that is under way, if there are any.
    async fn await_part(&mut self) -> object_store::Result<()> {
        match self.under_way.join_next().await {
            Some(sent) => sent?,
            None => Ok(()),
        }
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        if !self.filling.is_empty() {
            self.send_part().await?;
        }
        while !self.under_way.is_empty() {
            self.await_part().await?;
        }
        self.upload.complete().await.map(|_| ())
    }
}

impl NewObject for Upload<'_> {
    fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let written = self.objects.runtime.block_on(self.take(bytes));
        written.map_err(|e| named(&self.name, e))
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let completed = self.objects.runtime.block_on(self.complete());
        completed.map_err(|e| named(&self.name, e))?;
        self.is_whole = true;
        self.objects.sync(&self.name)
    }
}

/// Parts that were sent to a bucket and make up no object stay there, unseen and paid for, until
/// they are told to go.
impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        let given_up = self.objects.runtime.block_on(async {
            self.under_way.shutdown().await;
            self.upload.abort().await
        });
        if let Err(error) = given_up {
            tracing::warn!(object = self.name, %error, "parts of an object that is none are left");
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    // A relative path of one part has the parent "".
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

fn runtime(name: &str) -> Result<Driver, StoreError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("checkpoint-io").enable_all();
    builder.build().map(|runtime| Driver(Some(runtime))).map_err(|e| failed(name, e))
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
