//! Where objects and tokens are kept: an embedded database whose commits reach the disk before they
//! are answered, and a copy of the objects in memory to read from. In a cluster, whose API server is
//! the store, only that copy is kept.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::InMemoryBackend};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::model::{Invalid, Key, Object, Objects, dangling, parse_object};

/// `<kind>/<namespace>/<name>` to [`Record`] in JSON.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// Single numbers by name.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const REVISION: &str = "revision";
/// SHA-256 of a token to [`Grant`] in JSON.
const TOKENS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tokens");
/// The database caches this much; the objects are in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

/// Why the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no.
    #[error("store: {0}")]
    Database(Box<redb::Error>),
    /// What was read is not what was written.
    #[error("store: object {key}: {why}")]
    Corrupt {
        /// Under this key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The change contradicts what is there.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Conflict(Vec<Invalid>),
    /// An object to delete is not there.
    #[error("{0} does not exist")]
    Missing(Key),
    /// Objects are kept, and identities proven, by the cluster.
    #[error("in a cluster, its API server is the place for this (kubectl, service accounts)")]
    Mirror,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    revision: u64,
    /// The revision that first wrote it; not kept by stores of before.
    #[serde(default)]
    created: Option<u64>,
    object: Value,
}

/// What a token proves, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// Seconds since 1970.
    pub expires: u64,
}

/// The hash of a token, and what it proves.
pub type HashedToken = (Vec<u8>, Grant);

/// What a change did to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Created,
    /// It says something else than before.
    Configured,
    /// It says what it said before.
    Unchanged,
    /// It is no longer there.
    Deleted,
}

/// A change that was made, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The revision that holds it.
    pub revision: u64,
    /// What became of each object.
    pub outcomes: Vec<(Key, Change)>,
    /// References in them that lead nowhere.
    pub warnings: Vec<Invalid>,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    database: Database,
    /// Held while a change is made: changes follow one another.
    current: Mutex<Arc<Objects>>,
    changed: watch::Sender<Arc<Objects>>,
    /// The objects are those of a cluster, and change there only.
    mirror: bool,
}

impl Store {
    /// Opens the store in `path`, a file, which is made when it is not there.
    ///
    /// # Errors
    /// When it cannot be opened or read, or holds objects that are not valid.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        Self::over(builder.create(path)?, false)
    }

    /// A store that holds what [`Store::mirror`] says, and forgets it when it ends.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn of_cluster() -> Result<Self, StoreError> {
        let database = Database::builder().create_with_backend(InMemoryBackend::new())?;
        Self::over(database, true)
    }

    fn over(database: Database, mirror: bool) -> Result<Self, StoreError> {
        let write = database.begin_write()?;
        write.open_table(OBJECTS)?;
        write.open_table(NUMBERS)?;
        write.open_table(TOKENS)?;
        write.commit()?;
        let objects = Arc::new(load(&database)?);
        let (changed, _) = watch::channel(Arc::clone(&objects));
        Ok(Self {
            database,
            current: Mutex::new(objects),
            changed,
            mirror,
        })
    }

    /// Takes over what changed in the cluster: objects, or `None` for those that are gone.
    pub fn mirror(&self, changes: Vec<(Key, Option<Object>)>) {
        let mut current = self.lock();
        let mut next = Objects {
            revision: current.revision + 1,
            by_key: current.by_key.clone(),
        };
        let mut changed = false;
        for (key, object) in changes {
            let old = next.by_key.get(&key);
            match object {
                Some(object) if old.is_some_and(|old| old.json == object.json) => {}
                Some(mut object) => {
                    object.revision = next.revision;
                    next.by_key.insert(key, Arc::new(object));
                    changed = true;
                }
                None => changed |= next.by_key.remove(&key).is_some(),
            }
        }
        if changed {
            *current = Arc::new(next);
            self.changed.send_replace(Arc::clone(&current));
        }
    }

    /// All objects now.
    #[must_use]
    pub fn objects(&self) -> Arc<Objects> {
        self.changed.borrow().clone()
    }

    /// Follows the objects.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Objects>> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Objects>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates or replaces objects, all or none. Blocks on the disk.
    ///
    /// # Errors
    /// When they contradict each other or what is there, or the disk fails; nothing changed then.
    pub fn apply(&self, objects: Vec<Object>, dry_run: bool) -> Result<Applied, StoreError> {
        self.change(dry_run, |next, revision| {
            let mut outcomes = Vec::with_capacity(objects.len());
            for mut object in objects {
                let key = object.key.clone();
                let old = next.get(&key);
                object.created = old.map_or(revision, |old| old.created);
                let change = match old {
                    Some(old) if old.json == object.json => Change::Unchanged,
                    Some(_) => Change::Configured,
                    None => Change::Created,
                };
                if change != Change::Unchanged {
                    object.revision = revision;
                    next.insert(key.clone(), Arc::new(object));
                }
                outcomes.push((key, change));
            }
            Ok(outcomes)
        })
    }

    /// Removes objects, all or none. Blocks on the disk.
    ///
    /// # Errors
    /// When one is not there, unless that is to be passed over; or the disk fails.
    pub fn delete(&self, keys: &[Key], ignore_missing: bool) -> Result<Applied, StoreError> {
        self.change(false, |next, _| {
            let mut outcomes = Vec::with_capacity(keys.len());
            for key in keys {
                match next.remove(key) {
                    Some(_) => outcomes.push((key.clone(), Change::Deleted)),
                    None if ignore_missing => outcomes.push((key.clone(), Change::Unchanged)),
                    None => return Err(StoreError::Missing(key.clone())),
                }
            }
            Ok(outcomes)
        })
    }

    /// Makes one object out of the one that is there.
    ///
    /// # Errors
    /// What `edit` says; and as [`Store::apply`].
    pub fn edit(
        &self,
        key: &Key,
        edit: impl FnOnce(&Object) -> Result<Object, Vec<Invalid>>,
    ) -> Result<Applied, StoreError> {
        self.change(false, |next, revision| {
            let Some(old) = next.get(key) else {
                return Err(StoreError::Missing(key.clone()));
            };
            let mut new = edit(old).map_err(StoreError::Conflict)?;
            if new.json == old.json {
                return Ok(vec![(key.clone(), Change::Unchanged)]);
            }
            new.revision = revision;
            new.created = old.created;
            next.insert(key.clone(), Arc::new(new));
            Ok(vec![(key.clone(), Change::Configured)])
        })
    }

    fn change(
        &self,
        dry_run: bool,
        make: impl FnOnce(
            &mut BTreeMap<Key, Arc<Object>>,
            u64,
        ) -> Result<Vec<(Key, Change)>, StoreError>,
    ) -> Result<Applied, StoreError> {
        if self.mirror && !dry_run {
            return Err(StoreError::Mirror);
        }
        let mut current = self.lock();
        let mut next = Objects {
            revision: current.revision + 1,
            by_key: current.by_key.clone(),
        };
        let outcomes = make(&mut next.by_key, next.revision)?;
        let conflicts = next.conflicts();
        if !conflicts.is_empty() {
            return Err(StoreError::Conflict(conflicts));
        }
        let objects = outcomes.iter().filter_map(|(key, _)| next.by_key.get(key));
        let warnings = objects.flat_map(|object| dangling(&next, object)).collect();
        if dry_run || outcomes.iter().all(|(_, c)| *c == Change::Unchanged) {
            let revision = current.revision;
            return Ok(Applied {
                revision,
                outcomes,
                warnings,
            });
        }
        self.commit(&next, &outcomes)?;
        let revision = next.revision;
        *current = Arc::new(next);
        self.changed.send_replace(Arc::clone(&current));
        Ok(Applied {
            revision,
            outcomes,
            warnings,
        })
    }

    fn commit(&self, next: &Objects, outcomes: &[(Key, Change)]) -> Result<(), StoreError> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(OBJECTS)?;
            for (key, change) in outcomes {
                let path = path_of(key);
                match next.by_key.get(key) {
                    Some(_) if *change == Change::Unchanged => {}
                    Some(object) => {
                        let record = Record {
                            revision: object.revision,
                            created: Some(object.created),
                            object: object.json.clone(),
                        };
                        let bytes = encode(&record, &path)?;
                        table.insert(path.as_str(), bytes.as_slice())?;
                    }
                    None => drop(table.remove(path.as_str())?),
                }
            }
            write.open_table(NUMBERS)?.insert(REVISION, next.revision)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Keeps a token, and forgets those that expired before `now`. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn put_token(&self, hash: &[u8], grant: &Grant, now: u64) -> Result<(), StoreError> {
        if self.mirror {
            return Err(StoreError::Mirror);
        }
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(TOKENS)?;
            table.retain(|_, bytes| {
                serde_json::from_slice::<Grant>(bytes).is_ok_and(|grant| grant.expires > now)
            })?;
            table.insert(hash, encode(grant, "token")?.as_slice())?;
        }
        write.commit()?;
        Ok(())
    }

    /// Hash and grant of every token that is kept.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn tokens(&self) -> Result<Vec<HashedToken>, StoreError> {
        let read = self.database.begin_read()?;
        let mut all = Vec::new();
        for entry in read.open_table(TOKENS)?.iter()? {
            let (hash, bytes) = entry?;
            if let Ok(grant) = serde_json::from_slice(bytes.value()) {
                all.push((hash.value().to_vec(), grant));
            }
        }
        Ok(all)
    }

    /// Forgets the tokens with these hashes. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk fails; then none is forgotten.
    pub fn remove_tokens(&self, hashes: &[&[u8]]) -> Result<(), StoreError> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(TOKENS)?;
            for hash in hashes {
                drop(table.remove(*hash)?);
            }
        }
        write.commit()?;
        Ok(())
    }

    /// What the token with this hash proves.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn token(&self, hash: &[u8]) -> Result<Option<Grant>, StoreError> {
        let read = self.database.begin_read()?;
        let table = read.open_table(TOKENS)?;
        let found = table.get(hash)?;
        Ok(found.and_then(|bytes| serde_json::from_slice(bytes.value()).ok()))
    }
}

fn path_of(key: &Key) -> String {
    format!("{}/{}/{}", key.kind, key.namespace, key.name)
}

fn encode(value: &impl Serialize, key: &str) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Corrupt {
        key: key.to_owned(),
        why: error.to_string(),
    })
}

fn load(database: &Database) -> Result<Objects, StoreError> {
    let read = database.begin_read()?;
    let numbers = read.open_table(NUMBERS)?;
    let revision = numbers.get(REVISION)?.map_or(0, |value| value.value());
    let mut by_key = BTreeMap::new();
    for entry in read.open_table(OBJECTS)?.iter()? {
        let (path, bytes) = entry?;
        let corrupt = |why: String| StoreError::Corrupt {
            key: path.value().to_owned(),
            why,
        };
        let record: Record =
            serde_json::from_slice(bytes.value()).map_err(|e| corrupt(e.to_string()))?;
        let mut object = parse_object(record.object, "", 0).map_err(|faults| {
            let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
            corrupt(texts.join("; "))
        })?;
        object.revision = record.revision;
        object.created = record.created.unwrap_or(record.revision);
        by_key.insert(object.key.clone(), Arc::new(object));
    }
    Ok(Objects { revision, by_key })
}
