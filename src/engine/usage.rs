//! How much each key has sealed, kept so that a crash never counts too few.

use super::{Engine, OrgKeys, OrgState};
use crate::error::Result;
use crate::id::{KeyState, KeyVersion, OrgId};

fn usage_key(org: OrgId, version: KeyVersion) -> Vec<u8> {
    [b"usage/", &org.as_bytes()[..], &version.get().to_be_bytes()].concat()
}

impl Engine {
    /// Seals a value that a user wrote, and counts it.
    pub(crate) fn seal(&self, keys: &OrgKeys, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        let envelope = keys.seal(name, value)?;
        if let Some(slot) = keys.slot(keys.active) {
            slot.counters.usage.add(value.len() as u64, |records, bytes| {
                let key = usage_key(keys.org, keys.active);
                self.keep(&key, &(records, bytes))
            })?;
        }
        Ok(envelope)
    }

    /// Takes up the counts where they were left.
    pub(super) fn load_usage(&self, org: &OrgState) -> Result<()> {
        let keys = org.gate.snapshot();
        for slot in keys.slots.iter().filter(|slot| slot.state != KeyState::Retired) {
            let key = usage_key(org.id, slot.version);
            if let Some((records, bytes)) = self.kept::<(u64, u64)>(&key)? {
                slot.counters.usage.start_at(records, bytes);
            }
        }
        Ok(())
    }
}
