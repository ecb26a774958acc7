//! An opened value, wiped when dropped.

use std::fmt;
use std::ops::Deref;

use zeroize::{Zeroize, ZeroizeOnDrop, zeroize_bytes};

/// The opened value of a record. Reads as `&[u8]`, is wiped on drop, and `Debug`
/// prints only its length.
///
/// Copies that the caller makes of it are the caller's to wipe.
#[derive(Clone)]
pub struct Value(Vec<u8>);

impl Value {
    /// The value as text.
    ///
    /// # Errors
    /// The value is not UTF-8.
    pub fn as_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.0)
    }
}

impl Zeroize for Value {
    fn zeroize(&mut self) {
        // `Vec`'s own wipes byte by byte: 120 ns for 1 KiB instead of 10.
        zeroize_bytes(&mut self.0);
        self.0.clear();
        self.0.spare_capacity_mut().zeroize();
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        zeroize_bytes(&mut self.0);
        self.0.spare_capacity_mut().zeroize();
    }
}

impl ZeroizeOnDrop for Value {}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Value {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl PartialEq<[u8]> for Value {
    /// In constant time for values of one length.
    fn eq(&self, other: &[u8]) -> bool {
        subtle::ConstantTimeEq::ct_eq(&self.0[..], other).into()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte() {
        assert_eq!(format!("{:?}", Value::from(b"hunter2".to_vec())), "Value(7 bytes)");
    }

    #[test]
    fn reads_as_its_bytes_until_it_is_wiped() {
        let mut value = Value::from(b"hunter2".to_vec());
        assert_eq!(AsRef::<[u8]>::as_ref(&value), b"hunter2");
        value.zeroize();
        assert!(value.is_empty());
    }

    #[test]
    fn compares_with_bytes() {
        let value = Value::from(b"abc".to_vec());
        assert!(value == b"abc"[..]);
        assert!(value != b"abd"[..]);
        assert!(value != b"ab"[..]);
    }
}
