//! The last good resources on disk, so that a proxy that starts while the control plane is away
//! serves as before.
//!
//! One file, replaced whole: written beside it, synced, renamed. It opens with a magic line, the
//! node it was written for and a checksum. One that is damaged, or of another node, is moved aside
//! and never read in part. Secrets are not written.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{kind::Kind, protocol::Name};

/// Changes are gathered for so long before they are written.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(500);
/// A larger file is neither written nor read: 5,000 services with 20 endpoints take under 20 MiB.
const MAX_FILE: usize = 128 << 20;
const FILE: &str = "xds-resources";
/// Set in the byte of the type where there is no resource.
const ABSENT: u8 = 0x80;
const MAGIC: &[u8] = b"outrigger xds resources 1\n";

/// One resource on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    pub(crate) version: Name,
    pub(crate) updated: SystemTime,
    /// Wire form; `None` where the server said that there is no such resource.
    pub(crate) raw: Option<Bytes>,
}

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: {why}; moved aside", path = path.display())]
    Damaged { path: PathBuf, why: &'static str },
    #[error("{size} bytes of resources are more than the {MAX_FILE} that are kept on disk")]
    TooLarge { size: usize },
}

/// Reads what was saved for `node`; nothing when there is no file.
///
/// # Errors
/// When the file cannot be read or is damaged; a damaged one has been moved aside.
pub(crate) fn load(dir: &Path, node: &str) -> Result<Vec<Saved>, PersistError> {
    let path = dir.join(FILE);
    let failed = |error| PersistError::Io {
        path: path.clone(),
        error,
    };
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let read = if usize::try_from(length).is_ok_and(|length| length <= MAX_FILE) {
        decode(fs::read(&path).map_err(failed)?, node)
    } else {
        Err("is too large")
    };
    read.map_err(|why| {
        let aside = path.with_extension("damaged");
        if let Err(error) = fs::rename(&path, &aside) {
            tracing::warn!(%error, path = %path.display(), "could not move a damaged file aside");
        }
        PersistError::Damaged {
            path: path.clone(),
            why,
        }
    })
}

/// Replaces the file.
///
/// # Errors
/// When it cannot be written, or would be too large; the old one stays.
pub(crate) fn store(dir: &Path, node: &str, all: &[Saved]) -> Result<(), PersistError> {
    let content = encode(node, all);
    if content.len() > MAX_FILE {
        let size = content.len();
        return Err(PersistError::TooLarge { size });
    }
    let path = dir.join(FILE);
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        // The rename itself is durable only with its directory.
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|error| PersistError::Io { path, error })
}

fn encode(node: &str, all: &[Saved]) -> Vec<u8> {
    let mut body = BytesMut::new();
    put(&mut body, node.as_bytes());
    for one in all {
        let age = one.updated.duration_since(UNIX_EPOCH).unwrap_or_default();
        let kind = u8::try_from(one.kind.index()).unwrap_or(u8::MAX);
        body.put_u8(if one.raw.is_some() {
            kind
        } else {
            kind | ABSENT
        });
        body.put_u64(age.as_secs());
        put(&mut body, one.name.as_bytes());
        put(&mut body, one.version.as_bytes());
        put(&mut body, one.raw.as_deref().unwrap_or_default());
    }
    let mut file = Vec::with_capacity(MAGIC.len() + 8 + body.len());
    file.put_slice(MAGIC);
    file.put_u64(checksum(&body));
    file.put_slice(&body);
    file
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn decode(file: Vec<u8>, node: &str) -> Result<Vec<Saved>, &'static str> {
    const SHORT: &str = "ends too early";
    let mut body = Bytes::from(file);
    if !body.starts_with(MAGIC) {
        return Err("is no file of this version");
    }
    body.advance(MAGIC.len());
    let sum = body.try_get_u64().map_err(|_| SHORT)?;
    if sum != checksum(&body) {
        return Err("does not match its checksum");
    }
    if get(&mut body).ok_or(SHORT)? != node.as_bytes() {
        return Err("belongs to another node");
    }
    let text = |bytes: Bytes| {
        let text = std::str::from_utf8(&bytes).map(Name::from);
        text.map_err(|_| "holds a name that is no text")
    };
    let mut all = Vec::new();
    while body.has_remaining() {
        let kind = body.get_u8();
        let absent = kind & ABSENT != 0;
        let kind = Kind::ALL.get(usize::from(kind & !ABSENT));
        let kind = kind.ok_or("holds an unknown type")?;
        let seconds = body.try_get_u64().map_err(|_| SHORT)?;
        let name = text(get(&mut body).ok_or(SHORT)?)?;
        let version = text(get(&mut body).ok_or(SHORT)?)?;
        let raw = get(&mut body).ok_or(SHORT)?;
        let updated = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        all.push(Saved {
            kind: *kind,
            name,
            version,
            updated: updated.ok_or("holds an impossible time")?,
            // A slice would keep the whole file in memory.
            raw: (!absent).then(|| Bytes::copy_from_slice(&raw)),
        });
    }
    Ok(all)
}

fn get(body: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(body.try_get_u32().ok()?).ok()?;
    (length <= body.len()).then(|| body.split_to(length))
}

/// FNV-1a: against damage, not against malice; who can write here can write anything.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
