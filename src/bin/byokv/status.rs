//! `byokv status`: which store it is, and how far it has got.

use serde_json::json;

use super::Context;
use super::failure::Result;

pub(super) fn run(context: &Context) -> Result {
    let root_key = context.root_key()?.fingerprint();
    context.with_store(|store| {
        let (position, metrics) = (store.position(), store.metrics()?);
        let (orgs, bytes) = (metrics.orgs.len(), metrics.bytes_on_disk);
        let json = json!({
            "store": position.store,
            "position": position.to_string(),
            "keyring_generation": position.keyring_generation,
            "syncs": position.syncs,
            "root_key_fingerprint": root_key,
            "orgs": orgs,
            "bytes_on_disk": bytes,
        });
        let text = format!(
            "store     {}\nposition  {position}\nroot key  {root_key}\norgs      {orgs}\n\
             database  {} KiB",
            position.store,
            bytes.div_ceil(1024),
        );
        context.ui.result(&json, text)
    })
}
