//! A certificate that somebody else puts into files, such as cert-manager or SPIRE's helper.

use std::{os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, time::Duration};

use super::{SourceError, WallClock};
use crate::tls::{Identity, IdentityStore};

/// How often the files are looked at. Three `stat` calls; a mounted Kubernetes secret is swapped by
/// a link that no watch on the file would see.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Reads certificate, key and bundle from files, again whenever they change.
#[derive(Debug)]
pub struct FileSource {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    pub clock: WallClock,
}

/// What tells one content of a file from another without reading it: device, inode, size, and time
/// of change in seconds and nanoseconds. `None` when there is no file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl FileSource {
    /// Reads the files once.
    ///
    /// # Errors
    /// When one cannot be read, or they make no usable identity.
    pub async fn load(&self) -> Result<Identity, SourceError> {
        let read = async |path: &PathBuf| {
            tokio::fs::read_to_string(path)
                .await
                .map_err(|error| SourceError::File {
                    path: path.clone(),
                    error,
                })
        };
        let (cert, key, ca) = (
            read(&self.cert).await?,
            read(&self.key).await?,
            read(&self.ca).await?,
        );
        Ok(Identity::from_pem(
            &cert,
            &key,
            &ca,
            None,
            self.clock.now(),
        )?)
    }

    /// Loads again when a file has changed, for as long as it runs. A set that is broken or only
    /// half there is reported once and the one in force kept; the other half is a change again.
    pub async fn run(self, store: Arc<IdentityStore>) {
        let mut seen = None;
        loop {
            let stamps = self.stamps().await;
            if seen.as_ref() != Some(&stamps) {
                seen = Some(stamps);
                self.reload(&store).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn reload(&self, store: &IdentityStore) {
        match self.load().await {
            Ok(new) => {
                let same = |old: &Identity| {
                    old.chain_pem == new.chain_pem && old.roots_pem == new.roots_pem
                };
                if !store.get().is_some_and(|old| same(&old)) {
                    let (serial, not_after) = (&new.serial, new.not_after);
                    let bundle = new.roots.names();
                    tracing::info!(serial, not_after, bundle, "certificate files changed");
                }
                store.set(new);
            }
            Err(error) => {
                tracing::warn!(%error, "certificate files not taken");
                store.set_trouble(error.to_string());
            }
        }
    }

    async fn stamps(&self) -> [Stamp; 3] {
        let stamp = async |path: &PathBuf| {
            let file = tokio::fs::metadata(path).await.ok()?;
            Some((
                file.dev(),
                file.ino(),
                file.size(),
                file.mtime(),
                file.mtime_nsec(),
            ))
        };
        [
            stamp(&self.cert).await,
            stamp(&self.key).await,
            stamp(&self.ca).await,
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Pair {
        cert: String,
        key: String,
    }

    fn pair() -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let name = "spiffe://outrigger.local/ns/shop/sa/web";
        params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ascii"))];
        Pair {
            cert: params.self_signed(&key).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }

    fn put(dir: &Path, pair: &Pair) {
        fs::write(dir.join("cert"), &pair.cert).expect("written");
        fs::write(dir.join("key"), &pair.key).expect("written");
        fs::write(dir.join("ca"), &pair.cert).expect("written");
    }

    #[tokio::test]
    async fn tl_01_changed_files_come_into_force_and_half_of_a_change_does_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let (first, second) = (pair(), pair());
        put(dir.path(), &first);
        let source = FileSource {
            cert: at("cert"),
            key: at("key"),
            ca: at("ca"),
            clock: WallClock::system(),
        };
        let store = IdentityStore::new();
        store.set(source.load().await.expect("usable"));
        let old = store.get().expect("an identity");
        let task = tokio::spawn(source.run(Arc::clone(&store)));

        fs::write(at("cert"), &second.cert).expect("written");
        tokio::time::sleep(LOOK_EVERY * 2).await;
        let now = store.get().expect("an identity");
        assert_eq!(now.serial, old.serial, "its key is not here yet");
        fs::remove_file(at("key")).expect("removed");
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert_eq!(store.get().expect("an identity").serial, old.serial);

        let changed = store.changed();
        put(dir.path(), &second);
        tokio::time::timeout(PATIENCE, changed)
            .await
            .expect("taken");
        let new = store.get().expect("an identity");
        assert_ne!(new.serial, old.serial);
        task.abort();
    }
}
