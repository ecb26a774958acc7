//! Making a store, and keys.

use std::io::IsTerminal;
use std::path::PathBuf;

use byokv::{RootKey, Store};
use clap::Args;
use serde_json::json;

use super::Context;
use super::failure::{Failure, Result};
use super::secret::{self, Output};

#[derive(Args)]
pub(super) struct Init {
    /// Make the root key too, in this new file of mode 0600. Keep a copy of it elsewhere:
    /// without it nothing in the store can be read
    #[arg(long, value_name = "FILE")]
    new_root_key_file: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(self, context: &Context) -> Result {
        let data = context.data()?;
        if data.join("keyring").exists() {
            let why =
                format!("there is a store in {} already; nothing was changed", data.display());
            return Err(Failure::Failed(why));
        }
        if context.global.expect_store.is_some() || context.global.minimum_position.is_some() {
            let why = "a new store has an id and a position of its own; leave --expect-store, \
                       --minimum-position, BYOKV_STORE_ID and BYOKV_MINIMUM_POSITION out";
            return Err(Failure::Usage(why.to_owned()));
        }
        let root = match &self.new_root_key_file {
            Some(file) => RootKey::from_material(secret::generate_file(file)?),
            None => context.root_key()?,
        };
        let fingerprint = root.fingerprint();
        let store = Store::open(data, root).inspect_err(|_| {
            if let Some(file) = &self.new_root_key_file {
                let file = file.display();
                context.ui.warn(format_args!("the new root key stays in {file}"));
            }
        })?;
        let id = store.id();
        store.close()?;
        let json = json!({
            "data": data.display().to_string(),
            "store": id,
            "root_key_fingerprint": fingerprint,
            "root_key_file": self.new_root_key_file.as_ref().map(|file| file.display().to_string()),
        });
        let mut text = format!("store {id} made in {}\nroot key {fingerprint}", data.display());
        if let Some(file) = &self.new_root_key_file {
            text += &format!(" in {}; keep a copy elsewhere", file.display());
        }
        context.ui.done(&json, text)
    }
}

pub(super) fn keygen(context: &Context) -> Result {
    if std::io::stdout().is_terminal() {
        context.ui.warn("the key is shown on this terminal, and stays in its scroll-back");
    }
    let (text, material) = secret::generate()?;
    let mut out = Output::new()?;
    if context.ui.json {
        let fingerprint = material.fingerprint();
        out.json(&Generated { key: &text, fingerprint })?;
    } else {
        std::io::Write::write_all(&mut out, text.as_bytes())?;
        std::io::Write::write_all(&mut out, b"\n")?;
    }
    out.finish()
}

#[derive(serde::Serialize)]
struct Generated<'a> {
    key: &'a str,
    fingerprint: byokv::Fingerprint,
}
