//! What the digest sums and checks together.

use std::ops::Bound;

use super::{Range, Space, prefix_range};

/// Keys whose values are summed and checked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Group {
    /// All of [`Space::Records`] whose keys begin with these bytes. Zeros stand for what a shorter
    /// key lacks.
    Records([u8; Group::LEN]),
    /// All of [`Space::System`].
    System,
}

impl Group {
    pub(crate) const LEN: usize = 16;

    /// Where its keys lie.
    pub(crate) fn range(self) -> (Space, Range) {
        match self {
            Self::System => (Space::System, (Bound::Unbounded, Bound::Unbounded)),
            Self::Records(start) => {
                let shortest = start.iter().rposition(|&byte| byte > 0).map_or(0, |last| last + 1);
                let first = start[..shortest].to_vec();
                (Space::Records, (Bound::Included(first), prefix_range(&start).1))
            }
        }
    }
}

/// Proof that every value of a group was there, and none was older than it had been, when the group
/// was last counted. Only the storage makes it.
#[derive(Debug)]
pub(crate) struct Whole {
    group: Group,
}

impl Whole {
    /// For the storage alone.
    pub(super) fn counted(group: Group) -> Self {
        Self { group }
    }

    pub(crate) fn group(&self) -> Group {
        self.group
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use super::*;

    #[test]
    fn the_range_of_a_group_holds_its_keys_and_no_other() {
        let start = *b"sixteen bytes\0\0\0";
        let (space, range) = Group::Records(start).range();
        assert_eq!(space, Space::Records);
        for inside in
            [&b"sixteen bytes"[..], b"sixteen bytes\0", &start, &[&start[..], &[255]].concat()]
        {
            assert!(range.contains(&inside.to_vec()), "{inside:?}");
        }
        for outside in [&b"sixteen byte"[..], b"sixteen bytes\0\0\x01", b"sixteen bytes\x01"] {
            assert!(!range.contains(&outside.to_vec()), "{outside:?}");
        }
        assert_eq!(Group::Records([0; 16]).range().1.0, Bound::Included(Vec::new()));
    }
}
