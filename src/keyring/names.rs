//! Which names orgs may have: text that people can tell apart, by the rules of Unicode TR39.

use std::collections::HashMap;

use unicode_normalization::is_nfc;
use unicode_security::{
    GeneralSecurityProfile, RestrictionLevel, RestrictionLevelDetection, skeleton,
};

use super::Keyring;
use crate::error::{Error, Result};
use crate::text::is_visible;

/// Longest name of an org, bytes.
const LIMIT: usize = 128;

/// Why `name` cannot be the name of an org.
pub(super) fn name_fault(name: &str) -> Option<&'static str> {
    let is_known = |c: char| c.is_ascii() || c.identifier_allowed();
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > LIMIT {
        Some("it is longer than 128 bytes")
    } else if !name.chars().all(is_visible) {
        Some("it has characters that are invisible, control a terminal or reorder text")
    } else if name.trim() != name || name.contains("  ") {
        Some("it starts or ends with white space, or has several spaces in a row")
    } else if !name.chars().all(is_known) {
        Some(
            "it has a character that Unicode does not recommend for names (TR39); letters, digits \
             and the punctuation of ASCII are allowed",
        )
    } else if !is_nfc(name) {
        Some("it is not in Unicode's normalization form C; give it with composed characters")
    } else if !words(name).all(is_of_one_script) {
        Some("a word in it mixes scripts, such as Latin and Cyrillic letters")
    } else {
        None
    }
}

/// What stands between two characters of ASCII that are neither letters nor digits.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric())
}

fn is_of_one_script(word: &str) -> bool {
    word.is_ascii() || word.check_restriction_level(RestrictionLevel::HighlyRestrictive)
}

/// What the names of orgs that are not erased look like, each with its name.
pub(crate) struct Looks(HashMap<String, String>);

/// A name that an org may take.
pub(super) struct FreeName {
    look: String,
    pub(super) name: String,
}

impl Keyring {
    /// Refuses a name that is none, is taken, also by an org that is not whole yet, or looks like
    /// one that is.
    ///
    /// What all names look like is found out once for everything that a change of the keyring
    /// adds.
    pub(super) fn free_name(&mut self, name: &str) -> Result<FreeName> {
        if let Some(why) = name_fault(name) {
            return Err(Error::InvalidOrgName { why });
        }
        let orgs = &self.orgs;
        let looks = self.looks.get_or_insert_with(|| {
            let named = orgs.iter().filter(|org| org.erasure.is_none());
            Looks(named.map(|org| (skeleton(&org.name).collect(), org.name.clone())).collect())
        });
        let (look, name) = (skeleton(name).collect(), name.to_owned());
        match looks.0.get(&look) {
            None => Ok(FreeName { look, name }),
            Some(taken) if *taken == name => Err(Error::OrgExists { org: name }),
            Some(taken) => Err(Error::OrgLooksAlike { org: name, other: taken.clone() }),
        }
    }

    /// Notes that an org has taken the name.
    pub(super) fn note_taken(&mut self, FreeName { look, name }: FreeName) {
        if let Some(Looks(looks)) = &mut self.looks {
            looks.insert(look, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn org_names_are_text_that_can_be_told_apart() {
        let longest = "x".repeat(128);
        for good in [
            "acme",
            "Acme Inc.",
            "ä/b",
            "O'Neill & Søn (München)",
            "Россия",
            "Acme Россия",
            "株式会社テスト",
            "삼성 Galaxy",
            "हिन्दी",
            "a\\b",
            &longest,
        ] {
            assert_eq!(name_fault(good), None, "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            (&"x".repeat(129), "longer"),
            (" a", "white space"),
            ("a ", "white space"),
            ("a  b", "several spaces"),
            ("a\nb", "invisible"),
            ("\u{7f}", "invisible"),
            ("a\u{9b}2J", "invisible"),
            ("acme\u{202e}emca", "invisible"),
            ("ac\u{200b}me", "invisible"),
            ("\u{feff}acme", "invisible"),
            ("ac\u{2060}me", "invisible"),
            ("ac\u{ad}me", "invisible"),
            ("acme\u{a0}inc", "invisible"),
            ("acme\u{3164}", "invisible"),
            ("acme\u{fe0f}", "invisible"),
            ("acme\u{e0061}", "invisible"),
            ("acme\u{2044}inc", "TR39"),
            ("acme\u{2800}", "invisible"),
            ("ａcme", "TR39"),
            ("𝐚cme", "TR39"),
            ("u\u{308}ber", "form C"),
            ("\u{430}cme", "mixes scripts"),
            ("x-\u{430}cme.com", "mixes scripts"),
            ("g\u{3bf}ogle", "mixes scripts"),
        ] {
            let said = name_fault(bad);
            assert!(said.is_some_and(|said| said.contains(why)), "{bad:?}: {said:?}");
        }
    }
}
