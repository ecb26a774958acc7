//! Names of records: in the arguments, and records that have none.

use std::ffi::OsStr;

use byokv::{Error, text};
use clap::Args;

use super::failure::{Failure, Result};

/// How names and their beginnings are given.
#[derive(Args)]
pub(super) struct Form {
    /// The name, or how it starts, is given as `list` prints it: \\, \n, \xff and \u{202e} are escapes
    #[arg(long)]
    escaped: bool,
}

impl Form {
    /// Returns the bytes of a name as it was given.
    pub(super) fn read(&self, given: &OsStr) -> Result<Vec<u8>> {
        let bytes = given.as_encoded_bytes();
        if !self.escaped {
            return Ok(bytes.to_vec());
        }
        let text = str::from_utf8(bytes).map_err(|_| {
            Failure::Usage("a name that is given with --escaped is UTF-8".to_owned())
        })?;
        text::unescape(text).map_err(|error| Failure::Usage(format!("--escaped: {error}")))
    }
}

/// Records without a name that anybody could ask for: they are passed by, and then said.
#[derive(Default)]
pub(super) struct Nameless {
    count: u64,
    first: Option<Error>,
}

impl Nameless {
    /// Returns what was found; `None` for a record without a name.
    pub(super) fn pass<T>(&mut self, found: byokv::Result<T>) -> Result<Option<T>> {
        match found {
            Err(error @ Error::RecordNameless { .. }) => {
                self.count += 1;
                self.first.get_or_insert(error);
                Ok(None)
            }
            found => Ok(Some(found?)),
        }
    }

    /// Fails if there was any.
    pub(super) fn end(self) -> Result {
        let Some(first) = self.first else { return Ok(()) };
        let hint = Failure::Store(first.clone()).hint().unwrap_or_default();
        let advice = format!("left out, without a name: {}; `{hint}` deletes them", self.count);
        Err(Failure::Advised(first, advice))
    }
}
