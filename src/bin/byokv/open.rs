//! Opening the store that a command works with.

use std::io;

use byokv::{Options, Store};

use super::Context;
use super::failure::{Failure, Result};

impl Context {
    /// Opens the store, never makes one.
    pub(super) fn open(&self) -> Result<Store> {
        let data = self.data()?;
        let there = |part: &str| match data.join(part).try_exists() {
            Ok(there) => Ok(there),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(false),
            Err(e) => Err(Failure::Failed(format!(
                "{}: {e}; run `byokv` as the user whose store it is",
                data.join(part).display()
            ))),
        };
        let is_database = there("db")? && data.join("db").is_dir();
        if !(there("keyring")? || there("mark")? || is_database) {
            return Err(Failure::NotFound(format!(
                "there is no store in {}; make one with `byokv init`, or check the path",
                data.display()
            )));
        }
        if !there("keyring")? {
            return Err(Failure::Damaged(format!(
                "{} is missing, but there is data that needs it; nothing was changed; put back \
                 a copy of the whole directory, or restore a backup into a new store",
                data.join("keyring").display()
            )));
        }
        // A rotation is what the tool is run for, and nobody else uses its store.
        let options = Options::new().create(false).rotation_niceness(0).fips_mode(self.global.fips);
        let options = match self.global.expect_store {
            Some(store) => options.expect_store(store),
            None => options,
        };
        let options = match self.global.minimum_position {
            Some(position) => options.minimum_position(position),
            None => options,
        };
        Ok(options.open(data, self.root_key()?)?)
    }

    /// Opens the store, and closes it after `work`, durably.
    pub(super) fn with_store<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        let store = self.open()?;
        let done = work(&store)?;
        store.close()?;
        Ok(done)
    }
}
