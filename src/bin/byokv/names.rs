//! Names of records in the arguments.

use std::ffi::OsStr;

use byokv::text;
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
