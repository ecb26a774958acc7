//! Old ciphertext that still lies in the database's files, and its removal: what lives is copied
//! to a fresh database, the store goes on with that, and the old files are overwritten.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::whole::not_whole;
use super::{Claim, Engine};
use crate::audit::{AuditEvent, Certificate, CertificateKind, Draft};
use crate::envelope::{FORMAT, HEADER_LEN, Header};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{KeyState, KeyVersion, OrgId};
use crate::keyring::{Erasure, Keyring};
use crate::sealed::file;
use crate::storage::{CopyPlan, Freeze, SledStorage};

/// Envelopes of a retired key version that can still be found in the database's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Residue {
    /// Name of the org.
    pub org: String,
    /// Its id.
    pub org_id: OrgId,
    /// The retired version.
    pub version: KeyVersion,
    /// Envelopes found, whole or not.
    pub envelopes: u64,
    /// Bytes from each of them to the next one, or to the end of the log's segment or of the large
    /// page's file that it lies in: at least as many as they have.
    pub bytes_at_most: u64,
}

/// What [`Store::erase_residue`](crate::Store::erase_residue) did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResidueErased {
    /// What was found before.
    pub before: Vec<Residue>,
    /// Bytes of the database's files before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// How long no write was let in.
    pub writes_paused: Duration,
    /// One for each version of which residue was erased: the retired key's ciphertext is gone.
    pub certificates: Vec<Certificate>,
}

type Counts = BTreeMap<(OrgId, KeyVersion), (u64, u64)>;

impl Engine {
    /// Reads every file of the database for headers of retired versions.
    pub(crate) fn residue(&self) -> Result<Vec<Residue>> {
        let found = self.count_envelopes()?;
        Ok(self.with_keyring(|keyring| {
            let of = |org: &crate::keyring::OrgEntry| {
                let retired = org.versions.iter().filter(|v| v.state == KeyState::Retired);
                let residue = retired.filter_map(|v| {
                    let &(envelopes, bytes_at_most) = found.get(&(org.id, v.version))?;
                    let (org, org_id) = (org.name.clone(), org.id);
                    Some(Residue { org, org_id, version: v.version, envelopes, bytes_at_most })
                });
                residue.collect::<Vec<_>>()
            };
            keyring.orgs.iter().flat_map(of).collect()
        }))
    }

    fn count_envelopes(&self) -> Result<Counts> {
        let orgs = self.with_keyring(|keyring| {
            keyring.orgs.iter().map(|org| (*org.id.as_bytes(), ())).collect::<HashMap<_, _>>()
        });
        let mut counts = Counts::new();
        // Also in what a removal that failed has left.
        for database in databases(&self.dir)? {
            for path in files_below(&database)? {
                let piece = SledStorage::piece_of(&path).unwrap_or(u64::MAX);
                count_in(&path, piece, &orgs, &mut counts)?;
            }
        }
        Ok(counts)
    }

    /// 1. a fresh database beside the old one, with everything that lives;
    /// 2. writes stand still, the rest is copied, what was copied is what the digest says, the copy
    ///    is durable; must come before 3, or a crash loses what was not copied, and what is missing
    ///    is certified as erased;
    /// 3. the keyring names the new database: the one moment of the switch, also for a crash;
    /// 4. the store goes on with it, writes are let in;
    /// 5. the old files are overwritten and removed; a crash leaves that to the next open;
    /// 6. the new files are searched, and what has gone is certified.
    pub(crate) fn erase_residue(&self) -> Result<ResidueErased> {
        self.rewrite_database(&CopyPlan::Checked)
    }

    /// The same, for a database that is not what it was: whatever is found in it is what is there
    /// from now on.
    pub(super) fn take_what_is_there(&self) -> Result<ResidueErased> {
        self.rewrite_database(&CopyPlan::Accepting)
    }

    fn rewrite_database(&self, plan: &CopyPlan<'_>) -> Result<ResidueErased> {
        let _one_at_a_time = self.moving.try_lock().map_err(|_| Error::ResidueBusy)?;
        let _span = tracing::info_span!("erase_residue").entered();
        self.check_writable()?;
        let before = self.residue()?;
        let retired = self.with_keyring(retired_versions);
        let bytes_before = self.storage.bytes_on_disk()?;
        let old = self.storage.dir();
        // What stays of an earlier removal would be certified as gone.
        Self::erase_leftovers(&self.dir, &old)?;
        let number = self.with_keyring(|keyring| keyring.database) + 1;
        let new = self.dir.join(Keyring::database_name(number));
        let moved = self.move_to(&new, number, plan);
        if let Err(error) = &moved
            && !matches!(error, Error::SyncFailed { .. })
            && let Err(left) = erase_dir(&new)
        {
            tracing::warn!(%error, %left, "a half-made copy is removed at the next open");
        }
        let writes_paused = moved?;
        erase_dir(&old)?;
        failpoint::reach("residue.removed", "");
        let certificates = self.certify_erased(&before, &retired)?;
        let bytes_after = self.storage.bytes_on_disk()?;
        tracing::info!(bytes_before, bytes_after, ?writes_paused, "residue erased");
        Ok(ResidueErased { before, bytes_before, bytes_after, writes_paused, certificates })
    }

    /// Steps 1 to 4. After an error that is no [`Error::SyncFailed`] the store is on the old
    /// database. How long writes stood still.
    fn move_to(&self, new: &Path, number: u32, plan: &CopyPlan<'_>) -> Result<Duration> {
        let mut successor = self.storage.copy_to(new, plan)?;
        failpoint::reach("residue.copied", "");
        successor.catch_up()?;
        let mut frozen = None;
        let mut writes_paused = Duration::ZERO;
        let frozen_here = std::cell::RefCell::new(&mut frozen);
        let dir = self.storage.dir();
        self.change_then(
            None,
            |keyring, drafts| {
                // Under the keyring's lock already: who changes the keyring writes after that,
                // so the locks are always taken in this order.
                match successor.freeze(None)? {
                    Freeze::Frozen(frozen) => **frozen_here.borrow_mut() = Some(frozen),
                    Freeze::Broken(groups) => return Err(not_whole(&dir, keyring, &groups)),
                }
                failpoint::reach("residue.frozen", "");
                keyring.database = number;
                drafts.push(Draft::new(AuditEvent::DatabaseRewritten));
                Ok(())
            },
            || {
                if let Some(frozen) = frozen_here.borrow_mut().take() {
                    writes_paused = frozen.switch();
                }
            },
        )?;
        drop(frozen);
        failpoint::reach("residue.switched", "");
        if !successor.close_old(Duration::from_secs(5)) {
            // Somebody holds a scan that was begun before; it goes on with the new files.
            tracing::warn!("the old database is still open; its files are removed all the same");
        }
        Ok(writes_paused)
    }

    /// Upgrades the proof of each retired version of which nothing can be found any more, of those
    /// that were `retired` when the fresh database was begun: nothing of them came into it. What
    /// was retired later may have been written behind the search, and blinded names cannot be
    /// searched for: sled cuts off what keys have in common.
    fn certify_erased(
        &self,
        before: &[Residue],
        retired: &HashSet<(OrgId, KeyVersion)>,
    ) -> Result<Vec<Certificate>> {
        let left = self.count_envelopes()?;
        failpoint::reach("residue.counted", "");
        self.change(None, |keyring, drafts| {
            let mut claims = Vec::new();
            for org in &mut keyring.orgs {
                let successor = org.erasure.is_none().then_some(org.newest().version);
                for v in org.versions.iter_mut().filter(|v| v.state == KeyState::Retired) {
                    if v.residue_erased || left.contains_key(&(org.id, v.version)) {
                        continue;
                    }
                    if !retired.contains(&(org.id, v.version)) {
                        continue;
                    }
                    v.residue_erased = true;
                    let found =
                        before.iter().find(|r| (r.org_id, r.version) == (org.id, v.version));
                    claims.push(Claim {
                        records_deleted: found.map_or(0, |residue| residue.envelopes),
                        ..Claim::new(CertificateKind::KeyErased, org.id, v.version, successor)
                    });
                }
            }
            let certified = claims.into_iter().map(|claim| self.certify(keyring, drafts, claim));
            certified.filter_map(Result::transpose).collect()
        })
    }

    /// Finishes a removal that a crash cut off: databases that the keyring does not name.
    pub(super) fn erase_leftovers(dir: &Path, current: &Path) -> Result<()> {
        for path in databases(dir)? {
            if path != current {
                tracing::info!(path = %path.display(), "going on with the removal of old files");
                erase_dir(&path)?;
            }
        }
        Ok(())
    }

    /// Whether any database lies in the directory.
    pub(super) fn any_database(dir: &Path) -> bool {
        fs::read_dir(dir).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|e| SledStorage::exists(&e.path())))
        })
    }
}

fn retired_versions(keyring: &Keyring) -> HashSet<(OrgId, KeyVersion)> {
    let of = |org: &crate::keyring::OrgEntry| {
        let retired = org.versions.iter().filter(|v| v.state == KeyState::Retired);
        retired.map(|v| (org.id, v.version)).collect::<Vec<_>>()
    };
    // Who writes to an org that is being erased may still come with something under its key.
    let drained = keyring.orgs.iter().filter(|org| org.erasure != Some(Erasure::KeysDestroyed));
    drained.flat_map(of).collect()
}

fn databases(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| listing(dir, e))?;
    let paths = entries.map(|entry| entry.map(|e| e.path()).map_err(|e| listing(dir, e)));
    paths.filter(|path| path.as_ref().map_or(true, |path| is_database(path))).collect()
}

fn is_database(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("db.").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) && (name == "db" || number)
}

fn listing(dir: &Path, error: std::io::Error) -> Error {
    Error::io(format!("listing {}", dir.display()), error)
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| listing(&folder, e))? {
            let path = entry.map_err(|e| listing(&folder, e))?.path();
            // What a symbolic link points to is not ours.
            let kind = fs::symlink_metadata(&path).map(|meta| meta.file_type());
            match kind {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => files.push(path),
                _ => {}
            }
        }
    }
    Ok(files)
}

/// Overwrites every file below `dir` with zeros, durably, and removes it all. See
/// [`file::discard`] for what overwriting does not reach.
fn erase_dir(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for path in files_below(dir)? {
        match file::overwrite(&path) {
            // sled tidies up on its own when it is closed.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            overwritten => overwritten?,
        }
    }
    failpoint::reach("residue.overwritten", "");
    let during = |e| Error::io(format!("removing {}", dir.display()), e);
    fs::remove_dir_all(dir).map_err(during)?;
    file::sync_dir(dir)
}

/// Counts headers of the store's orgs in one file, wherever they stand. No envelope goes over the
/// end of a `piece`.
fn count_in(
    path: &Path,
    piece: u64,
    orgs: &HashMap<[u8; 16], ()>,
    counts: &mut Counts,
) -> Result<()> {
    const WINDOW: usize = 512 << 10;

    let during = |e| Error::io(format!("reading {}", path.display()), e);
    let mut input = match File::open(path) {
        Ok(input) => input,
        // Removed by sled since it was listed.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(during(e)),
    };
    let mut window = vec![0; WINDOW + HEADER_LEN];
    let mut at = 0;
    let mut last: Option<((OrgId, KeyVersion), u64)> = None;
    let bytes = |since: u64, until: u64| {
        let end = (since / piece + 1).saturating_mul(piece);
        end.min(until).saturating_sub(since)
    };
    loop {
        input.seek(SeekFrom::Start(at)).map_err(during)?;
        let mut filled = 0;
        while filled < window.len() {
            match input.read(&mut window[filled..]).map_err(during)? {
                0 => break,
                read => filled += read,
            }
        }
        // A header may begin in this window and end in the next.
        let starts = filled.saturating_sub(HEADER_LEN - 1).min(WINDOW);
        for start in 0..starts {
            let header = &window[start..start + HEADER_LEN];
            if header[0] != FORMAT || header[1] == 0 || header[1] > 2 {
                continue;
            }
            let known = header[2..18].first_chunk().is_some_and(|org| orgs.contains_key(org));
            if let Some(found) = known.then(|| Header::read(header)).flatten() {
                let here = at + start as u64;
                if let Some((under, since)) = last {
                    counts.entry(under).or_default().1 += bytes(since, here);
                }
                let under = (found.org, found.version);
                counts.entry(under).or_default().0 += 1;
                last = Some((under, here));
            }
        }
        if filled < window.len() {
            if let Some((under, since)) = last {
                counts.entry(under).or_default().1 += bytes(since, at + filled as u64);
            }
            return Ok(());
        }
        at += WINDOW as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Suite;
    use crate::keyring::OrgPolicy;
    use crate::material::KeyMaterial;

    #[test]
    fn what_an_erasure_may_still_see_written_is_not_certified() {
        let mut keyring = Keyring::new(KeyMaterial::take(&mut [1; 32]).fingerprint()).unwrap();
        let id = OrgId::from_bytes([7; 16]);
        let material = KeyMaterial::take(&mut [2; 32]);
        keyring.create_org(id, "acme", OrgPolicy::byok(), material, 5).unwrap();
        keyring.erase(id, "acme", 6).unwrap();
        assert!(retired_versions(&keyring).is_empty());
        keyring.orgs[0].erasure = Some(Erasure::RecordsDeleted);
        assert_eq!(retired_versions(&keyring), HashSet::from([(id, KeyVersion::FIRST)]));
    }

    #[test]
    fn headers_are_found_wherever_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let (org, other) = (OrgId::from_bytes([7; 16]), OrgId::from_bytes([8; 16]));
        let version = KeyVersion::FIRST;
        let header = |org| Header { suite: Suite::Xaes256Gcm, org, version }.encode();
        let mut bytes = vec![1; 3 << 20];
        let window = 512 << 10;
        // At the start, over the edges of windows, at the very end.
        let places =
            [0, 100, window - 22, 2 * window - 1, 3 * window - 21, 4 * window, bytes.len() - 22];
        for at in places {
            bytes[at..at + 22].copy_from_slice(&header(org));
        }
        bytes[5000..5022].copy_from_slice(&header(other));
        fs::write(&path, &bytes).unwrap();
        let count = |piece| {
            let mut counts = Counts::new();
            let orgs = HashMap::from([(*org.as_bytes(), ())]);
            count_in(&path, piece, &orgs, &mut counts).unwrap();
            assert_eq!(counts.len(), 1);
            counts[&(org, version)]
        };
        let all = places.len() as u64;
        assert_eq!(count(u64::MAX), (all, 3 << 20), "all of one file");
        let (first, over_edges, later) = (window as u64, 1 + 21, window as u64 + 22);
        assert_eq!(count(window as u64), (all, first + over_edges + later));
    }
}
