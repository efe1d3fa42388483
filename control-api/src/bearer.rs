//! The secret that callers of the control API show where it is not on the loopback.

use std::{fmt, fs, io, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use aws_lc_rs::{constant_time, digest, rand as random};
use http::{HeaderMap, header::AUTHORIZATION};
use tonic::Status;

use crate::hex::hex;

/// So that a secret is recognised where it leaks.
const PREFIX: &str = "ora_";
/// As hard to guess as a key.
const SECRET_BYTES: usize = 32;
/// A secret that an operator writes is at least as long.
const MIN_SECRET: usize = 16;

/// What callers show as `authorization: Bearer`.
#[derive(Clone)]
pub struct Bearer(digest::Digest);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer")
    }
}

impl Bearer {
    /// The secret in a file.
    ///
    /// # Errors
    /// When it cannot be read, or is too short.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        let secret = text.trim();
        if secret.len() < MIN_SECRET {
            let why = format!("the secret has fewer than {MIN_SECRET} characters");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self(hash(secret)))
    }

    /// The secret in a file, which is made, for its owner alone, where there is none.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_or_make(path: &Path) -> io::Result<Self> {
        let mut secret = [0_u8; SECRET_BYTES];
        random::fill(&mut secret).map_err(|_| io::Error::other("no random numbers"))?;
        let mut options = fs::OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                file.write_all(format!("{PREFIX}{}\n", hex(&secret)).as_bytes())?;
                file.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Self::read(path)
    }

    /// Whether a request shows it.
    ///
    /// # Errors
    /// UNAUTHENTICATED, with what is missing.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Status> {
        let shown = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        // RFC 9110 §11.1: the scheme is written in any case.
        let shown = shown.and_then(|value| {
            let (scheme, secret) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
        });
        let Some(secret) = shown else {
            return Err(Status::unauthenticated(
                "the control API wants a token: give --token-file (on the control plane it is \
                 api.token in the state directory)",
            ));
        };
        let shown = hash(secret);
        constant_time::verify_slices_are_equal(shown.as_ref(), self.0.as_ref())
            .map_err(|_| Status::unauthenticated("the token is not that of this control plane"))
    }
}

fn hash(secret: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn shown(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn the_secret_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.token");
        let bearer = Bearer::read_or_make(&path).unwrap();
        let secret = fs::read_to_string(&path).unwrap();
        let secret = secret.trim();
        assert!(secret.starts_with(PREFIX) && secret.len() > 60, "{secret}");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Bearer::read_or_make(&path).unwrap();
        for good in [format!("Bearer {secret}"), format!("bearer  {secret} ")] {
            bearer.check(&shown(&good)).unwrap();
            again.check(&shown(&good)).unwrap();
        }
        for bad in [
            "Bearer ".to_owned(),
            format!("Bearer {secret}0"),
            format!("Basic {secret}"),
            secret.to_owned(),
        ] {
            bearer.check(&shown(&bad)).unwrap_err();
        }
        bearer.check(&HeaderMap::new()).unwrap_err();
    }

    #[test]
    fn a_short_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine");
        fs::write(&path, "letmein\n").unwrap();
        assert!(Bearer::read(&path).is_err());
        fs::write(&path, "a secret of more than sixteen characters\n").unwrap();
        assert!(Bearer::read(&path).is_ok());
        assert!(Bearer::read(&dir.path().join("absent")).is_err());
    }
}
