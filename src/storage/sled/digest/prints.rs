//! What stands for a value in the digest's sum, and what stands behind it.

use std::cell::Cell;
use std::hash::Hasher;

use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use siphasher::sip128::{Hasher128, SipHasher24};

use super::super::super::Space;
use crate::material::KeyMaterial;

/// Behind each value: epoch (8) ‖ print of what it replaced (8), encrypted.
pub(super) const TRAILER: usize = 16;

pub(in super::super) fn plain(stored: &[u8]) -> &[u8] {
    &stored[..stored.len().saturating_sub(TRAILER)]
}

/// Tells a stored value of this print, with its trailer, from any other that its key had: also from
/// the same value when it is written again.
pub(super) fn identity(print: u64, stored: &[u8]) -> u64 {
    let trailer = stored.last_chunk::<TRAILER>().and_then(|trailer| trailer.first_chunk());
    print ^ trailer.map_or(0, |first| u64::from_be_bytes(*first))
}

/// Gives each value its number, and its trailer.
pub(in super::super) struct Prints {
    masks: Aes256,
    trailers: Aes256,
    places: SipHasher24,
}

/// Stands for a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct Place(u128);

/// What belongs to one value under one key only, and is known to nobody without the key.
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
        let cipher = |name: &[u8]| Aes256::new(key.derive(&[label, name]).expose_bytes().into());
        let places = key.derive(&[label, b" places"]);
        Self {
            masks: cipher(b" prints"),
            trailers: cipher(b" trailers"),
            places: SipHasher24::new_with_key(
                places.expose_bytes().first_chunk().unwrap_or(&[0; 16]),
            ),
        }
    }

    /// Of a key as sled has it.
    pub(super) fn place(&self, space: Space, key: &[u8]) -> Place {
        let mut hasher = self.places;
        hasher.write(&[space as u8]);
        hasher.write(key);
        Place(hasher.finish128().as_u128())
    }

    /// All at once: a processor encrypts some blocks in the time of one.
    fn masks<const N: usize>(&self, place: Place, values: [&[u8]; N]) -> [Mask; N] {
        let mut blocks = values
            .map(|value| (u128::from_be_bytes(last_block(value)) ^ place.0).to_be_bytes().into());
        self.masks.encrypt_blocks(&mut blocks);
        blocks.map(|block| Mask(u128::from_be_bytes(block.into())))
    }

    /// A value's number.
    pub(super) fn of(&self, place: Place, value: &[u8]) -> u64 {
        let [mask] = self.masks(place, [value]);
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
    pub(super) fn dress(
        &self,
        place: Place,
        mut value: Vec<u8>,
        epoch: u64,
        replaced: u64,
    ) -> Vec<u8> {
        let [mask] = self.masks(place, [&value]);
        value.extend_from_slice(&self.seal(mask, epoch, replaced));
        value
    }

    /// A stored value's own number, what it counts for in the sum as it was at the end of `epoch`,
    /// and the epoch in which it was written.
    pub(super) fn read(&self, place: Place, epoch: u64, stored: &[u8]) -> (u64, u64, u64) {
        let [mask] = self.masks(place, [plain(stored)]);
        let (written, replaced) = self.open(mask, stored);
        let then = if written > epoch { replaced } else { mask.print() };
        (mask.print(), then, written)
    }

    /// What a stored value counts for in the sum as it was at the end of `epoch`.
    pub(super) fn as_of(&self, place: Place, epoch: u64, stored: &[u8]) -> u64 {
        self.read(place, epoch, stored).1
    }

    /// sled's merge operator: `new`, which has only its epoch where its trailer is to be, with
    /// that. So the place of a value is looked for once, not to read it and again to write it.
    pub(in super::super) fn merge(
        &self,
        (space, key): (Space, &[u8]),
        old: Option<&[u8]>,
        new: &[u8],
    ) -> Vec<u8> {
        let mut dressed = new.to_vec();
        let place = self.place(space, key);
        let [mask, old_mask] = self.masks(place, [plain(new), old.map_or(&[], plain)]);
        let print = old.map_or(0, |_| old_mask.print());
        MERGED.set(Some((print, mask.print())));
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
    /// The prints of what the last merge of this thread took away, and of what it put there.
    static MERGED: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Makes a write that merges, and gives the prints of what it replaced and of what is there now, if it
/// got that far.
pub(in super::super) fn merging<T>(merge: impl FnOnce() -> T) -> (T, Option<(u64, u64)>) {
    MERGED.set(None);
    let merged = merge();
    (merged, MERGED.take())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints() -> Prints {
        Prints::new(&KeyMaterial::take(&mut [1; 32]), b"test")
    }

    const KEY: (Space, &[u8]) = (Space::Records, b"key");

    fn place(prints: &Prints) -> Place {
        prints.place(KEY.0, KEY.1)
    }

    #[test]
    fn a_value_under_another_key_is_another() {
        let prints = prints();
        let at = |space, key: &[u8]| prints.of(prints.place(space, key), &[1; 40]);
        assert_eq!(at(KEY.0, KEY.1), at(KEY.0, KEY.1));
        assert_ne!(at(KEY.0, KEY.1), at(KEY.0, b"other"));
        assert_ne!(at(KEY.0, KEY.1), at(Space::System, KEY.1));
    }

    #[test]
    fn a_trailer_is_read_as_it_was_written_behind_its_value_only() {
        let prints = prints();
        let place = place(&prints);
        let one = prints.dress(place, vec![1; 40], 7, 99);
        assert_eq!(prints.read(place, 6, &one), (prints.of(place, &[1; 40]), 99, 7));
        assert_eq!(prints.as_of(place, 7, &one), prints.of(place, &[1; 40]));
        let trailer = &one[40..];
        let behind_another = [&[2; 40], trailer].concat();
        assert_ne!(prints.read(place, 6, &behind_another).2, 7);
        assert_ne!(prints.read(place, 0, &behind_another).1, 99);
        for bit in 0..128 {
            let mut altered = one.clone();
            altered[40 + bit / 8] ^= 1 << (bit % 8);
            let (print, then, written) = prints.read(place, 0, &altered);
            assert_eq!(print, prints.of(place, &[1; 40]));
            assert!(then != 99 && written != 7 && written.abs_diff(7) > 1 << 16, "bit {bit}");
        }
    }

    #[test]
    fn equal_trailers_do_not_look_equal() {
        let prints = prints();
        let place = place(&prints);
        let trailer = |value: u8| prints.dress(place, vec![value; 40], 7, 99)[40..].to_vec();
        assert_ne!(trailer(1), trailer(2));
    }

    #[test]
    fn a_merge_dresses_as_who_knows_what_is_replaced() {
        let prints = prints();
        let place = place(&prints);
        let (old, new) = (prints.dress(place, vec![1; 40], 7, 99), vec![2; 40]);
        let merged =
            |epoch, old| merging(|| prints.merge(KEY, old, &to_be_merged(new.clone(), epoch)));
        let print = prints.of(place, &[1; 40]);
        let new_print = prints.of(place, &new);
        assert_eq!(
            merged(8, Some(&*old)),
            (prints.dress(place, new.clone(), 8, print), Some((print, new_print)))
        );
        assert_eq!(
            merged(7, Some(&*old)),
            (prints.dress(place, new.clone(), 7, 99), Some((print, new_print)))
        );
        assert_eq!(merged(7, None), (prints.dress(place, new.clone(), 7, 0), Some((0, new_print))));
    }

    #[test]
    fn what_is_shorter_than_a_trailer_is_no_trouble() {
        let prints = prints();
        let place = place(&prints);
        for len in 0..40 {
            prints.read(place, 0, &vec![1; len]);
            prints.merge(KEY, Some(&vec![1; len]), &vec![2; len]);
        }
    }
}
