//! `byokv org`: orgs and what they may do.

use byokv::{OrgPolicy, OrgStatus, Suite};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::Context;
use super::failure::Result;
use super::ui::{self, Ui};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make an org, under a platform key of its own
    Create(Create),
    /// List every org
    List,
    /// Show one org and its keys
    Show {
        /// Name of the org
        name: String,
    },
    /// Change what an org may do; a key that it brought stays
    Policy(Policy),
}

#[derive(Args)]
pub(super) struct Create {
    /// Name of the org: 1 to 128 bytes of visible text
    name: String,
    /// Let it bring its own key
    #[arg(long)]
    byok: bool,
    /// Algorithm of its values
    #[arg(long, value_enum, default_value_t)]
    suite: SuiteName,
}

#[derive(Args)]
pub(super) struct Policy {
    /// Name of the org
    name: String,
    #[command(flatten)]
    may: May,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct May {
    /// It may bring its own key
    #[arg(long)]
    byok: bool,
    /// It may not bring a key
    #[arg(long)]
    platform_only: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(super) enum SuiteName {
    /// XAES-256-GCM: fast on machines with AES instructions
    #[default]
    Xaes,
    /// XChaCha20-Poly1305: for machines without
    Xchacha,
}

impl From<SuiteName> for Suite {
    fn from(name: SuiteName) -> Self {
        match name {
            SuiteName::Xaes => Self::Xaes256Gcm,
            SuiteName::Xchacha => Self::XChaCha20Poly1305,
        }
    }
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| match self {
            Self::Create(Create { name, byok, suite }) => {
                store.create_org(&name, policy(byok).with_suite(suite.into()))?;
                let status = store.keys().status(&name)?;
                ui.done(&status, format_args!("org {name} made, id {}", status.id))
            }
            Self::List => ui.rows(
                ["org", "byok", "suite", "active", "origin", "rotating"],
                &store.orgs(),
                |org| {
                    let newest = org.versions.last();
                    [
                        org.name.clone(),
                        yes(org.policy.may_bring_key()),
                        org.suite.to_string(),
                        newest.map(|key| key.version.to_string()).unwrap_or_default(),
                        newest.map(|key| key.origin.to_string()).unwrap_or_default(),
                        yes(org.rotating),
                    ]
                },
            ),
            Self::Show { name } => show(ui, &store.keys().status(&name)?),
            Self::Policy(Policy { name, may }) => {
                let suite = store.keys().status(&name)?.suite;
                store.keys().set_policy(&name, policy(may.byok).with_suite(suite))?;
                let may = if may.byok { "may" } else { "may not" };
                ui.done(
                    &store.keys().status(&name)?,
                    format_args!("org {name} {may} bring its own key"),
                )
            }
        })
    }
}

fn policy(byok: bool) -> OrgPolicy {
    if byok { OrgPolicy::byok() } else { OrgPolicy::platform_only() }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn show(ui: Ui, org: &OrgStatus) -> Result {
    if ui.json {
        return ui::object(&json!(org));
    }
    ui::line(format_args!(
        "name      {}\nid        {}\nbyok      {}\nsuite     {}\nrotating  {}\n",
        org.name,
        org.id,
        yes(org.policy.may_bring_key()),
        org.suite,
        yes(org.rotating),
    ))?;
    keys(ui, org)
}

/// One row for each key version.
pub(super) fn keys(ui: Ui, org: &OrgStatus) -> Result {
    ui.rows(["key", "state", "origin", "fingerprint", "created", "retired"], &org.versions, |key| {
        [
            key.version.to_string(),
            key.state.to_string(),
            key.origin.to_string(),
            key.fingerprint.to_string(),
            ui::time(key.created_unix_ms),
            key.retired_unix_ms.map(ui::time).unwrap_or_default(),
        ]
    })
}
