//! `byokv key import-token` and `byokv key wrap`: a key that never travels in plain.

use std::path::PathBuf;
use std::time::Duration;

use byokv::{ImportToken, SealedKey};
use clap::Args;
use serde_json::json;

use super::Context;
use super::failure::{Failure, Result};
use super::secret;
use super::ui::{self, Ui};

const IMPORT_TOKEN: &str = "\
The token is public; it takes one key, and expires. Its private half stays in the store. Send the
token to the customer, and compare its id by another channel, so that nobody has swapped it. The
customer seals a key under it, anywhere, and sends the result and, by another channel, the
fingerprint:

  byokv key wrap --token TOKEN < acme.key
  byokv key provision acme --sealed --expect-fingerprint 0846f66a2cc1aa4c2ccfbf83104049a4";

#[derive(Args)]
#[command(after_help = IMPORT_TOKEN)]
pub(super) struct MakeToken {
    /// Name of the org
    org: String,
    /// How long it can be used: 1 minute to 30 days
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    valid_for: Duration,
}

#[derive(Args)]
pub(super) struct Wrap {
    /// The token that the operator sent
    #[arg(long)]
    token: String,
    /// File of the key in base64; the default is stdin
    #[arg(long)]
    file: Option<PathBuf>,
}

impl MakeToken {
    pub(super) fn run(self, context: &Context) -> Result {
        context.with_store(|store| {
            let token = store.keys().import_token(&self.org, self.valid_for)?;
            about(context.ui, &token);
            context.ui.result(&json(&token, &json!({"token": token.to_string()})), token)
        })
    }
}

impl Wrap {
    pub(super) fn run(self, ui: Ui) -> Result {
        let token: ImportToken = self.token.parse()?;
        if token.has_expired()? {
            let at = ui::time(token.expires_unix_ms());
            ui.warn(format_args!("by the clock of this machine the token expired at {at}"));
        }
        let material = secret::key(ui, self.file.as_deref())?;
        let fingerprint = material.fingerprint();
        let sealed = token.seal(&material)?;
        about(ui, &token);
        ui.note(format_args!("fingerprint {fingerprint}"));
        let parts = json!({"sealed": sealed.to_string(), "fingerprint": fingerprint});
        ui.result(&json(&token, &parts), sealed)
    }
}

/// What both ends compare.
fn about(ui: Ui, token: &ImportToken) {
    ui.note(format_args!(
        "token {} of store {}, for org \"{}\", until {}",
        token.id(),
        token.store_id(),
        token.org_name(),
        ui::time(token.expires_unix_ms()),
    ));
}

fn json(token: &ImportToken, parts: &serde_json::Value) -> serde_json::Value {
    let mut json = json!({
        "token_id": token.id(),
        "store": token.store_id(),
        "org": token.org_name(),
        "expires_unix_ms": token.expires_unix_ms(),
    });
    if let (Some(json), Some(parts)) = (json.as_object_mut(), parts.as_object()) {
        json.extend(parts.clone());
    }
    json
}

/// A sealed key, from a file or stdin. Not secret.
pub(super) fn read(file: Option<&std::path::Path>) -> Result<SealedKey> {
    const LIMIT: u64 = 4096;
    let bytes = secret::read(file, LIMIT)?;
    let text = str::from_utf8(&bytes)
        .map_err(|_| Failure::KeyRefused("this is no sealed key: it is not text".to_owned()))?;
    Ok(text.parse()?)
}
