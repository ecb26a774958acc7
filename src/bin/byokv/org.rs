//! `byokv org`: orgs and what they may do.

use std::time::Duration;

use byokv::{BackupPolicy, NamePolicy, OrgPolicy, OrgStatus, RetirePolicy, Store, Suite};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::erase;
use super::failure::{Result, quoted};
use super::ui::{self, Ui};
use super::{Context, clock};

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
    /// Change what an org may do, and when its keys rotate and retire; a key that it brought stays
    Policy(Policy),
    /// Delete an org's records that have no name which anybody could ask for, or those of no org
    RemoveNameless {
        /// Name of the org
        #[arg(required_unless_present = "no_org", conflicts_with = "no_org")]
        name: Option<String>,
        /// Those that belong to no org: put back after it was erased, or put there by somebody else
        #[arg(long)]
        no_org: bool,
    },
    /// Erase an org: destroy its keys, then delete its records
    Delete(erase::Delete),
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
    /// How the names of its records are stored, for good
    #[arg(long, value_enum, default_value_t)]
    names: NamesName,
}

/// What is not named stays as it is.
#[derive(Args)]
pub(super) struct Policy {
    /// Name of the org
    name: String,
    /// It may bring its own key
    #[arg(long, conflicts_with = "platform_only")]
    byok: bool,
    /// It may not bring a key
    #[arg(long)]
    platform_only: bool,
    /// When a key that has no record left is retired: `immediate`, `manual`, or after a hold,
    /// such as `7d`
    #[arg(long, value_name = "WHEN", value_parser = retire)]
    retire: Option<RetirePolicy>,
    /// A key is due once it is this old, such as `90d`: a platform key rotates then, a customer's
    /// is said to be due
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    rotate_after_age: Option<Duration>,
    /// Likewise, once it has sealed so many records
    #[arg(long, value_name = "RECORDS")]
    rotate_after_records: Option<u64>,
    /// Likewise, once it has sealed so many bytes
    #[arg(long, value_name = "BYTES")]
    rotate_after_bytes: Option<u64>,
    /// What backups do with it; those that were made before stay as they are
    #[arg(long, value_enum, value_name = "HOW")]
    backups: Option<BackupsName>,
    /// Never rotate a key by itself
    #[arg(long, conflicts_with_all = ["rotate_after_age", "rotate_after_records", "rotate_after_bytes"])]
    rotate_never: bool,
}

fn retire(text: &str) -> std::result::Result<RetirePolicy, String> {
    match text {
        "immediate" => Ok(RetirePolicy::Immediate),
        "manual" => Ok(RetirePolicy::Manual),
        hold => humantime::parse_duration(hold)
            .map(RetirePolicy::AfterHold)
            .map_err(|e| format!("`immediate`, `manual` or a time such as `7d`: {e}")),
    }
}

impl Policy {
    fn run(self, ui: Ui, store: &Store) -> Result {
        let mut policy = store.keys().status(&self.name)?.policy;
        if self.byok || self.platform_only {
            policy = policy.with_byok(self.byok);
        }
        if self.rotate_never {
            policy = policy.without_rotation_limits();
        }
        if let Some(backups) = self.backups {
            policy = policy.with_backups(backups.into());
        }
        if let Some(retire) = self.retire {
            policy = policy.with_retire(retire);
        }
        if let Some(age) = self.rotate_after_age {
            policy = policy.with_rotation_after_age(age);
        }
        if let Some(records) = self.rotate_after_records {
            policy = policy.with_rotation_after_records(records);
        }
        if let Some(bytes) = self.rotate_after_bytes {
            policy = policy.with_rotation_after_bytes(bytes);
        }
        let may = if policy.may_bring_key() { "may" } else { "may not" };
        let mut text = format!("org {} {may} bring its own key; {policy}", self.name);
        let changes = store.keys().set_policy(&self.name, policy)?;
        for change in &changes {
            text += &format!("\n  {change}");
        }
        let status = store.keys().status(&self.name)?;
        for key in &status.versions {
            if let Some(retires) = key.retires.filter(|retires| *retires != status.policy.retire())
            {
                text += &format!(
                    "\n  {} was replaced before, and retires {retires}; `byokv key retire {}` lets it go \
                     once it is held",
                    key.version,
                    quoted(&self.name)
                );
            }
        }
        let mut json = json!(status);
        json["changes"] = json!(changes);
        ui.done(&json, text)
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(super) enum SuiteName {
    /// XAES-256-GCM: fast on machines with AES instructions
    #[default]
    Xaes,
    /// XChaCha20-Poly1305: for machines without
    Xchacha,
    /// AEGIS-256: the fastest with AES instructions; not approved by FIPS 140-3
    Aegis,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum NamesName {
    /// As they are, readable on the disk
    #[default]
    Clear,
    /// Sealed, segment by segment: number, tree and lengths still show
    Blinded,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackupsName {
    /// They hold it
    Include,
    /// They leave it out, and name it as left out
    Refuse,
}

impl From<BackupsName> for BackupPolicy {
    fn from(name: BackupsName) -> Self {
        match name {
            BackupsName::Include => Self::Include,
            BackupsName::Refuse => Self::Refuse,
        }
    }
}

impl From<NamesName> for NamePolicy {
    fn from(name: NamesName) -> Self {
        match name {
            NamesName::Clear => Self::Clear,
            NamesName::Blinded => Self::Blinded,
        }
    }
}

impl From<SuiteName> for Suite {
    fn from(name: SuiteName) -> Self {
        match name {
            SuiteName::Xaes => Self::Xaes256Gcm,
            SuiteName::Xchacha => Self::XChaCha20Poly1305,
            SuiteName::Aegis => Self::Aegis256,
        }
    }
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| match self {
            Self::Create(Create { name, byok, suite, names }) => {
                let policy = policy(byok).with_suite(suite.into()).with_names(names.into());
                store.create_org(&name, policy)?;
                let status = store.keys().status(&name)?;
                ui.done(&status, format_args!("org {name} made, id {}", status.id))
            }
            Self::List => ui.rows(
                ["org", "byok", "names", "suite", "active", "origin", "rotating"],
                &store.orgs(),
                |org| {
                    let newest = org.versions.last();
                    [
                        org.name.clone(),
                        yes(org.policy.may_bring_key()),
                        names(org).to_owned(),
                        org.suite.to_string(),
                        newest.map(|key| key.version.to_string()).unwrap_or_default(),
                        newest.map(|key| key.origin.to_string()).unwrap_or_default(),
                        yes(org.rotating),
                    ]
                },
            ),
            Self::Show { name } => show(ui, &store.keys().status(&name)?),
            Self::Policy(policy) => policy.run(ui, store),
            Self::RemoveNameless { name, no_org: _ } => {
                let removed = match &name {
                    Some(name) => store.keys().remove_nameless(name)?,
                    None => store.keys().remove_ownerless()?,
                };
                let records = ui::records(removed);
                ui.done(
                    &json!({"org": name, "removed": removed}),
                    format_args!("{records} removed"),
                )
            }
            Self::Delete(delete) => delete.run(ui, store),
        })
    }
}

fn policy(byok: bool) -> OrgPolicy {
    if byok { OrgPolicy::byok() } else { OrgPolicy::platform_only() }
}

fn names(org: &OrgStatus) -> &'static str {
    match org.policy.names() {
        NamePolicy::Clear => "clear",
        NamePolicy::Blinded => "blinded",
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

fn show(ui: Ui, org: &OrgStatus) -> Result {
    if ui.json {
        return ui::object(&json!(org));
    }
    ui::line(format_args!(
        "name      {}\nid        {}\nbyok      {}\nnames     {}\nsuite     {}\npolicy    {}\nrotating  {}\n",
        org.name,
        org.id,
        yes(org.policy.may_bring_key()),
        names(org),
        org.suite,
        org.policy,
        yes(org.rotating),
    ))?;
    keys(ui, org)
}

/// One row for each key version.
pub(super) fn keys(ui: Ui, org: &OrgStatus) -> Result {
    ui.rows(["key", "state", "origin", "fingerprint", "created", "retired"], &org.versions, |key| {
        let state = match (key.due, key.held_since_unix_ms) {
            (Some(why), _) if key.retired_unix_ms.is_none() => {
                format!("{}, due by {why}", key.state)
            }
            (_, Some(_)) => match key.hold_left_ms {
                Some(left) => format!("{}, held {} more", key.state, clock::length(left)),
                None => format!("{}, held", key.state),
            },
            _ => key.state.to_string(),
        };
        [
            key.version.to_string(),
            state,
            key.origin.to_string(),
            key.fingerprint.to_string(),
            ui::time(key.created_unix_ms),
            key.retired_unix_ms.map(ui::time).unwrap_or_default(),
        ]
    })
}
