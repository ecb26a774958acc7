//! How far the store has got: a small authenticated file beside the database, so that a
//! database that went back in time is noticed (invariant 11).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::OrgId;
use crate::material::KeyMaterial;
use crate::sealed;

/// What the mark's key is derived for.
pub(crate) const KEY: &[u8] = b"byokv mark v1";

const LABEL: &[u8] = b"byokv mark v1";
const MAGIC: &[u8; 8] = b"byokvMK1";
const CONTENT: usize = 8 + OrgId::LEN + 8 + 8;
const SLOT: usize = CONTENT + 32;
/// Two slots, each in a page of its own, written in turn: a torn write leaves the other.
const OFFSETS: [u64; 2] = [0, 4096];

/// What the mark proves: the store had come this far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Durable syncs.
    pub(crate) syncs: u64,
    /// Generation of the keyring at that time.
    pub(crate) generation: u64,
}

impl Position {
    /// magic ‖ store ‖ syncs ‖ generation ‖ HMAC-SHA-256: a slot of the file, and the value
    /// that the database holds.
    pub(crate) fn encode(self, store: OrgId, key: &KeyMaterial) -> [u8; SLOT] {
        let mut slot = [0; SLOT];
        let (content, tag) = slot.split_at_mut(CONTENT);
        content[..8].copy_from_slice(MAGIC);
        content[8..24].copy_from_slice(store.as_bytes());
        content[24..32].copy_from_slice(&self.syncs.to_be_bytes());
        content[32..].copy_from_slice(&self.generation.to_be_bytes());
        tag.copy_from_slice(&key.mac(LABEL, content));
        slot
    }

    /// Of bytes that may go on behind it.
    pub(crate) fn decode_first(bytes: &[u8], store: OrgId, key: &KeyMaterial) -> Option<Self> {
        Self::decode(bytes.get(..SLOT)?, store, key)
    }

    /// `None` for anything that this store did not write.
    fn decode(slot: &[u8], store: OrgId, key: &KeyMaterial) -> Option<Self> {
        let (content, tag) = slot.split_at_checked(CONTENT)?;
        if !key.mac_is(LABEL, content, tag) || content[8..24] != store.as_bytes()[..] {
            return None;
        }
        let number =
            |at: usize| content[at..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        Some(Self { syncs: number(24)?, generation: number(32)? })
    }
}

/// The file, open for writing.
pub(crate) struct Mark {
    file: File,
    store: OrgId,
    key: KeyMaterial,
    /// The slot that does not hold the newest position.
    next: usize,
}

impl Mark {
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join("mark")
    }

    /// What the file proves, without touching it; `None` if there is none.
    pub(crate) fn load(dir: &Path, store: OrgId, key: &KeyMaterial) -> Result<Option<Position>> {
        let path = Self::path(dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        match slots(&bytes, store, key).into_iter().flatten().max() {
            Some(position) => Ok(Some(position)),
            // A crash between making the file and its first slot. Who empties it on purpose gains
            // no more than who removes it.
            None if bytes.iter().all(|&byte| byte == 0) => Ok(None),
            None => Err(Error::damaged(
                &path,
                "the mark is damaged or of another store; nothing was changed; put back the \
                 newest copy of the whole data directory",
            )),
        }
    }

    /// Opens the file for writing, making it durable under its name if it is new.
    pub(crate) fn open(dir: &Path, store: OrgId, key: KeyMaterial) -> Result<Self> {
        let path = Self::path(dir);
        let file = crate::disk::access::private(&path)
            .map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        sealed::file::sync_dir(&path)?;
        let during = |e| Error::io(format!("reading {}", path.display()), e);
        let [first, second] = slots(&std::fs::read(&path).map_err(during)?, store, &key);
        Ok(Self { file, store, key, next: usize::from(first > second) })
    }

    pub(crate) fn encode(&self, position: Position) -> [u8; SLOT] {
        position.encode(self.store, &self.key)
    }

    /// Writes and syncs the older slot.
    pub(crate) fn advance(&mut self, position: Position) -> Result<()> {
        self.write(&self.encode(position))?;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Writes and syncs `position` under another key into the older slot. Under the key of now that
    /// slot counts as torn, and the newer slot goes on to count; under `key` it is the other way
    /// round. So the keyring alone says which of the two the store goes by, and at each moment there
    /// is exactly one. A mark that is not [taken over](Self::rekey) writes over it.
    pub(crate) fn prepare(&self, key: &KeyMaterial, position: Position) -> Result<()> {
        self.write(&position.encode(self.store, key))
    }

    /// Goes on under the key that was [prepared](Self::prepare).
    pub(crate) fn rekey(&mut self, key: KeyMaterial) {
        self.key = key;
        self.next = 1 - self.next;
    }

    fn write(&self, slot: &[u8; SLOT]) -> Result<()> {
        self.file
            .write_all_at(slot, OFFSETS[self.next])
            .and_then(|()| {
                failpoint::reach("mark.written", "");
                self.file.sync_data()
            })
            .map_err(|e| Error::io("writing the mark", e))
    }
}

fn slots(bytes: &[u8], store: OrgId, key: &KeyMaterial) -> [Option<Position>; 2] {
    OFFSETS.map(|offset| {
        let slot = bytes.get(usize::try_from(offset).ok()?..)?;
        Position::decode(slot.get(..SLOT)?, store, key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: OrgId = OrgId::from_bytes([3; 16]);

    fn key() -> KeyMaterial {
        KeyMaterial::take(&mut [4; 32])
    }

    fn load(dir: &Path) -> Result<Option<Position>> {
        Mark::load(dir, STORE, &key())
    }

    fn at(syncs: u64) -> Position {
        Position { syncs, generation: 7 }
    }

    #[test]
    fn the_newest_slot_counts_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let mut mark = Mark::open(dir.path(), STORE, key()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for syncs in 1..=5 {
            mark.advance(at(syncs)).unwrap();
            assert_eq!(load(dir.path()).unwrap(), Some(at(syncs)));
        }
        // Opened again, it still goes over the older one, whatever the number.
        let mut mark = Mark::open(dir.path(), STORE, key()).unwrap();
        mark.advance(at(7)).unwrap();
        mark.file.write_all_at(b"torn", OFFSETS[1] + 30).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(at(5)));
        mark.advance(at(8)).unwrap();
        mark.advance(at(9)).unwrap();
        mark.file.write_all_at(b"torn", OFFSETS[1] + 30).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(at(8)));
        mark.file.write_all_at(b"torn", OFFSETS[0] + 30).unwrap();
        assert!(matches!(load(dir.path()), Err(Error::FileDamaged { .. })));
    }

    #[test]
    fn a_prepared_slot_counts_under_its_own_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let other = || KeyMaterial::take(&mut [5; 32]);
        let mut mark = Mark::open(dir.path(), STORE, key()).unwrap();
        for syncs in 1..=2 {
            mark.advance(at(syncs)).unwrap();
            mark.prepare(&other(), at(syncs)).unwrap();
            assert_eq!(load(dir.path()).unwrap(), Some(at(syncs)));
            let prepared = Mark::load(dir.path(), STORE, &other()).unwrap();
            assert_eq!(prepared, Some(at(syncs)));
        }
        // A process that was killed here goes on with either.
        let mut mark = Mark::open(dir.path(), STORE, key()).unwrap();
        mark.advance(at(3)).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(at(3)));
        assert!(Mark::load(dir.path(), STORE, &other()).is_err());
        mark.prepare(&other(), at(3)).unwrap();
        mark.rekey(other());
        mark.advance(at(4)).unwrap();
        assert_eq!(Mark::load(dir.path(), STORE, &other()).unwrap(), Some(at(4)));
        assert!(load(dir.path()).is_err(), "nothing is left of the key before");
    }

    #[test]
    fn a_mark_of_another_store_or_key_proves_nothing() {
        let slot = at(1).encode(STORE, &key());
        assert_eq!(Position::decode(&slot, STORE, &key()), Some(at(1)));
        assert_eq!(Position::decode(&slot, OrgId::from_bytes([0; 16]), &key()), None);
        assert_eq!(Position::decode(&slot, STORE, &KeyMaterial::take(&mut [5; 32])), None);
        assert_eq!(Position::decode(&slot[..SLOT - 1], STORE, &key()), None);
    }
}
