//! `byokv verify`: counts records by their headers, sees that none is missing or older than it was,
//! and opens them on demand.

use byokv::{Error, KeyState, Org, Store};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::Context;
use super::erase;
use super::failure::{Failure, Result, quoted};
use super::ui::{self, RED, Ui};

#[derive(Args)]
pub(super) struct Verify {
    /// Only this org
    org: Option<String>,
    /// Open every record, not only its header
    #[arg(long)]
    deep: bool,
    /// Accept what is missing of the org, or older than it was, audited; keep a copy first
    #[arg(long, requires = "org")]
    accept_loss: bool,
    /// Do not ask
    #[arg(long, requires = "accept_loss")]
    yes: bool,
}

/// How many records of an org stand under one key or suite.
#[derive(Serialize)]
struct Count {
    org: String,
    under: String,
    state: String,
    records: u64,
}

#[derive(Default)]
struct Findings {
    counts: Vec<Count>,
    /// Of which org, if of any; which record, if known; and what.
    faults: Vec<(Option<String>, Option<Vec<u8>>, String)>,
    opened: u64,
    /// Under a suspended key, which is no fault.
    withheld: u64,
}

impl Verify {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        if let (Some(org), true) = (&self.org, self.accept_loss) {
            return context.with_store(|store| accept_loss(ui, store, org, self.yes));
        }
        let mut missing = None;
        let faults = context.with_store(|store| {
            let orgs = match &self.org {
                Some(org) => vec![store.org(org)?],
                None => {
                    let all = store.orgs();
                    all.iter().map(|org| store.org(&org.name)).collect::<byokv::Result<_>>()?
                }
            };
            let mut findings = Findings::default();
            for org in &orgs {
                let records = findings.count(store, org.name(), self.deep)?;
                if self.deep {
                    findings.open(ui, org, records)?;
                }
            }
            if self.org.is_none() {
                findings.ownerless(store)?;
            }
            // What is missing has no header to look at.
            missing = match &self.org {
                Some(org) => store.verify_org(org).err(),
                None => store.verify().err(),
            };
            findings.print(ui, self.deep, missing.is_some())?;
            Ok(findings.faults.len())
        })?;
        match (faults, missing) {
            (0, None) => Ok(()),
            (0, Some(missing)) => Err(missing.into()),
            (faults, missing) => {
                let s = if faults == 1 { "" } else { "s" };
                let missing =
                    missing.map_or_else(String::new, |missing| format!(", and {missing}"));
                Err(Failure::Fault(format!("{faults} fault{s} found{missing}")))
            }
        }
    }
}

/// Where nothing is missing there is nothing to ask.
fn accept_loss(ui: Ui, store: &Store, org: &str, yes: bool) -> Result {
    match store.verify_org(org) {
        // An org that is being erased has no name any more.
        Err(missing @ (Error::RolledBack { .. } | Error::OrgUnknown { .. })) => {
            erase::confirm(ui, org, &missing.to_string(), yes)?;
        }
        Err(error) => return Err(error.into()),
        Ok(()) => {
            let text = format!("nothing is missing of org {org}");
            return ui.done(&json!({"accepted": false}), text);
        }
    }
    store.danger_accept_loss(org)?;
    ui.done(&json!({"accepted": true}), format!("what is missing of org {org} is accepted"))
}

impl Findings {
    fn fault(&mut self, org: &str, record: Option<Vec<u8>>, why: impl Into<String>) {
        self.faults.push((Some(org.to_owned()), record, why.into()));
    }

    fn ownerless(&mut self, store: &Store) -> Result {
        let records = store.keys().ownerless()?;
        if records > 0 {
            let records = ui::records(records);
            let why =
                format!("{records} of no org; `byokv org remove-nameless --no-org` deletes them");
            self.faults.push((None, None, why));
        }
        Ok(())
    }

    /// By headers alone. Returns how many records there are. `deep` names each bad record later.
    fn count(&mut self, store: &Store, name: &str, deep: bool) -> Result<u64> {
        // Before the count: a rotation may end meanwhile, but none begins.
        let org = store.keys().status(name)?;
        let census = store.keys().census(name)?;
        let mut faults = Vec::new();
        for (&version, &records) in &census.by_version {
            let key = org.versions.iter().find(|key| key.version == version);
            let state = key.map_or_else(|| "unknown".to_owned(), |key| key.state.to_string());
            let why = match key.map(|key| key.state) {
                None => Some("which it never had"),
                Some(KeyState::Retired) => Some("which is retired: from an older copy of the data"),
                Some(_) => None,
            };
            faults.extend(why.map(|why| (records, format!("under {version}, {why}"))));
            let (org, under) = (name.to_owned(), version.to_string());
            self.counts.push(Count { org, under, state, records });
        }
        for (&version, &records) in &census.by_name_version {
            let key = org.versions.iter().find(|key| key.version == version);
            if key.is_none_or(|key| key.state == KeyState::Retired) {
                let why = format!("whose name is blinded under {version}, which opens nothing");
                faults.push((records, why));
            }
        }
        if census.malformed > 0 {
            let why = "whose header is damaged or names another org".to_owned();
            faults.push((census.malformed, why));
        }
        if census.nameless > 0 {
            let how = format!("`byokv org remove-nameless {}` deletes them", quoted(name));
            faults.push((census.nameless, format!("without a name; {how}")));
        }
        if deep {
            faults.clear();
        }
        for (&suite, &records) in &census.by_suite {
            let current = suite == org.suite;
            if !current && !org.rotating {
                faults.push((records, format!("under {suite}, and no rotation is under way")));
            }
            let state = if current { "current" } else { "replaced" }.to_owned();
            let (org, under) = (name.to_owned(), suite.to_string());
            self.counts.push(Count { org, under, state, records });
        }
        for (records, why) in faults {
            self.fault(name, None, format!("{} {why}", ui::records(records)));
        }
        Ok(census.total())
    }

    fn open(&mut self, ui: Ui, org: &Org, records: u64) -> Result {
        let bar = ui.bar();
        for (done, name) in (1..).zip(org.scan("").names()) {
            // A blinded name may not open either.
            let (name, opened) = match name {
                Ok(name) => {
                    let opened = org.get(&name).map(drop);
                    (Some(name), opened)
                }
                Err(error) => (None, Err(error)),
            };
            match opened {
                Ok(()) => self.opened += 1,
                Err(Error::KeySuspended { .. }) => self.withheld += 1,
                Err(Error::RecordDamaged { name: text, why, .. }) => {
                    let name = name.unwrap_or_else(|| text.into_bytes());
                    self.fault(org.name(), Some(name), why);
                }
                Err(Error::RecordNameless { key, why, .. }) => {
                    let how =
                        format!("`byokv org remove-nameless {}` deletes it", quoted(org.name()));
                    let why = format!("a record without a name, storage key {key}: {why}; {how}");
                    self.fault(org.name(), None, why);
                }
                Err(error @ Error::KeyRetired { .. }) => {
                    self.fault(org.name(), name, error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
            if done % 64 == 0 {
                bar.count(org.name(), done, records);
            }
        }
        Ok(())
    }

    fn print(&self, ui: Ui, deep: bool, is_missing: bool) -> Result {
        if ui.json {
            let faults = self.faults.iter().map(|(org, record, why)| {
                let record = record.as_deref().map(ui::visible);
                json!({"org": org, "record": record, "fault": why})
            });
            return ui::object(&json!({
                "counts": self.counts,
                "opened": deep.then_some(self.opened),
                "withheld": deep.then_some(self.withheld),
                "faults": faults.collect::<Vec<_>>(),
                "missing": is_missing,
            }));
        }
        ui.rows(["org", "under", "state", "records"], &self.counts, |count| {
            let Count { org, under, state, records } = count;
            [org.clone(), under.clone(), state.clone(), records.to_string()]
        })?;
        for (org, record, why) in &self.faults {
            let record = record.as_deref().map(ui::visible);
            let record = record.map_or_else(String::new, |record| format!(", record {record}"));
            let whose = org.as_ref().map_or_else(String::new, |org| format!("org {org}{record}: "));
            ui::line(format_args!("{RED}fault{RED:#}  {whose}{why}"))?;
        }
        if deep && self.withheld > 0 {
            let many = ui::records(self.withheld);
            ui::line(format_args!("{many} under suspended keys, not checked"))?;
        }
        if self.faults.is_empty() && !is_missing {
            let how = match deep {
                true => format!("{} opened, no fault", ui::records(self.opened)),
                false => "no fault in any header, no record missing".to_owned(),
            };
            ui.done(&(), how)?;
        }
        Ok(())
    }
}
