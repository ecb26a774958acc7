//! Import tokens: one private half for each, until it is used or expires. What is kept
//! afterwards tells "used" from "unknown".
//!
//! Compiled without the feature `import` too: a keyring reads the same, and expires its tokens.

use serde::{Deserialize, Serialize};

use super::{Keyring, encoding};
use crate::id::{OrgId, TokenId};
use crate::material::KeyMaterial;
use crate::time::observed::{Confirmed, Seen};

/// Ended tokens that are remembered, the newest.
const REMEMBERED: usize = 1000;

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tokens {
    live: Vec<LiveToken>,
    /// In the order of their ends.
    ended: Vec<EndedToken>,
}

/// A token that may be used.
#[derive(Serialize, Deserialize)]
pub(crate) struct LiveToken {
    pub(crate) id: TokenId,
    pub(crate) org: OrgId,
    /// Milliseconds since 1970, as in the token.
    pub(crate) expires: u64,
    /// The store's observed clock when it was made, and for how long it was to last:
    /// milliseconds.
    pub(crate) made: u64,
    pub(crate) valid_for: u64,
    /// X25519 private key.
    #[serde(with = "encoding::material")]
    pub(crate) private: KeyMaterial,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct EndedToken {
    id: TokenId,
    end: End,
    /// Milliseconds since 1970: when it was used, or until when it could have been.
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Used,
    Expired,
    /// Because a copy of the store has its private half.
    Withdrawn,
}

impl LiveToken {
    /// Returns true if either clock says that its time is up: setting the wall clock back extends
    /// no token.
    #[cfg(feature = "import")]
    fn is_over(&self, now: &Seen) -> bool {
        now.wall >= self.expires || self.is_over_by_observed(now)
    }

    /// Returns true if its private half is to be destroyed. That cannot be taken back, so the wall
    /// clock is not believed alone while it is ahead of what was observed.
    fn is_to_end(&self, now: &Seen) -> bool {
        let believed = now.uncounted() == 0;
        self.is_over_by_observed(now) || (believed && now.wall >= self.expires)
    }

    fn is_over_by_observed(&self, now: &Seen) -> bool {
        now.observed.saturating_sub(self.made) >= self.valid_for
    }
}

impl Tokens {
    /// Moves to where they lie on the observed clock when each was made.
    pub(super) fn confirm(&mut self, confirmed: &Confirmed) {
        for token in &mut self.live {
            token.made = confirmed.moved(token.made);
        }
    }

    pub(super) fn duplicate(&self) -> Self {
        let copy = |t: &LiveToken| LiveToken { private: t.private.duplicate(), ..*t };
        Self { live: self.live.iter().map(copy).collect(), ended: self.ended.clone() }
    }

    fn end(&mut self, id: TokenId, end: End, at: u64) {
        self.live.retain(|token| token.id != id);
        self.ended.push(EndedToken { id, end, at });
        let forgotten = self.ended.len().saturating_sub(REMEMBERED);
        self.ended.drain(..forgotten);
    }
}

impl Keyring {
    pub(crate) fn has_expired_tokens(&self, now: &Seen) -> bool {
        self.tokens.live.iter().any(|token| token.is_to_end(now))
    }

    /// Destroys the private halves of an erased org's tokens.
    pub(super) fn end_tokens_of(&mut self, org: OrgId, now: u64) {
        let of_org = self.tokens.live.iter().filter(|token| token.org == org);
        for id in of_org.map(|token| token.id).collect::<Vec<_>>() {
            self.tokens.end(id, End::Expired, now);
        }
    }

    /// Destroys the private halves of all tokens that may still be used.
    pub(crate) fn withdraw_tokens(&mut self, now: u64) -> Vec<(TokenId, OrgId)> {
        let all: Vec<_> = self.tokens.live.iter().map(|token| (token.id, token.org)).collect();
        for &(id, _) in &all {
            self.tokens.end(id, End::Withdrawn, now);
        }
        all
    }

    /// Destroys the private halves of the tokens that have expired by now.
    pub(crate) fn expire_tokens(&mut self) -> Vec<(TokenId, OrgId)> {
        let due = |token: &&LiveToken| token.is_to_end(&self.time);
        let mut expired: Vec<_> =
            self.tokens.live.iter().filter(due).map(|t| (t.expires, t.id, t.org)).collect();
        expired.sort_unstable();
        for &(at, id, _) in &expired {
            self.tokens.end(id, End::Expired, at);
        }
        expired.into_iter().map(|(_, id, org)| (id, org)).collect()
    }
}

#[cfg(feature = "import")]
mod use_of_tokens {
    use super::{End, Keyring, LiveToken};
    use crate::error::{Error, ImportError, Result};
    use crate::id::{KeyState, TokenId};

    /// Tokens that one org may have at a time: each is copied and sealed with every change of
    /// the keyring.
    const LIVE_PER_ORG: usize = 100;

    impl Keyring {
        /// Adds a token of the org of this name.
        pub(crate) fn add_token(&mut self, name: &str, token: LiveToken) -> Result<()> {
            let of_org = self.tokens.live.iter().filter(|other| other.org == token.org).count();
            if of_org >= LIVE_PER_ORG {
                return Err(self.org(name)?.conflict(
                    "it has 100 import tokens that may still be used; use one of them, or wait \
                     until they expire",
                ));
            }
            self.tokens.live.push(token);
            Ok(())
        }

        pub(crate) fn token(&self, id: TokenId) -> Result<&LiveToken> {
            if let Some(live) = self.tokens.live.iter().find(|token| token.id == id) {
                if live.is_over(&self.time) {
                    let expired_unix_ms = live.expires;
                    return Err(ImportError::Expired { token: id, expired_unix_ms }.into());
                }
                return Ok(live);
            }
            let ended = self.tokens.ended.iter().rev().find(|token| token.id == id);
            Err(Error::Import(match ended.map(|token| (token.end, token.at)) {
                Some((End::Used, used_unix_ms)) => ImportError::Used { token: id, used_unix_ms },
                Some((End::Expired, expired_unix_ms)) => {
                    ImportError::Expired { token: id, expired_unix_ms }
                }
                Some((End::Withdrawn, withdrawn_unix_ms)) => {
                    ImportError::Withdrawn { token: id, withdrawn_unix_ms }
                }
                None => ImportError::Unknown { token: id },
            }))
        }

        /// Destroys the token's private half.
        pub(crate) fn use_token(&mut self, id: TokenId, now: u64) {
            self.tokens.end(id, End::Used, now);
        }

        /// Whether the org may get a key of its own now, whichever it is.
        pub(crate) fn check_may_bring_key(&self, name: &str) -> Result<()> {
            let org = self.org(name)?;
            if !org.policy.may_bring_key() {
                return Err(Error::NotEntitled { org: name.to_owned() });
            }
            if org.newest().state != KeyState::Active {
                return Err(org.conflict("its key is suspended; resume it first"));
            }
            Ok(())
        }
    }
}

#[cfg(all(test, feature = "import"))]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::error::{Error, ImportError};
    use crate::keyring::OrgPolicy;
    use crate::time::{Reading, Running};

    fn id(number: u32) -> TokenId {
        let mut bytes = [0; TokenId::LEN];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        TokenId::from_bytes(bytes)
    }

    const ACME: OrgId = OrgId::from_bytes([1; 16]);

    fn ring() -> Keyring {
        let material = |byte| KeyMaterial::take(&mut [byte; 32]);
        let mut ring = Keyring::new(material(0).fingerprint()).unwrap();
        ring.create_org(ACME, "acme", OrgPolicy::byok(), material(1), 5).unwrap();
        ring
    }

    /// Made when both clocks showed 0.
    fn token(number: u32, expires: u64) -> LiveToken {
        let private = KeyMaterial::take(&mut [9; 32]);
        LiveToken { id: id(number), org: ACME, expires, made: 0, valid_for: expires, private }
    }

    fn at(wall: u64, observed: u64) -> Seen {
        let mut seen = Seen::default();
        (seen.wall, seen.observed) = (wall, observed);
        seen
    }

    fn refusal(ring: &Keyring, number: u32) -> ImportError {
        match ring.token(id(number)) {
            Err(Error::Import(why)) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{number} is live"),
        }
    }

    #[test]
    fn a_token_is_live_until_it_is_used_or_its_time_is_up() {
        let mut ring = ring();
        for (number, expires) in [(1, 100), (2, 100), (3, 99), (4, 101)] {
            ring.add_token("acme", token(number, expires)).unwrap();
        }
        ring.time = at(98, 98);
        assert!(!ring.has_expired_tokens(&ring.time));
        assert!(ring.expire_tokens().is_empty());
        ring.use_token(id(1), 98);
        ring.time = at(100, 100);
        assert!(ring.has_expired_tokens(&ring.time));
        assert_eq!(ring.expire_tokens(), [(id(3), ACME), (id(2), ACME)]);
        assert_eq!(refusal(&ring, 1), ImportError::Used { token: id(1), used_unix_ms: 98 });
        assert_eq!(refusal(&ring, 2), ImportError::Expired { token: id(2), expired_unix_ms: 100 });
        assert_eq!(refusal(&ring, 5), ImportError::Unknown { token: id(5) });
        assert_eq!(ring.token(id(4)).unwrap().expires, 101);
        assert_eq!(ring.tokens.live.len(), 1, "the private halves are gone");
    }

    /// Either clock ends its use; setting the wall clock ahead does not destroy it.
    #[test]
    fn a_token_ends_by_whichever_clock_is_further() {
        let mut ring = ring();
        for number in 1..=2 {
            ring.add_token("acme", token(number, 100)).unwrap();
        }
        // The wall clock was set back: what was observed counts.
        ring.time = at(3, 99);
        assert!(ring.token(id(1)).is_ok());
        ring.time = at(3, 100);
        assert_eq!(refusal(&ring, 1), ImportError::Expired { token: id(1), expired_unix_ms: 100 });
        assert!(ring.has_expired_tokens(&ring.time));
        // It was set ahead: refused, and good again once it is set back.
        let now = |wall, ms| Reading { wall, running: Running { ms, boot: None } };
        let seen = Seen::first(now(0, 0));
        ring.time = seen.clone().watched(now(1 << 40, 1)).0;
        assert!(ring.time.uncounted() > 0);
        assert_eq!(refusal(&ring, 1), ImportError::Expired { token: id(1), expired_unix_ms: 100 });
        assert!(ring.expire_tokens().is_empty());
        ring.time = ring.time.clone().watched(now(2, 2)).0;
        assert!(ring.token(id(1)).is_ok());
        ring.time = ring.time.clone().watched(now(100, 100)).0;
        assert_eq!(ring.expire_tokens().len(), 2);
    }

    #[test]
    fn erasing_an_org_ends_its_tokens_and_no_others() {
        let mut ring = ring();
        let other = OrgId::from_bytes([2; 16]);
        let material = KeyMaterial::take(&mut [2; 32]);
        ring.create_org(other, "globex", OrgPolicy::byok(), material, 5).unwrap();
        ring.add_token("acme", token(1, 100)).unwrap();
        ring.add_token("globex", LiveToken { org: other, ..token(2, 100) }).unwrap();
        ring.erase(ACME, "acme", 7).unwrap();
        assert_eq!(refusal(&ring, 1), ImportError::Expired { token: id(1), expired_unix_ms: 7 });
        assert_eq!(ring.token(id(2)).unwrap().org, other);
        assert_eq!(ring.tokens.live.len(), 1, "the private half is gone");
    }

    #[test]
    fn withdrawing_ends_every_token_that_may_still_be_used() {
        let mut ring = ring();
        (1..=3).for_each(|number| ring.add_token("acme", token(number, 100)).unwrap());
        ring.use_token(id(2), 6);
        assert_eq!(ring.withdraw_tokens(7), [(id(1), ACME), (id(3), ACME)]);
        let withdrawn = ImportError::Withdrawn { token: id(3), withdrawn_unix_ms: 7 };
        assert_eq!(refusal(&ring, 3), withdrawn);
        assert_eq!(refusal(&ring, 2), ImportError::Used { token: id(2), used_unix_ms: 6 });
        assert!(ring.tokens.live.is_empty(), "the private halves are gone");
        assert!(ring.withdraw_tokens(8).is_empty());
    }

    #[test]
    fn the_newest_thousand_ended_tokens_are_remembered() {
        let mut ring = ring();
        for number in 0..1001 {
            ring.add_token("acme", token(number, 100)).unwrap();
            ring.use_token(id(number), 7);
        }
        assert_eq!(refusal(&ring, 0), ImportError::Unknown { token: id(0) });
        assert_eq!(refusal(&ring, 1), ImportError::Used { token: id(1), used_unix_ms: 7 });
        assert_eq!(ring.tokens.ended.len(), 1000);
    }

    #[test]
    fn an_org_has_a_hundred_live_tokens_at_most() {
        let mut ring = ring();
        (0..100).for_each(|number| ring.add_token("acme", token(number, 100)).unwrap());
        let refused = ring.add_token("acme", token(100, 100));
        assert!(matches!(refused, Err(Error::KeyConflict { org, .. }) if org == "acme"));
        ring.use_token(id(7), 5);
        ring.add_token("acme", token(100, 100)).unwrap();
    }

    #[test]
    fn tokens_come_back_with_an_encoded_keyring() {
        let mut ring = ring();
        ring.add_token("acme", token(1, 100)).unwrap();
        ring.add_token("acme", token(2, 100)).unwrap();
        ring.use_token(id(2), 50);
        let bytes = crate::sealed::encode(&ring.duplicate());
        let back: Keyring = crate::sealed::decode(&bytes).unwrap();
        assert_eq!(back.token(id(1)).unwrap().private.expose_bytes(), &[9; 32]);
        assert_eq!(refusal(&back, 2), ImportError::Used { token: id(2), used_unix_ms: 50 });
    }
}
