//! Import tokens: made, used, and gone when their time is up.

use std::sync::TryLockError;

use super::Engine;
use super::change::Drafts;
use crate::audit::{AuditEvent, Draft};
use crate::error::Result;
use crate::keyring::Keyring;

impl Engine {
    /// Destroys what has expired, if anything has. Does not wait for a change of the keyring
    /// that is under way: that one does the same.
    pub(crate) fn expire_tokens(&self) -> Result<()> {
        let now = self.clock.look()?.seen;
        match self.ring.try_lock() {
            Ok(ring) if !ring.keyring.has_expired_tokens(&now) => return Ok(()),
            Ok(_) | Err(TryLockError::Poisoned(_)) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
        }
        self.change(None, |_, _| Ok(()))
    }
}

pub(super) fn expire(keyring: &mut Keyring, drafts: &mut Drafts) {
    for (token, id) in keyring.expire_tokens() {
        let draft = Draft::new(AuditEvent::ImportTokenExpired { token });
        let org = keyring.orgs.iter().find(|org| org.id == id);
        drafts.push(match org {
            Some(org) => draft.org(&org.name, id),
            None => draft,
        });
    }
}

#[cfg(feature = "import")]
mod tokens {
    use std::time::Duration;

    use super::{AuditEvent, Draft, Engine, Result};
    use crate::audit::KeyRefusal;
    use crate::engine::OrgState;
    use crate::error::{Error, ImportError, KeyMaterialError};
    use crate::id::{Fingerprint, Origin};
    use crate::import::{ImportToken, SealedKey};
    use crate::keyring::{Installed, Keyring, LiveToken};
    use crate::material::KeyMaterial;
    use crate::time::millis;

    const MINUTE: Duration = Duration::from_secs(60);
    const THIRTY_DAYS: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    impl Engine {
        pub(crate) fn import_token(
            &self,
            org: &OrgState,
            valid_for: Duration,
        ) -> Result<ImportToken> {
            self.check_open()?;
            if !(MINUTE..=THIRTY_DAYS).contains(&valid_for) {
                let why = "1 minute to 30 days";
                return Err(Error::InvalidOption { option: "valid_for", why });
            }
            let valid_for = millis(valid_for);
            let private = KeyMaterial::generate()?;
            let token = self.change(None, |keyring, drafts| {
                if !keyring.org(&org.name)?.policy.may_bring_key() {
                    return Err(Error::NotEntitled { org: org.name.to_string() });
                }
                let (made, expires) =
                    (keyring.time.observed, keyring.time.wall.saturating_add(valid_for));
                let token =
                    ImportToken::new(keyring.store, (&org.name, org.id), expires, &private)?;
                let id = token.id();
                let org_id = org.id;
                let live = LiveToken { id, org: org_id, expires, made, valid_for, private };
                keyring.add_token(&org.name, live)?;
                let event = AuditEvent::ImportTokenMade { token: id, expires_unix_ms: expires };
                drafts.push(Draft::new(event).org(&org.name, org.id));
                Ok(token)
            })?;
            tracing::info!(org = %org.name, token = %token.id(), "import token made");
            Ok(token)
        }

        /// Opens a sealed key and installs it: the token's end and the key's beginning are one
        /// change of the keyring. What can be refused without opening the key is refused
        /// before, and leaves the token as it was; so does a key that nobody expects, for
        /// everybody who sees a token can seal a key under it. A key that opens and could
        /// never be taken uses the token up: a token tells once what the store knows of a key.
        pub(crate) fn provision_sealed(
            &self,
            org: &OrgState,
            sealed: &SealedKey,
            expected: Option<Fingerprint>,
        ) -> Result<Installed> {
            self.check_open()?;
            let id = sealed.token_id();
            // Not the token: it may be one of another org.
            let _span = tracing::info_span!("provision_sealed", org = %org.name).entered();
            let outcome = self.change(None, |keyring, drafts| {
                let material = match (open(keyring, org, sealed)?, expected) {
                    // Nobody expects such a key: whoever sealed it, it was not the org.
                    (Err(why), Some(_)) => return Err(why.into()),
                    (material, _) => material.map_err(ImportError::NotRandom),
                };
                let fingerprint = material.as_ref().ok().map(KeyMaterial::fingerprint);
                if let (Some(given), Some(expected)) = (fingerprint, expected)
                    && given != expected
                {
                    return Err(Error::UnexpectedKey { expected, given });
                }
                let now = keyring.time.wall;
                let origin = Origin::Customer;
                let installed = match material {
                    Ok(material) => {
                        match keyring.install((org.id, &org.name), material, origin, now) {
                            Err(Error::KeyReused { fingerprint }) => {
                                Err(ImportError::Reused { fingerprint })
                            }
                            installed => Ok(installed?),
                        }
                    }
                    Err(why) => Err(why),
                };
                keyring.use_token(id, now);
                let draft = |event| Draft::new(event).org(&org.name, org.id);
                drafts.push(draft(AuditEvent::ImportTokenUsed { token: id }));
                drafts.push(match &installed {
                    Ok(Installed { to, fingerprint, .. }) => {
                        draft(AuditEvent::KeyProvisioned).key(*to, *fingerprint)
                    }
                    Err(why) => {
                        let why = KeyRefusal::of_import(why);
                        let event = AuditEvent::SealedKeyRefused { token: id, why };
                        Draft { fingerprint, ..draft(event) }
                    }
                });
                Ok(installed)
            });
            match outcome {
                Ok(Ok(installed)) => {
                    self.publish(org);
                    let Installed { from, to, fingerprint } = installed;
                    tracing::info!(org = %org.name, %from, %to, token = %id, %fingerprint, "sealed key activated");
                    Ok(installed)
                }
                Ok(Err(refused)) => {
                    tracing::warn!(org = %org.name, token = %id, error = %refused, "sealed key refused");
                    Err(refused.into())
                }
                Err(refused) => Err(self.audit_sealed_refusal(org, sealed, refused)),
            }
        }

        /// Notes a refusal that changed nothing else, and gives it back.
        fn audit_sealed_refusal(
            &self,
            org: &OrgState,
            sealed: &SealedKey,
            refused: Error,
        ) -> Error {
            let Some(why) = KeyRefusal::of(&refused) else { return refused };
            let token = sealed.token_id();
            // The token of another org is nothing that is told of this one.
            let own = (why != KeyRefusal::OtherOrg).then_some(token).map(tracing::field::display);
            tracing::warn!(org = %org.name, token = own, error = %refused, "sealed key refused");
            let noted = self.change(None, |_, drafts| {
                let event = AuditEvent::SealedKeyRefused { token, why };
                let mut draft = Draft::new(event).org(&org.name, org.id);
                if let Error::UnexpectedKey { given, .. } = &refused {
                    draft.fingerprint = Some(*given);
                }
                drafts.push(draft);
                Ok(())
            });
            if let Err(error) = noted {
                tracing::warn!(%error, "a refusal could not be audited");
            }
            refused
        }
    }

    /// The outer error leaves the token as it is; what is plainly not random opens all the same.
    fn open(
        keyring: &Keyring,
        org: &OrgState,
        sealed: &SealedKey,
    ) -> Result<Result<KeyMaterial, KeyMaterialError>> {
        let store = keyring.store;
        if sealed.store_id() != store {
            return Err(ImportError::OtherStore { made_by: sealed.store_id(), store }.into());
        }
        let live = keyring.token(sealed.token_id())?;
        if live.org != org.id {
            // Not which: this org's operator and log are told nothing of another one's.
            return Err(ImportError::OtherOrg { given: org.name.to_string() }.into());
        }
        keyring.check_may_bring_key(&org.name)?;
        let name = (&*org.name, org.id);
        let token = ImportToken::new(store, name, live.expires, &live.private)?;
        match sealed.open(&token, &live.private) {
            Err(Error::KeyMaterial(why)) => Ok(Err(why)),
            opened => Ok(Ok(opened?)),
        }
    }
}

#[cfg(all(test, feature = "import"))]
mod tests;
