//! `byokv key`: bringing, changing, withholding keys.

use std::path::PathBuf;

use byokv::{Fingerprint, KeyState, KeyVersion, Origin, Store};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Context;
use super::failure::Result;
use super::org::{SuiteName, keys};
use super::ui::{self, Ui};
use super::{erase, foreign, rotation, sealed, secret};

const PROVISION: &str = "\
A key is what `openssl rand -base64 32` prints. New values use it at once; when every record from
before is re-encrypted, the key before is destroyed, and the certificate that says so is printed:

  byokv key provision acme --expect-fingerprint 0846f66a2cc1aa4c2ccfbf83104049a4 < acme.key

A key that has to travel is sealed first, see `byokv key import-token --help`.";

#[derive(Subcommand)]
pub(super) enum Command {
    /// Give an org the key that it brought, and re-encrypt its records
    #[command(after_help = PROVISION)]
    Provision(Provision),
    /// Make a token under which an org can seal its key, so that it never travels in plain
    ImportToken(sealed::MakeToken),
    /// Seal a key under a token; needs no store
    Wrap(sealed::Wrap),
    /// Replace an org's platform key by a new one
    Rotate(Begin),
    /// Replace the key that an org brought by a new platform key
    Return(Begin),
    /// Change the algorithm of an org's values; the key stays
    Suite(ChangeSuite),
    /// List the keys of an org
    List {
        /// Name of the org
        org: String,
    },
    /// Print the fingerprint of a key; needs no store
    Fingerprint(Source),
    /// Withhold the keys that an org brought: what is under them cannot be read until `resume`
    Suspend(Suspend),
    /// Give a suspended key back
    Resume(Resume),
    /// Let an old key go that the org's policy holds before its retirement
    Retire(erase::Retire),
    /// Erase what retired keys have left in the database's files
    Erase(erase::Erase),
    /// Keys of other stores that restored orgs may not have
    #[command(subcommand)]
    Foreign(foreign::Command),
}

#[derive(Args)]
pub(super) struct Source {
    /// File of the key in base64; the default is stdin
    #[arg(long)]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Begin {
    /// Name of the org
    org: String,
    /// Do not wait for the records to be re-encrypted
    #[arg(long)]
    no_wait: bool,
}

#[derive(Args)]
pub(super) struct Provision {
    #[command(flatten)]
    begin: Begin,
    #[command(flatten)]
    source: Source,
    /// What is read is a key that `byokv key wrap` sealed
    #[arg(long)]
    sealed: bool,
    /// Refuse any other key than the one with this fingerprint, 32 hex digits
    #[arg(long, value_name = "HEX", value_parser = fingerprint)]
    expect_fingerprint: Option<Fingerprint>,
}

#[derive(Args)]
pub(super) struct ChangeSuite {
    #[command(flatten)]
    begin: Begin,
    /// The new algorithm
    #[arg(value_enum)]
    suite: SuiteName,
}

#[derive(Args)]
pub(super) struct Suspend {
    /// Name of the org
    org: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub(super) struct Resume {
    /// Name of the org
    org: String,
    #[command(flatten)]
    source: Source,
}

pub(super) fn fingerprint(text: &str) -> std::result::Result<Fingerprint, &'static str> {
    text.parse().map_err(|_| "a fingerprint has 32 hex digits")
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        match self {
            Self::Provision(provision) => provision.run(context),
            Self::ImportToken(token) => token.run(context),
            Self::Wrap(wrap) => wrap.run(ui),
            Self::Rotate(Begin { org, no_wait }) => context.with_store(|store| {
                let begun = store.keys().rotate_platform_key(&org)?;
                rotation::begun(ui, store, &begun, no_wait)
            }),
            Self::Return(Begin { org, no_wait }) => context.with_store(|store| {
                let begun = store.keys().return_to_platform_key(&org)?;
                rotation::begun(ui, store, &begun, no_wait)
            }),
            Self::Suite(ChangeSuite { begin: Begin { org, no_wait }, suite }) => context
                .with_store(|store| {
                    let begun = store.keys().change_suite(&org, suite.into())?;
                    rotation::begun(ui, store, &begun, no_wait)
                }),
            Self::List { org } => context.with_store(|store| keys(ui, &store.keys().status(&org)?)),
            Self::Fingerprint(source) => {
                let fingerprint = secret::key(ui, source.file.as_deref())?.fingerprint();
                ui.result(&json!({"fingerprint": fingerprint}), fingerprint)
            }
            Self::Suspend(suspend) => context.with_store(|store| suspend.run(ui, store)),
            Self::Resume(resume) => resume.run(context),
            Self::Retire(retire) => context.with_store(|store| retire.run(ui, store)),
            Self::Erase(erase) => context.with_store(|store| erase.run(ui, store)),
            Self::Foreign(command) => command.run(context),
        }
    }
}

impl Provision {
    fn run(self, context: &Context) -> Result {
        let Self { begin: Begin { org, no_wait }, source, sealed, expect_fingerprint } = self;
        let (ui, file, expected) = (context.ui, source.file.as_deref(), expect_fingerprint);
        if sealed {
            let sealed = sealed::read(file)?;
            return context.with_store(|store| {
                let begun = store.keys().provision_sealed(&org, &sealed, expected)?;
                rotation::begun(ui, store, &begun, no_wait)
            });
        }
        let material = secret::key(ui, file)?;
        ui.note(format_args!("fingerprint {}", material.fingerprint()));
        context.with_store(|store| {
            let begun = match expected {
                Some(expected) => store.keys().provision_expecting(&org, material, expected)?,
                None => store.keys().provision(&org, material)?,
            };
            rotation::begun(ui, store, &begun, no_wait)
        })
    }
}

impl Suspend {
    fn run(self, ui: Ui, store: &Store) -> Result {
        let Self { org, yes } = self;
        let status = store.keys().status(&org)?;
        let census = store.keys().census(&org)?;
        let held = status.versions.iter().filter(|key| {
            key.origin == Origin::Customer
                && matches!(key.state, KeyState::Active | KeyState::DecryptOnly)
        });
        let held: Vec<(KeyVersion, Fingerprint)> =
            held.map(|key| (key.version, key.fingerprint)).collect();
        let unreadable: u64 =
            held.iter().filter_map(|(version, _)| census.by_version.get(version)).sum();
        if !held.is_empty() {
            let mut what = format!(
                "{} of org \"{org}\" {} unreadable, and nothing can be written or \
                 deleted, until `byokv key resume` gets back",
                ui::records(unreadable),
                if unreadable == 1 { "becomes" } else { "become" },
            );
            let readable = census.total().saturating_sub(unreadable);
            if readable > 0 {
                what += &format!(
                    "\n  {} under its other keys can still be read",
                    ui::records(readable)
                );
            }
            for (version, fingerprint) in &held {
                what += &format!("\n  {version}, fingerprint {fingerprint}");
            }
            erase::confirm(ui, &org, &what, yes)?;
        }
        let suspended = store.keys().suspend(&org)?;
        let names: Vec<_> = suspended.iter().map(ToString::to_string).collect();
        ui.done(
            &json!({"org": org, "suspended": suspended, "unreadable": unreadable}),
            format_args!("{} suspended", names.join(", ")),
        )
    }
}

impl Resume {
    fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        let material = secret::key(ui, self.source.file.as_deref())?;
        context.with_store(|store| {
            let version = store.keys().resume(&self.org, material)?;
            let rotating = store.keys().status(&self.org)?.rotating;
            let mut text = format!("{version} resumed");
            if rotating {
                text += "; its rotation goes on, `byokv rotation wait` waits for the end";
            }
            let json = json!({"org": self.org, "resumed": version, "rotating": rotating});
            ui.done(&json, text)
        })
    }
}
