//! A backup's outer layer: STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: *Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance*, CRYPTO 2015) over AES-256-GCM,
//! under a key of its own for each backup. Layout: `docs/design.md`.

use std::io::{ErrorKind, Read, Write};

use aead_stream::aead::KeyInit;
use aead_stream::{DecryptorBE32, EncryptorBE32, Nonce, StreamBE32};
use aes_gcm::Aes256Gcm;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{BackupError, Error, Result};
use crate::id::{BackupId, Fingerprint};
use crate::material::{self, KeyMaterial};

const MAGIC: &[u8; 8] = b"byokvBK1";
const KEY_LABEL: &[u8] = b"byokv backup v1";
pub(super) const HEAD_LEN: usize = 8 + Fingerprint::LEN + BackupId::LEN;
/// Plaintext of every chunk but the last, bytes.
pub(super) const CHUNK: usize = 64 << 10;
/// Id, number, whether it is the last, length.
pub(super) const CHUNK_HEAD_LEN: usize = BackupId::LEN + 4 + 1 + 4;
const TAG_LEN: usize = 16;

/// What stands before the chunks. The key that seals them is derived from all of it, so that
/// nothing in it can be changed, and the random id is the salt that makes that key single-use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) key: Fingerprint,
    pub(crate) id: BackupId,
}

impl Head {
    pub(crate) fn new(key: &KeyMaterial) -> Result<Self> {
        let mut id = [0; BackupId::LEN];
        material::random(&mut id)?;
        Ok(Self { key: key.fingerprint(), id: BackupId::from_bytes(id) })
    }

    fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(self.key.as_bytes());
        bytes[24..].copy_from_slice(self.id.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEAD_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (key, id) = rest.split_first_chunk()?;
        (magic == MAGIC).then_some(Self {
            key: Fingerprint::from_bytes(*key),
            id: BackupId::from_bytes(*id.first_chunk()?),
        })
    }

    fn cipher(&self, key: &KeyMaterial) -> Aes256Gcm {
        Aes256Gcm::new(key.derive(&[KEY_LABEL, &self.encode()]).expose_bytes().into())
    }

    /// In clear before each chunk, and its associated data. What it says serves to tell faults
    /// apart; the nonce holds number and end too.
    fn chunk(&self, number: u32, is_last: bool, len: usize) -> [u8; CHUNK_HEAD_LEN] {
        let mut bytes = [0; CHUNK_HEAD_LEN];
        bytes[..16].copy_from_slice(self.id.as_bytes());
        bytes[16..20].copy_from_slice(&number.to_be_bytes());
        bytes[20] = u8::from(is_last);
        bytes[21..].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        bytes
    }
}

/// The rest of the nonce is the chunk's number and whether it is the last. Zeros, because the
/// key never seals anything else.
fn prefix() -> Nonce<Aes256Gcm, StreamBE32<Aes256Gcm>> {
    Nonce::<Aes256Gcm, StreamBE32<Aes256Gcm>>::default()
}

/// Seals what is written to it. Without [`finish`](Self::finish) there is no last chunk, and
/// nothing that can be opened to its end.
pub(crate) struct Sealer<W> {
    to: W,
    head: Head,
    encryptor: EncryptorBE32<Aes256Gcm>,
    number: u32,
    buffer: Zeroizing<Vec<u8>>,
}

impl<W: Write> Sealer<W> {
    pub(crate) fn new(mut to: W, key: &KeyMaterial, head: Head) -> Result<Self> {
        to.write_all(&head.encode()).map_err(writing)?;
        let encryptor = EncryptorBE32::from_aead(head.cipher(key), &prefix());
        let buffer = Zeroizing::new(Vec::with_capacity(CHUNK + TAG_LEN));
        Ok(Self { to, head, encryptor, number: 0, buffer })
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // Only when more comes: the last chunk is never empty but in an empty stream.
            if self.buffer.len() == CHUNK {
                let head = self.head.chunk(self.number, false, CHUNK);
                let sealed = self.encryptor.encrypt_next_in_place(&head, &mut *self.buffer);
                sealed.map_err(|_| BackupError::TooLarge)?;
                self.put(&head)?;
                self.number += 1;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Seals the last chunk and gives back where it was written.
    pub(crate) fn finish(mut self) -> Result<W> {
        let head = self.head.chunk(self.number, true, self.buffer.len());
        let sealed = self.encryptor.encrypt_last_in_place(&head, &mut *self.buffer);
        sealed.map_err(|_| BackupError::TooLarge)?;
        self.to.write_all(&head).map_err(writing)?;
        self.to.write_all(&self.buffer).map_err(writing)?;
        self.to.flush().map_err(writing)?;
        Ok(self.to)
    }

    fn put(&mut self, head: &[u8]) -> Result<()> {
        self.to.write_all(head).map_err(writing)?;
        self.to.write_all(&self.buffer).map_err(writing)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Opens what a [`Sealer`] wrote, chunk by chunk: nothing is given out before its tag fits.
pub(crate) struct Opener<R> {
    from: R,
    head: Head,
    /// Taken for the last chunk.
    decryptor: Option<DecryptorBE32<Aes256Gcm>>,
    number: u32,
    buffer: Zeroizing<Vec<u8>>,
    /// What of the buffer was given out.
    at: usize,
}

impl<R: Read> Opener<R> {
    pub(crate) fn new(mut from: R, key: &KeyMaterial) -> Result<Self> {
        let mut bytes = [0; HEAD_LEN];
        let read = fill(&mut from, &mut bytes)?;
        let is_start = bytes[..read.min(8)] == MAGIC[..read.min(8)] && read > 0;
        let head = match Head::decode(&bytes) {
            Some(head) if read == HEAD_LEN => head,
            _ if is_start && read < HEAD_LEN => {
                return Err(BackupError::CutShort { chunks: 0 }.into());
            }
            _ => return Err(BackupError::NoBackup.into()),
        };
        let given = key.fingerprint();
        if head.key != given {
            return Err(BackupError::OtherKey { expected: head.key, given }.into());
        }
        let decryptor = Some(DecryptorBE32::from_aead(head.cipher(key), &prefix()));
        let buffer = Zeroizing::new(Vec::with_capacity(CHUNK + TAG_LEN));
        Ok(Self { from, head, decryptor, number: 0, buffer, at: 0 })
    }

    pub(crate) fn head(&self) -> Head {
        self.head
    }

    /// Fills `bytes`; `false` if the stream ended before the first of them.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < bytes.len() {
            if self.at == self.buffer.len() && !self.next_chunk()? {
                return match filled {
                    0 => Ok(false),
                    _ => Err(BackupError::Malformed { why: "an entry has no end" }.into()),
                };
            }
            let now = (bytes.len() - filled).min(self.buffer.len() - self.at);
            bytes[filled..filled + now].copy_from_slice(&self.buffer[self.at..self.at + now]);
            (filled, self.at) = (filled + now, self.at + now);
        }
        Ok(true)
    }

    /// `false` once the last chunk was opened.
    fn next_chunk(&mut self) -> Result<bool> {
        let Some(decryptor) = &mut self.decryptor else { return Ok(false) };
        let number = self.number;
        let cut = BackupError::CutShort { chunks: number };
        let altered = BackupError::Altered { chunk: number };
        let mut head = [0; CHUNK_HEAD_LEN];
        if fill(&mut self.from, &mut head)? < CHUNK_HEAD_LEN {
            return Err(cut.into());
        }
        let is_last = head[20] == 1;
        let len = head[21..].first_chunk().map_or(0, |len| u32::from_be_bytes(*len)) as usize;
        if head[..16] != self.head.id.as_bytes()[..] {
            return Err(BackupError::OtherBackup { chunk: number }.into());
        }
        if head[16..20] != number.to_be_bytes() {
            let found = head[16..].first_chunk().map_or(0, |n| u32::from_be_bytes(*n));
            return Err(BackupError::OutOfPlace { chunk: number, found }.into());
        }
        if len > CHUNK || !(is_last || len == CHUNK) || head[20] > 1 {
            return Err(altered.into());
        }
        self.buffer.zeroize();
        self.buffer.resize(len + TAG_LEN, 0);
        self.at = 0;
        if fill(&mut self.from, &mut self.buffer)? < len + TAG_LEN {
            self.buffer.clear();
            return Err(cut.into());
        }
        let opened = if is_last {
            let last =
                self.decryptor.take().map(|d| d.decrypt_last_in_place(&head, &mut *self.buffer));
            last.unwrap_or(Ok(()))
        } else {
            decryptor.decrypt_next_in_place(&head, &mut *self.buffer)
        };
        if opened.is_err() {
            self.buffer.clear();
            return Err(altered.into());
        }
        self.number += 1;
        if is_last && fill(&mut self.from, &mut [0])? > 0 {
            return Err(BackupError::GoesOn.into());
        }
        Ok(true)
    }
}

fn writing(error: std::io::Error) -> Error {
    Error::io("writing the backup", error)
}

/// How much there was to read.
fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("reading the backup", e)),
        }
    }
    Ok(filled)
}
