//! Where the tool has the root key from.

use std::path::Path;
use std::time::Duration;

use byokv::{Fingerprint, KeyFile, RootKey};

use super::Context;
use super::failure::{Failure, Result};

impl Context {
    /// The root key. A pipe gives it only once, so what was read already is not read again.
    pub(super) fn root_key(&self) -> Result<RootKey> {
        const VARIABLE: &str = "BYOKV_ROOT_KEY";
        let kept = self.root.take();
        let is_set = || std::env::var_os(VARIABLE).is_some_and(|key| !key.is_empty());
        match (kept, &self.global.root_key_file) {
            (Some(kept), _) => Ok(kept),
            (None, Some(file)) => self.root_key_in(file),
            (None, None) if is_set() => Ok(RootKey::from_env(VARIABLE)?),
            (None, None) => Err(Failure::Usage(format!(
                "give the root key with --root-key-file FILE or in {VARIABLE}"
            ))),
        }
    }

    /// Reads a root key as the global options allow it.
    pub(super) fn root_key_in(&self, file: &Path) -> Result<RootKey> {
        from_file(file, self.global.allow_group_read, self.global.root_key_wait)
    }

    /// The root key's fingerprint; the next [`root_key`](Self::root_key) is that key.
    pub(super) fn root_fingerprint(&self) -> Result<Fingerprint> {
        let key = self.root_key()?;
        let fingerprint = key.fingerprint();
        self.root.set(Some(key));
        Ok(fingerprint)
    }
}

/// Reads a root key from a file or a pipe.
fn from_file(path: &Path, group_reads: bool, wait: Duration) -> Result<RootKey> {
    let file = KeyFile::new(path).deadline(wait);
    let for_group = file.clone().allow_group_read();
    if group_reads {
        return Ok(RootKey::from_key_file(&for_group)?);
    }
    let would_help = matches!((file.exposure(), for_group.exposure()), (Ok(Some(_)), Ok(None)));
    RootKey::from_key_file(&file).map_err(|error| {
        if would_help {
            let advice = "--allow-group-read, if everyone in its group may read the key";
            return Failure::Advised(error, advice.to_owned());
        }
        error.into()
    })
}
