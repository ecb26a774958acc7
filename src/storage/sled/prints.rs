//! What stands for a value in the digest's sum, and what stands behind it.

use std::cell::Cell;

use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use crate::material::KeyMaterial;

/// Behind each value: epoch (8) ‖ print of what it replaced (8), encrypted.
pub(super) const TRAILER: usize = 16;

pub(super) fn plain(stored: &[u8]) -> &[u8] {
    &stored[..stored.len().saturating_sub(TRAILER)]
}

/// Gives each value its number, and its trailer.
pub(super) struct Prints {
    masks: Aes256,
    trailers: Aes256,
}

/// What belongs to one value only, and is known to nobody without the key.
#[derive(Clone, Copy)]
struct Mask(u128);

impl Mask {
    fn print(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

/// Of the last 16 bytes of a value, which for all that the store writes are the tag of an AEAD
/// over value, name and a random nonce.
fn last_block(value: &[u8]) -> [u8; 16] {
    value.last_chunk().copied().unwrap_or_else(|| {
        let mut block = [0; 16];
        block[..value.len()].copy_from_slice(value);
        block
    })
}

impl Prints {
    pub(super) fn new(key: &KeyMaterial, label: &[u8]) -> Self {
        let cipher = |name: &[u8]| Aes256::new(key.derive(&[label, name]).expose().into());
        Self { masks: cipher(b" prints"), trailers: cipher(b" trailers") }
    }

    /// All at once: a processor encrypts some blocks in the time of one.
    fn masks<const N: usize>(&self, values: [&[u8]; N]) -> [Mask; N] {
        let mut blocks = values.map(|value| last_block(value).into());
        self.masks.encrypt_blocks(&mut blocks);
        blocks.map(|block| Mask(u128::from_be_bytes(block.into())))
    }

    /// A value's number.
    pub(super) fn of(&self, value: &[u8]) -> u64 {
        let [mask] = self.masks([value]);
        mask.print()
    }

    /// XEX (Rogaway, 2004) with the value's mask: a block cipher of its own for each value, so that
    /// a trailer behind any other, or one that was made up, says something that nobody has chosen.
    fn seal(&self, mask: Mask, epoch: u64, replaced: u64) -> [u8; TRAILER] {
        let plain = u128::from(epoch) << 64 | u128::from(replaced);
        let mut block = (plain ^ mask.0).to_be_bytes().into();
        self.trailers.encrypt_block(&mut block);
        (u128::from_be_bytes(block.into()) ^ mask.0).to_be_bytes()
    }

    fn open(&self, mask: Mask, stored: &[u8]) -> (u64, u64) {
        let Some(trailer) = stored.last_chunk() else { return (0, 0) };
        let mut block = (u128::from_be_bytes(*trailer) ^ mask.0).to_be_bytes().into();
        self.trailers.decrypt_block(&mut block);
        let plain = u128::from_be_bytes(block.into()) ^ mask.0;
        ((plain >> 64) as u64, (plain << 64 >> 64) as u64)
    }

    /// The value with its trailer.
    pub(super) fn dress(&self, mut value: Vec<u8>, epoch: u64, replaced: u64) -> Vec<u8> {
        let [mask] = self.masks([&value]);
        value.extend_from_slice(&self.seal(mask, epoch, replaced));
        value
    }

    /// A stored value's own number, what it counts for in the sum as it was at the end of `epoch`,
    /// and the epoch in which it was written.
    pub(super) fn read(&self, epoch: u64, stored: &[u8]) -> (u64, u64, u64) {
        let [mask] = self.masks([plain(stored)]);
        let (written, replaced) = self.open(mask, stored);
        let then = if written > epoch { replaced } else { mask.print() };
        (mask.print(), then, written)
    }

    /// What a stored value counts for in the sum as it was at the end of `epoch`.
    pub(super) fn as_of(&self, epoch: u64, stored: &[u8]) -> u64 {
        self.read(epoch, stored).1
    }

    /// sled's merge operator: `new`, which has only its epoch where its trailer is to be, with
    /// that. So the place of a value is looked for once, not to read it and again to write it.
    pub(super) fn merge(&self, old: Option<&[u8]>, new: &[u8]) -> Vec<u8> {
        let mut dressed = new.to_vec();
        let [mask, old_mask] = self.masks([plain(new), old.map_or(&[], plain)]);
        let print = old.map_or(0, |_| old_mask.print());
        REPLACED.set(Some(print));
        if let Some(place) = dressed.last_chunk_mut() {
            let epoch = (u128::from_be_bytes(*place) >> 64) as u64;
            let replaced = match old.map(|old| self.open(old_mask, old)) {
                Some((written, replaced)) if written >= epoch => replaced,
                _ => print,
            };
            *place = self.seal(mask, epoch, replaced);
        }
        dressed
    }
}

/// `value` as [`Prints::merge`] takes it.
pub(super) fn to_be_merged(mut value: Vec<u8>, epoch: u64) -> Vec<u8> {
    value.extend_from_slice(&(u128::from(epoch) << 64).to_be_bytes());
    value
}

thread_local! {
    /// What the last merge of this thread took away.
    static REPLACED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes a write that merges, and gives the print of what it replaced, if it got that far.
pub(super) fn merging<T>(merge: impl FnOnce() -> T) -> (T, Option<u64>) {
    REPLACED.set(None);
    let merged = merge();
    (merged, REPLACED.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints() -> Prints {
        Prints::new(&KeyMaterial::take(&mut [1; 32]), b"test")
    }

    #[test]
    fn a_trailer_is_read_as_it_was_written_behind_its_value_only() {
        let prints = prints();
        let one = prints.dress(vec![1; 40], 7, 99);
        assert_eq!(prints.read(6, &one), (prints.of(&[1; 40]), 99, 7));
        assert_eq!(prints.as_of(7, &one), prints.of(&[1; 40]));
        let trailer = &one[40..];
        let behind_another = [&[2; 40], trailer].concat();
        assert_ne!(prints.read(6, &behind_another).2, 7);
        assert_ne!(prints.read(0, &behind_another).1, 99);
        for bit in 0..128 {
            let mut altered = one.clone();
            altered[40 + bit / 8] ^= 1 << (bit % 8);
            let (print, then, written) = prints.read(0, &altered);
            assert_eq!(print, prints.of(&[1; 40]));
            assert!(then != 99 && written != 7 && written.abs_diff(7) > 1 << 16, "bit {bit}");
        }
    }

    #[test]
    fn equal_trailers_do_not_look_equal() {
        let prints = prints();
        let trailer = |value: u8| prints.dress(vec![value; 40], 7, 99)[40..].to_vec();
        assert_ne!(trailer(1), trailer(2));
    }

    #[test]
    fn a_merge_dresses_as_who_knows_what_is_replaced() {
        let prints = prints();
        let (old, new) = (prints.dress(vec![1; 40], 7, 99), vec![2; 40]);
        let merged = |epoch, old| merging(|| prints.merge(old, &to_be_merged(new.clone(), epoch)));
        let print = prints.of(&[1; 40]);
        assert_eq!(merged(8, Some(&*old)), (prints.dress(new.clone(), 8, print), Some(print)));
        assert_eq!(merged(7, Some(&*old)), (prints.dress(new.clone(), 7, 99), Some(print)));
        assert_eq!(merged(7, None), (prints.dress(new.clone(), 7, 0), Some(0)));
    }

    #[test]
    fn what_is_shorter_than_a_trailer_is_no_trouble() {
        let prints = prints();
        for len in 0..40 {
            prints.read(0, &vec![1; len]);
            prints.merge(Some(&vec![1; len]), &vec![2; len]);
        }
    }
}
