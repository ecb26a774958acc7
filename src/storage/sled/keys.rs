//! Keys as sled's reverse iterator can walk them.

use std::borrow::Cow;

/// Keys without the byte FF, in the same order: FE becomes FE 00, FF becomes FE 01.
///
/// sled 0.34.7's reverse iterator looks for the page before key `…x` at `…(x-1) FF FF FF FF`
/// and never finds it if keys with longer runs of FF lie between (`iter.rs`,
/// `possible_predecessor`): it panics after a million tries.
pub(super) fn escape(key: &[u8]) -> Cow<'_, [u8]> {
    // Without a way out in the middle, the compiler looks at many bytes at once.
    if !key.iter().fold(false, |found, &byte| found | (byte >= 0xfe)) {
        return Cow::Borrowed(key);
    }
    let mut escaped = Vec::with_capacity(key.len() + 8);
    for &byte in key {
        match byte {
            0xfe | 0xff => escaped.extend_from_slice(&[0xfe, byte - 0xfe]),
            _ => escaped.push(byte),
        }
    }
    Cow::Owned(escaped)
}

/// `None` for what [`escape`] never makes: it would be looked for under another key.
pub(super) fn unescape(key: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !key.contains(&0xfe) && !key.contains(&0xff) {
        return Some(Cow::Borrowed(key));
    }
    let mut plain = Vec::with_capacity(key.len());
    let mut bytes = key.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            0xfe => match bytes.next() {
                Some(&escaped @ (0 | 1)) => plain.push(0xfe + escaped),
                _ => return None,
            },
            0xff => return None,
            _ => plain.push(byte),
        }
    }
    Some(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escaping_keeps_order_and_prefixes(
            a in prop::collection::vec(prop::sample::select(vec![0u8, 0xfd, 0xfe, 0xff]), 0..8),
            b in prop::collection::vec(prop::sample::select(vec![0u8, 0xfd, 0xfe, 0xff]), 0..8),
        ) {
            let there = escape(&a);
            prop_assert_eq!(unescape(&there).unwrap(), &a[..]);
            prop_assert!(unescape(&a).is_none_or(|plain| escape(&plain) == a));
            prop_assert_eq!(escape(&a).cmp(&escape(&b)), a.cmp(&b));
            prop_assert_eq!(escape(&a).starts_with(&escape(&b)), a.starts_with(&b));
        }
    }
}
