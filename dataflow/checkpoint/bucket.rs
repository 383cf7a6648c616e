//! A bucket of S3, or of what speaks its language, as the place of checkpoints: who it is asked as,
//! how long an answer is waited for, and what an operator is told who has set it up wrongly.
//!
//! What is hard about it is that everything can be wrong at once, and that the client's own answer
//! to most of it is to try for minutes without a word. So the first question is asked at the start,
//! no question takes longer than some tens of seconds, and what is said then names the bucket.
//!
//! # Promises
//!
//! * Access is said by the environment as other programs have it (`AWS_ACCESS_KEY_ID`,
//!   `AWS_ENDPOINT`, …), and by nothing that does not begin with `AWS_`.
//! * A bucket that is missing, or not for these credentials, or that nobody answers for, is told at
//!   the start, and which of the three.
//! * [`super::store::Store::publish`] is a compare-and-set by `If-None-Match: *`. A service that
//!   passes over this header would let two processes both be the first; it is found out at the
//!   start, and refused.

use super::store::{Objects, Store, StoreError};
use object_store::{Error, ObjectStore, ObjectStoreExt, path::Path as ObjectPath};
use url::Url;

/// An object that is there as soon as a bucket was used once; see [`refuse_unconditional`].
const CONDITIONAL: &str = "conditional/1";

/// What the protocol calls a bucket that is not there.
const NO_BUCKET: &str = "NoSuchBucket";

/// Which bucket, and what of it.
pub(super) struct Bucket {
    /// Its name.
    pub(super) name: String,
    /// What every object's name begins with; may be empty.
    pub(super) prefix: ObjectPath,
}

impl Bucket {
    /// `s3://bucket/prefix`.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn of(url: &Url) -> Result<Bucket, String> {
        let name = url.host_str().filter(|host| !host.is_empty());
        let name = name.ok_or("names no bucket: write s3://bucket/prefix")?.to_owned();
        let prefix = ObjectPath::from_url_path(url.path()).map_err(|e| e.to_string())?;
        Ok(Bucket { name, prefix })
    }

    /// Whether the bucket can be read, before anything depends on it. The question is for one
    /// object: of a list the client only says that it failed.
    ///
    /// # Errors
    /// Why not, for who can do something about it.
    pub(super) async fn ask(&self, store: &dyn ObjectStore, place: &str) -> Result<(), StoreError> {
        match store.get(&ObjectPath::from(CONDITIONAL)).await {
            Ok(_) => Ok(()),
            Err(Error::NotFound { source, .. }) if !source.to_string().contains(NO_BUCKET) => {
                Ok(())
            }
            Err(error) => Err(self.explain(place, &error)),
        }
    }

    fn explain(&self, place: &str, error: &Error) -> StoreError {
        let (bucket, place) = (&self.name, place.to_owned());
        let wrong = |reason: String| StoreError::Failed { name: place.clone(), reason };
        match error {
            Error::NotFound { .. } => {
                wrong(format!("there is no bucket `{bucket}`: make it, or name one that is there"))
            }
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => wrong(format!(
                "the bucket `{bucket}` is not for these credentials: look at AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY and AWS_REGION, and at the bucket's policy, which must let \
                 them list, get, put and delete objects ({error})"
            )),
            error if lacks_credentials() => wrong(format!(
                "no credentials for the bucket `{bucket}`: set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY; this machine gives none by itself ({error})"
            )),
            error => StoreError::Unreachable {
                name: place,
                reason: format!(
                    "nobody answers for the bucket `{bucket}`: look at the network, and at \
                     AWS_ENDPOINT and AWS_REGION ({error})"
                ),
            },
        }
    }
}

/// Whether the environment says nothing of who asks; then the machine is asked, as one of Amazon's
/// would know.
fn lacks_credentials() -> bool {
    const SOURCES: [&str; 4] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    SOURCES.iter().all(|name| std::env::var_os(name).is_none())
}

/// Finds out a service that overwrites what was to be made only if it is not there. The object
/// stays for the next start, which asks once.
///
/// # Errors
/// `Failed` if it is one; else when the store cannot.
pub(super) fn refuse_unconditional(objects: &Objects, place: &str) -> Result<(), StoreError> {
    for _ in 0..2 {
        match objects.publish(CONDITIONAL, Vec::new()) {
            Err(StoreError::Exists { .. }) => return Ok(()),
            result => result?,
        }
    }
    Err(StoreError::Failed {
        name: place.to_owned(),
        reason:
            "the service has overwritten an object that was to be made only if it is not there \
                 (`If-None-Match: *`): two processes could not be kept apart there; use another \
                 service, or a newer version of this one"
                .into(),
    })
}

/// The client of a bucket.
pub(super) fn connect(bucket: &Bucket) -> Result<object_store::aws::AmazonS3, String> {
    use object_store::{
        BackoffConfig, RetryConfig,
        aws::{AmazonS3Builder, S3ConditionalPut},
    };
    use std::time::Duration;

    /// A question is asked again for so long. (One alone may take `AWS_TIMEOUT`, by default 30 s.)
    const RETRIES_MAX: Duration = Duration::from_secs(10);
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(2),
        base: 2.0,
    };
    let retry = RetryConfig { backoff, max_retries: 10, retry_timeout: RETRIES_MAX };
    AmazonS3Builder::from_env()
        .with_bucket_name(&bucket.name)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retry)
        .build()
        .map_err(|e| e.to_string())
}
