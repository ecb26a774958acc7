//! What a program for the model is made of. Prints as the code that it stands for, so that what
//! proptest shrinks to can be read, and pasted into a test. Shared with `fuzz/`.

use std::fmt;

#[cfg(fuzzing)]
use arbitrary::Arbitrary;
#[cfg(not(fuzzing))]
use serde::{Deserialize, Serialize};

pub(crate) const ORGS: usize = 3;
/// The org whose names are blinded.
pub(crate) const BLINDED: usize = 2;

pub(crate) fn name_of(org: usize) -> String {
    format!("{:?}", Who(u8::try_from(org).unwrap()))
}

/// One of the orgs.
#[derive(Clone, Copy)]
#[cfg_attr(fuzzing, derive(Arbitrary))]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) struct Who(pub(crate) u8);

impl Who {
    pub(crate) fn index(self) -> usize {
        usize::from(self.0) % ORGS
    }
}

/// A name or a value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

/// Few bytes of few kinds, so that they meet again, or very many.
#[cfg(fuzzing)]
impl Arbitrary<'_> for Bytes {
    fn arbitrary(bytes: &mut arbitrary::Unstructured<'_>) -> arbitrary::Result<Self> {
        const KINDS: &[u8] = b"ab/\0\xfe\xff";
        let byte = |bytes: &mut arbitrary::Unstructured<'_>| bytes.choose(KINDS).copied();
        match bytes.int_in_range(0..=32)? {
            len @ 0..=30 => (0..len / 6).map(|_| byte(bytes)).collect::<Result<_, _>>().map(Self),
            31 => Ok(Self(vec![byte(bytes)?; 4097])),
            _ => Ok(Self(vec![byte(bytes)?; 50_000])),
        }
    }
}

/// From the one that keeps a key shortest to the one that keeps it longest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[cfg_attr(fuzzing, derive(Arbitrary))]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) enum Retire {
    Immediate,
    AfterAnHour,
    Manual,
}

#[derive(Clone)]
#[cfg_attr(fuzzing, derive(Arbitrary))]
#[cfg_attr(not(fuzzing), derive(Serialize, Deserialize))]
pub(crate) enum Op {
    Put(Who, Bytes, Bytes),
    PutDurably(Who, Bytes, Bytes),
    Get(Who, Bytes),
    Delete(Who, Bytes),
    /// Expects what the model has.
    Swap(Who, Bytes, Option<Bytes>),
    /// Expects what was never written.
    SwapWrongly(Who, Bytes, Option<Bytes>),
    Batch(Who, Vec<(Bytes, Option<Bytes>)>),
    Scan(Who, Bytes),
    Range(Who, Bytes, Bytes),
    Watched(Who),
    Provision(Who),
    ProvisionUsed(Who, Who),
    RotatePlatformKey(Who),
    ReturnToPlatformKey(Who),
    ChangeSuite(Who),
    Suspend(Who),
    Resume(Who),
    ResumeWrongly(Who),
    Pause(Who),
    Unpause(Who),
    SetPolicy(Who, bool, Retire),
    Wait(Who),
    Retire(Who),
    EraseOrg(Who),
    EraseResidue,
    /// Whether as compromised.
    ChangeRootKey(bool),
    Sync,
    Reopen,
    Verify,
    ScanInParallel(Who, Bytes),
    /// And restored, to a store of its own.
    BackUp,
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.first() {
            Some(first) if self.0.len() > 40 && self.0.iter().all(|byte| byte == first) => {
                write!(f, "vec![{first}; {}]", self.0.len())
            }
            _ => write!(f, "b\"{}\"", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["acme", "umbra", "hooli"][self.index()])
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(org, name, value) => write!(f, "{org:?}.put({name:?}, {value:?});"),
            Self::PutDurably(org, name, value) => {
                write!(f, "{org:?}.durable().put({name:?}, {value:?});")
            }
            Self::Get(org, name) => write!(f, "{org:?}.get({name:?});"),
            Self::Delete(org, name) => write!(f, "{org:?}.delete({name:?});"),
            Self::Swap(org, name, new) => {
                write!(f, "{org:?}.compare_and_swap({name:?}, {org:?}.get({name:?}), {new:?});")
            }
            Self::SwapWrongly(org, name, new) => {
                write!(f, "{org:?}.compare_and_swap({name:?}, Some(b\"never\"), {new:?});")
            }
            Self::Batch(org, writes) => {
                write!(f, "{org:?}.batch()")?;
                for (name, value) in writes {
                    match value {
                        Some(value) => write!(f, ".put({name:?}, {value:?})")?,
                        None => write!(f, ".delete({name:?})")?,
                    }
                }
                f.write_str(".commit();")
            }
            Self::Scan(org, prefix) => write!(f, "{org:?}.scan({prefix:?});"),
            Self::Range(org, from, to) => write!(f, "{org:?}.range({from:?}..{to:?});"),
            Self::Watched(org) => write!(f, "{org:?}.watch(b\"\") /* what it told */;"),
            Self::Provision(org) => write!(f, "keys.provision({org:?}, KeyMaterial::generate());"),
            Self::ProvisionUsed(org, of) => {
                write!(f, "keys.provision({org:?}, /* the last key of */ {of:?});")
            }
            Self::RotatePlatformKey(org) => write!(f, "keys.rotate_platform_key({org:?});"),
            Self::ReturnToPlatformKey(org) => write!(f, "keys.return_to_platform_key({org:?});"),
            Self::ChangeSuite(org) => write!(f, "keys.change_suite({org:?}, /* the other */);"),
            Self::Suspend(org) => write!(f, "keys.suspend({org:?});"),
            Self::Resume(org) => write!(f, "keys.resume({org:?}, /* its suspended key */);"),
            Self::ResumeWrongly(org) => {
                write!(f, "keys.resume({org:?}, KeyMaterial::generate());")
            }
            Self::Pause(org) => write!(f, "keys.rotation({org:?}).pause();"),
            Self::Unpause(org) => write!(f, "keys.rotation({org:?}).resume();"),
            Self::SetPolicy(org, byok, retire) => write!(
                f,
                "keys.set_policy({org:?}, OrgPolicy::platform_only().with_byok({byok}).with_retire({retire:?}));"
            ),
            Self::Wait(org) => write!(f, "keys.rotation({org:?}).wait();"),
            Self::Retire(org) => write!(f, "keys.retire({org:?}).wait();"),
            Self::EraseOrg(org) => {
                write!(f, "keys.erase_org({org:?}).wait(); store.create_org({org:?});")
            }
            Self::EraseResidue => f.write_str("store.erase_residue();"),
            Self::ChangeRootKey(compromised) => {
                let which = if *compromised { "compromised_" } else { "" };
                let root = "RootKey::from_material(KeyMaterial::generate())";
                write!(f, "store.change_{which}root_key({root});")
            }
            Self::Sync => f.write_str("store.sync();"),
            Self::Reopen => f.write_str("store.close(); store = Store::open(data, root);"),
            Self::Verify => f.write_str("store.verify();"),
            Self::ScanInParallel(org, prefix) => {
                write!(f, "{org:?}.scan({prefix:?}).parallel(2);")
            }
            Self::BackUp => f.write_str(
                "store.backup(&key).write_to(file); other.restore(&key).read_from(file);",
            ),
        }
    }
}
