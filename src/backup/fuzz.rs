//! For `fuzz/` and tests: streams under a known key, around bytes of the fuzzer's, and what a
//! hostile author writes, who has the key too.

use super::{Head, LeftOut, LeftOutOrg, Manifest, OrgPart, Sealer, UnreadableRecord};
use crate::error::Result;
use crate::id::{Fingerprint, KeyVersion, OrgId};
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
        orgs.push(OrgPart { history: ring.org(&name)?.history(), entries, bytes });
    }
    sealer.end(&Manifest {
        store: ring.store,
        at: 1,
        is_whole: true,
        orgs,
        left_out: Vec::new(),
        unreadable: Vec::new(),
        other_keys: Vec::new(),
        earlier: Vec::new(),
    })
}

/// What a hostile author says in a list of contents, around one org without records.
#[derive(Debug)]
pub struct HostileBackup<'a> {
    /// Name of the org.
    pub org: &'a str,
    /// The org that it pretends to have been before.
    pub ancestor: Option<OrgId>,
    /// Its newest version.
    pub newest: u32,
    /// Fingerprints that it pretends were used elsewhere.
    pub claimed: &'a [Fingerprint],
    /// How many more such fingerprints there are.
    pub more: u32,
    /// Further orgs without records.
    pub orgs: u32,
    /// A text for everything that is shown.
    pub text: &'a str,
}

/// Seals it as a backup.
pub(crate) fn hostile(key: &KeyMaterial, hostile: &HostileBackup<'_>) -> Result<Vec<u8>> {
    let sealer = Sealer::new(Vec::new(), key, Head::new(key)?)?;
    let numbered = |number: u32| {
        let mut bytes = [7; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let mut ring = Keyring::new(KeyMaterial::take(&mut [3; 32]).fingerprint())?;
    let id = OrgId::from_bytes([4; 16]);
    ring.create_org(id, "org", OrgPolicy::byok(), KeyMaterial::take(&mut [4; 32]), 1)?;
    let mut history = ring.org("org")?.history();
    history.ancestors.extend(hostile.ancestor);
    for version in &mut history.versions {
        version.version = KeyVersion::new(hostile.newest).unwrap_or(KeyVersion::FIRST);
    }
    let part = |number: u32| {
        let mut history = history.clone();
        history.name = hostile.org.to_owned();
        if number > 0 {
            (history.name, history.id) =
                (format!("org {number}"), OrgId::from_bytes(numbered(number)));
        }
        OrgPart { history, entries: 0, bytes: 0 }
    };
    let text = || hostile.text.to_owned();
    let more = (0..hostile.more).map(|number| Fingerprint::from_bytes(numbered(number)));
    sealer.end(&Manifest {
        store: ring.store,
        at: u64::MAX,
        is_whole: true,
        orgs: (0..=hostile.orgs).map(part).collect(),
        left_out: vec![LeftOutOrg { name: text(), id, why: LeftOut::RefusedByPolicy }],
        unreadable: vec![UnreadableRecord { org: text(), name: text(), why: text() }],
        other_keys: hostile.claimed.iter().copied().chain(more).collect(),
        earlier: Vec::new(),
    })
}
