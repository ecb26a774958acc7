//! The last entry of a backup: all that is known of its orgs but the records. Whoever has the
//! backup key may have written it himself, so what it may hold has limits.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::contents::{LeftOutOrg, UnreadableRecord};
use super::entry::malformed;
use crate::error::{BackupError, Result};
use crate::id::{BackupId, Fingerprint, OrgId};
use crate::keyring::OrgHistory;

/// Orgs in a backup, and orgs that are left out of it.
pub(crate) const MOST_ORGS: usize = 100_000;
/// Fingerprints of keys: of the orgs' versions and of all others, together.
pub(crate) const MOST_KEYS: usize = 500_000;
/// Ids that the orgs had before they were restored, together.
const MOST_ANCESTORS: usize = 1_000_000;
/// Records that could not be read and are named.
pub(crate) const MOST_UNREADABLE: usize = 1000;
/// Bytes of the name of an org.
const LONGEST_ORG_NAME: usize = 128;
/// Bytes of any other text.
const LONGEST_TEXT: usize = 4 << 10;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) store: OrgId,
    /// Milliseconds since 1970: of the moment that the records show.
    pub(crate) at: u64,
    pub(crate) is_whole: bool,
    pub(crate) orgs: Vec<OrgPart>,
    pub(crate) left_out: Vec<LeftOutOrg>,
    pub(crate) unreadable: Vec<UnreadableRecord>,
    /// Keys that the store itself had besides those of `orgs`: of other orgs, erased ones, root
    /// keys, keys of backups. None if only some orgs were asked for.
    pub(crate) other_keys: Vec<Fingerprint>,
    /// Keys that came with the orgs when they were restored, likewise.
    pub(crate) earlier: Vec<EarlierKeys>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrgPart {
    pub(crate) history: OrgHistory,
    pub(crate) entries: u64,
    /// Of values.
    pub(crate) bytes: u64,
}

/// What the backup that orgs were restored from said of other keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EarlierKeys {
    pub(crate) backup: BackupId,
    /// By their place among the orgs of this backup.
    pub(crate) orgs: Vec<u32>,
    pub(crate) keys: Vec<Fingerprint>,
}

impl Manifest {
    /// Refuses more than any store has. Asked before a backup is ended, too, so that none is made
    /// that is not restored.
    pub(crate) fn check_limits(&self) -> Result<()> {
        let histories = || self.orgs.iter().map(|part| &part.history);
        let earlier = || self.earlier.iter();
        let counts = [
            (self.orgs.len(), MOST_ORGS, "orgs"),
            (self.left_out.len(), MOST_ORGS, "orgs that are left out"),
            (self.key_count(), MOST_KEYS, "fingerprints of keys"),
            (histories().map(|h| h.ancestors.len()).sum(), MOST_ANCESTORS, "ids of earlier orgs"),
            (earlier().map(|e| e.orgs.len()).sum(), MOST_ANCESTORS, "orgs of earlier backups"),
            (self.earlier.len(), MOST_ORGS, "earlier backups"),
            (self.unreadable.len(), MOST_UNREADABLE, "records that could not be read"),
        ];
        for (found, limit, what) in counts {
            if found > limit {
                return Err(BackupError::TooMany { what, found, limit }.into());
            }
        }
        let names = self.left_out.iter().map(|org| &org.name);
        let names = names.chain(self.unreadable.iter().map(|record| &record.org));
        let texts = self.unreadable.iter().flat_map(|record| [&record.name, &record.why]);
        let longest = |texts: &mut dyn Iterator<Item = &String>| {
            texts.map(String::len).max().unwrap_or_default()
        };
        for (found, limit, what) in [
            (longest(&mut { names }), LONGEST_ORG_NAME, "bytes in the name of an org"),
            (longest(&mut { texts }), LONGEST_TEXT, "bytes in a text about a record"),
        ] {
            if found > limit {
                return Err(BackupError::TooMany { what, found, limit }.into());
            }
        }
        Ok(())
    }

    /// How many fingerprints it has.
    pub(crate) fn key_count(&self) -> usize {
        let versions: usize = self.orgs.iter().map(|part| part.history.versions.len()).sum();
        let earlier: usize = self.earlier.iter().map(|earlier| earlier.keys.len()).sum();
        versions + self.other_keys.len() + earlier
    }

    /// Refuses what no store writes.
    pub(super) fn check_sense(&self) -> Result<()> {
        if !self.orgs.iter().all(|part| part.history.is_plausible()) {
            return Err(malformed("the history of an org's keys makes no sense"));
        }
        let (mut names, mut ids) = (HashSet::new(), HashSet::new());
        let is_new =
            |part: &OrgPart| names.insert(part.history.name.clone()) && ids.insert(part.history.id);
        if !self.orgs.iter().all(is_new) {
            return Err(malformed("it has two orgs of the same name or id"));
        }
        let mut places = self.earlier.iter().flat_map(|earlier| &earlier.orgs);
        if !places.all(|place| (*place as usize) < self.orgs.len()) {
            return Err(malformed("its list of contents names an org that it does not hold"));
        }
        Ok(())
    }

    /// Every key that it knows of but those of `earlier`, sorted.
    pub(crate) fn keys(&self) -> Arc<[Fingerprint]> {
        let histories = self.orgs.iter().flat_map(|part| part.history.fingerprints());
        crate::keyring::sorted(histories.chain(self.other_keys.iter().copied()).collect())
    }
}
