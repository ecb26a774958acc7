//! Records that nobody could ask for.

use super::KeyAdmin;
use crate::error::Result;

impl KeyAdmin {
    /// Deletes the records of an org that have no name which anybody could ask for: an empty one, one
    /// longer than names may be, a storage key that the store does not write, a blinded name that opens
    /// under no key of the org. They were damaged, or put there by somebody else; they can neither be
    /// read nor deleted by name, and block the org's rotations. Gives back how many; audited. Records
    /// under suspended keys stay, and so do those that have a name but a damaged value.
    ///
    /// If the org is not as the digest says just because of them ([`Store::verify_org`]), it is so
    /// afterwards.
    ///
    /// [`Store::verify_org`]: crate::Store::verify_org
    ///
    /// # Errors
    /// [`Error::OrgUnknown`](crate::Error::OrgUnknown); disk errors of the machine.
    pub fn remove_nameless(&self, org: &str) -> Result<u64> {
        self.engine.remove_nameless(&*self.engine.org(org)?)
    }

    /// Counts the records that belong to no org: put back after their org was erased, or put there
    /// by somebody else. Nobody can read them.
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn ownerless(&self) -> Result<u64> {
        self.engine.count_ownerless()
    }

    /// Deletes the records that belong to no org, as [`remove_nameless`](Self::remove_nameless) does
    /// with those of an org that have no name.
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn remove_ownerless(&self) -> Result<u64> {
        self.engine.remove_ownerless()
    }
}
