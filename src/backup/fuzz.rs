//! For `fuzz/`: streams under a known key, around bytes of the fuzzer's.

use super::{Head, Manifest, OrgPart, Sealer};
use crate::error::Result;
use crate::id::OrgId;
use crate::keyring::{Keyring, OrgPolicy};
use crate::material::KeyMaterial;

/// An even first byte: the rest is the whole plaintext. An odd one: the rest is read as entries of
/// two orgs, with the manifest that fits them.
pub(crate) fn fuzz_seal(key: &KeyMaterial, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut sealer = Sealer::new(Vec::new(), key, Head::new(key)?)?;
    let Some((first, mut rest)) = bytes.split_first() else { return sealer.finish() };
    if first % 2 == 0 {
        sealer.write(rest)?;
        return sealer.finish();
    }
    let mut counts = [(0, 0); 2];
    while let Some((&[what, name, value], behind)) = rest.split_first_chunk() {
        let (name, behind) = behind.split_at(usize::from(name).min(behind.len()));
        let (value, behind) = behind.split_at(usize::from(value).min(behind.len()));
        let org = usize::from(what & 1);
        let value = (what & 2 == 0).then_some(value);
        sealer.record(org, name, value)?;
        counts[org].0 += 1;
        counts[org].1 += value.map_or(0, <[u8]>::len) as u64;
        rest = behind;
    }
    let mut ring = Keyring::new(KeyMaterial::take(&mut [3; 32]).fingerprint())?;
    let mut orgs = Vec::new();
    for (byte, (entries, bytes)) in [4, 5].into_iter().zip(counts) {
        let (id, name) = (OrgId::from_bytes([byte; 16]), format!("org {byte}"));
        ring.create_org(id, &name, OrgPolicy::byok(), KeyMaterial::take(&mut [byte; 32]), 1)?;
        orgs.push(OrgPart { history: ring.history(&name)?, entries, bytes });
    }
    sealer.end(&Manifest {
        store: ring.store,
        at: 1,
        is_whole: true,
        orgs,
        left_out: Vec::new(),
        unreadable: Vec::new(),
        other_keys: Vec::new(),
        backup_keys: Vec::new(),
    })
}
