//! A backup's inner layer: records as they were read, deletions, and at the end the contents.

use std::io::{Read, Write};

use zeroize::Zeroizing;

use super::manifest::Manifest;
use super::stream::{Opener, Sealer};
use crate::engine::{MAX_NAME_LEN, MAX_VALUE_LEN};
use crate::envelope::Value;
use crate::error::{BackupError, Result};
use crate::sealed;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const END: u8 = 3;

/// Of several entries of one record the last counts. Orgs go by their place in the manifest.
pub(crate) enum Entry {
    Put { org: usize, name: Vec<u8>, value: Value },
    Delete { org: usize, name: Vec<u8> },
    End(Box<Manifest>),
}

impl<W: Write> Sealer<W> {
    /// No value deletes.
    pub(crate) fn record(&mut self, org: usize, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        let kind = if value.is_some() { PUT } else { DELETE };
        self.write(&[kind])?;
        self.number(org)?;
        self.number(name.len())?;
        self.write(name)?;
        if let Some(value) = value {
            self.number(value.len())?;
            self.write(value)?;
        }
        Ok(())
    }

    /// Whatever the manifest says; the caller has checked its limits.
    pub(crate) fn end(mut self, manifest: &Manifest) -> Result<W> {
        let encoded = sealed::encode(manifest);
        self.write(&[END])?;
        self.number(encoded.len())?;
        self.write(&encoded)?;
        self.finish()
    }

    fn number(&mut self, number: usize) -> Result<()> {
        let number = u32::try_from(number).map_err(|_| BackupError::TooLarge)?;
        self.write(&number.to_be_bytes())
    }
}

impl<R: Read> Opener<R> {
    /// The next entry; none follows the manifest.
    pub(crate) fn entry(&mut self) -> Result<Entry> {
        /// More than its limits let it have.
        const MANIFEST_LIMIT: usize = 256 << 20;

        let mut kind = [0];
        if !self.read(&mut kind)? {
            return Err(malformed("it has no list of its contents"));
        }
        if kind[0] == END {
            let encoded = self.field(MANIFEST_LIMIT)?;
            let manifest = sealed::decode(&encoded);
            let manifest = manifest.ok_or(malformed("its list of contents cannot be read"))?;
            if self.read(&mut kind)? {
                return Err(malformed("it goes on behind its list of contents"));
            }
            return Ok(Entry::End(Box::new(manifest)));
        }
        let org = self.number()?;
        let name = self.field(MAX_NAME_LEN)?.to_vec();
        if name.is_empty() {
            return Err(malformed("a record has no name"));
        }
        match kind[0] {
            PUT => {
                let value = std::mem::take(&mut *self.field(MAX_VALUE_LEN)?);
                Ok(Entry::Put { org, name, value: Value::from(value) })
            }
            DELETE => Ok(Entry::Delete { org, name }),
            _ => Err(malformed("it has an entry of an unknown kind")),
        }
    }

    fn number(&mut self) -> Result<usize> {
        let mut number = [0; 4];
        match self.read(&mut number)? {
            true => Ok(u32::from_be_bytes(number) as usize),
            false => Err(malformed("an entry has no end")),
        }
    }

    /// Grows with what is really there, so that a length alone takes no memory.
    fn field(&mut self, limit: usize) -> Result<Zeroizing<Vec<u8>>> {
        const STEP: usize = 1 << 20;

        let len = self.number()?;
        if len > limit {
            return Err(malformed("a name, a value or the list of contents is too long"));
        }
        let mut field = Zeroizing::new(vec![0; len.min(STEP)]);
        let mut filled = 0;
        loop {
            if filled < field.len() && !self.read(&mut field[filled..])? {
                return Err(malformed("an entry has no end"));
            }
            filled = field.len();
            if filled == len {
                return Ok(field);
            }
            let mut larger = Zeroizing::new(vec![0; len.min(4 * filled)]);
            larger[..filled].copy_from_slice(&field);
            field = larger;
        }
    }
}

pub(crate) fn malformed(why: &'static str) -> crate::error::Error {
    BackupError::Malformed { why }.into()
}
