//! `byokv root-key`: another root key, and what is done when one has leaked.

use std::path::PathBuf;

use byokv::{CompromisedKey, Fingerprint, Origin, RootKey, SecretReplaced, Store};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Context;
use super::failure::{Result, quoted};
use super::secret;
use super::ui::Ui;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Wrap the keyring under another root key, in one atomic step. Whoever has the old root key and
    /// a copy of the keyring still has everything in that copy, and can forge what this store takes
    /// for its own: where a root key may have leaked, give --compromised
    Change(Change),
}

#[derive(Args)]
pub(super) struct Change {
    /// File of the new root key, or a pipe
    #[arg(long, value_name = "FILE")]
    new_root_key_file: PathBuf,
    /// Make the new key in that file, which must not exist
    #[arg(long)]
    generate: bool,
    /// The root key of before may have leaked. The store gets a new secret too: certificates, audit
    /// entries, marks and digests that somebody makes with a copy of the store are refused from then
    /// on, and import tokens are withdrawn. Copies the database; writes go on meanwhile
    #[arg(long)]
    compromised: bool,
    /// Give each org whose platform key is in such a copy a new one. Records are re-encrypted
    /// whenever the store is open, or by `byokv rotation wait`
    #[arg(long, requires = "compromised")]
    rotate_keys: bool,
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let Self::Change(change) = self;
        change.run(context)
    }
}

impl Change {
    fn run(self, context: &Context) -> Result {
        let before = context.root_fingerprint()?;
        context.with_store(|store| {
            let file = &self.new_root_key_file;
            let root = if self.generate {
                RootKey::from_material(secret::generate_file(file)?)
            } else {
                context.root_key_in(file)?
            };
            let after = root.fingerprint();
            let changed = match self.compromised {
                true => store.change_compromised_root_key(root).map(Some),
                false => store.change_root_key(root).map(|()| None),
            };
            let replaced = changed.inspect_err(|_| {
                if self.generate {
                    // The change may have happened although its end failed.
                    let file = file.display();
                    context.ui.warn(format_args!("the new root key stays in {file}"));
                }
            })?;
            match replaced {
                Some(replaced) => self.contained(context.ui, store, (before, after), &replaced),
                None => self.changed(context.ui, (before, after)),
            }
        })
    }

    fn changed(&self, ui: Ui, (before, after): (Fingerprint, Fingerprint)) -> Result {
        let file = self.new_root_key_file.display();
        let json = json!({
            "before": before,
            "root_key_fingerprint": after,
            "root_key_file": file.to_string(),
            "compromised": false,
        });
        ui.done(
            &json,
            format_args!(
                "root key changed from {before} to {after}\nfrom now on the store opens with {file}; \
                 older copies of the keyring still open with the key before\nif that key may have \
                 leaked, change it once more with --compromised: such a copy still has what proofs of \
                 this store are made with"
            ),
        )
    }

    /// Says what was done, and what is left to do.
    fn contained(
        &self,
        ui: Ui,
        store: &Store,
        (before, after): (Fingerprint, Fingerprint),
        replaced: &SecretReplaced,
    ) -> Result {
        let rotations = match self.rotate_keys {
            true => store.keys().rotate_compromised_keys()?,
            false => Vec::new(),
        };
        let rotating: Vec<_> = rotations.iter().map(byokv::Rotation::org).collect();
        let mut left = replaced.compromised.clone();
        for key in &mut left {
            // A customer's key is not replaced.
            key.seals &= key.origin == Origin::Customer || !rotating.contains(&&*key.org);
        }
        let tokens: Vec<_> = replaced.tokens_withdrawn.iter().map(ToString::to_string).collect();
        let file = self.new_root_key_file.display();
        let json = json!({
            "before": before,
            "root_key_fingerprint": after,
            "root_key_file": file.to_string(),
            "compromised": true,
            "secret_generation": replaced.generation,
            "tokens_withdrawn": replaced.tokens_withdrawn,
            "rotating": rotating,
            "compromised_keys": left,
        });
        let mut text = format!(
            "root key changed from {before} to {after}\nfrom now on the store opens with {file}\n\
             the store has a new secret, of generation {}: what somebody makes with a copy of the \
             store from before, certificates, audit entries, mark and digest, is refused",
            replaced.generation
        );
        if !tokens.is_empty() {
            text += &format!("\nimport tokens withdrawn: {}", tokens.join(", "));
        }
        if !left.is_empty() {
            text += "\nwhoever has a copy of the store has these keys of orgs:";
            left.iter().for_each(|key| text += &format!("\n  {}", advice(key)));
        }
        ui.done(&json, text)?;
        if !left.is_empty() {
            ui.warn(
                "what is sealed under these keys can be read with the copy, until they are retired; \
                 `byokv doctor` names those that are left",
            );
        }
        Ok(())
    }
}

/// A key that a copy has, and what to do about it.
pub(super) fn advice(key: &CompromisedKey) -> String {
    let org = quoted(&key.org);
    let what = match (key.seals, key.origin) {
        (false, _) => "`byokv rotation wait` ends its rotation".to_owned(),
        (true, Origin::Customer) => {
            format!("have its owner bring a new one: `byokv key provision {org}`")
        }
        (true, _) => format!("`byokv key rotate {org}`"),
    };
    format!("{} key {} of org {org}: {what}", key.origin, key.version)
}
