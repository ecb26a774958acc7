//! `byokv certificate` and `audit`: what was done, provably.

use std::path::PathBuf;

use byokv::{AuditEntry, AuditEvent, Certificate, CertificateKind, Store};
use clap::{Args, Subcommand};
use serde_json::json;

use super::Context;
use super::failure::{Failure, Result};
use super::secret;
use super::ui::{self, GREEN, RED, Ui};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List certificates
    List {
        /// Only of this org
        org: Option<String>,
    },
    /// Print the certificates of one key version
    Show {
        /// Name of the org
        org: String,
        /// The version, such as 1 or v1
        #[arg(value_parser = version)]
        version: u32,
    },
    /// Check certificates: those of a file, or all of the store's
    Verify {
        /// JSON of certificates, one or several; `-` is stdin
        file: Option<PathBuf>,
    },
}

#[derive(Args)]
pub(super) struct Audit {
    /// Only entries about this org
    #[arg(long)]
    org: Option<String>,
    /// Print only whether the whole log is as it was written
    #[arg(long)]
    verify: bool,
}

fn version(text: &str) -> std::result::Result<u32, &'static str> {
    let number = text.strip_prefix('v').unwrap_or(text);
    number.parse().map_err(|_| "a version is a number, such as 1 or v1")
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        match self {
            Self::List { org } => context.with_store(|store| {
                let found = of_store(store, org.as_deref())?;
                ui.rows(
                    ["org", "what", "ended", "fingerprint", "records", "at"],
                    &found,
                    |certificate| {
                        [
                            certificate.org.clone(),
                            what(certificate),
                            ended(certificate).to_owned(),
                            certificate.fingerprint.to_string(),
                            records(certificate),
                            ui::time(certificate.at_unix_ms),
                        ]
                    },
                )
            }),
            Self::Show { org, version } => context.with_store(|store| {
                let mut found = of_store(store, Some(&org))?;
                found.retain(|certificate| certificate.version.get() == version);
                if found.is_empty() {
                    let why = format!("there is no certificate of v{version} of org \"{org}\"");
                    return Err(Failure::NotFound(why));
                }
                found.iter().try_for_each(|certificate| ui.result(certificate, certificate))
            }),
            Self::Verify { file: None } => {
                context.with_store(|store| verify(ui, store.keys().certificates()))
            }
            Self::Verify { file: Some(file) } => {
                let given = parse(&secret::read(Some(&file), 64 << 20)?)?;
                context.with_store(|store| {
                    let keys = store.keys();
                    let check = |certificate: byokv::Result<Certificate>| {
                        let certificate = certificate?;
                        keys.verify_certificate(&certificate).map(|()| certificate)
                    };
                    verify(ui, given.into_iter().map(check))
                })
            }
        }
    }
}

fn of_store(store: &Store, org: Option<&str>) -> Result<Vec<Certificate>> {
    let mut found = store.keys().certificates().collect::<byokv::Result<Vec<_>>>()?;
    found.retain(|certificate| org.is_none_or(|org| certificate.org == org));
    if let Some(org) = org.filter(|_| found.is_empty()) {
        store.org(org)?;
    }
    Ok(found)
}

/// Those that the proof is about; an erased key had none left.
fn records(certificate: &Certificate) -> String {
    match certificate.kind {
        CertificateKind::KeyErased => String::new(),
        CertificateKind::OrgErased => certificate.records_deleted.to_string(),
        _ => certificate.records_verified.to_string(),
    }
}

fn ended(certificate: &Certificate) -> &'static str {
    match certificate.kind {
        CertificateKind::KeyErased | CertificateKind::OrgErased => "erased",
        _ => "retired",
    }
}

fn what(certificate: &Certificate) -> String {
    match certificate.kind {
        CertificateKind::SuiteRetired { suite } => suite.to_string(),
        _ => format!("{} key {}", certificate.origin, certificate.version),
    }
}

/// Certificates one after the other, as `show --json` prints them.
fn parse(json: &[u8]) -> Result<Vec<byokv::Result<Certificate>>> {
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_slice(json).into_iter::<serde_json::Value>() {
        let value = value.map_err(|e| Failure::Failed(format!("the input is not JSON: {e}")))?;
        collect(&value, &mut found);
    }
    if found.is_empty() {
        return Err(Failure::Failed("there is no certificate in the input".to_owned()));
    }
    Ok(found)
}

/// Commands that print more than a certificate have it inside, or several.
fn collect(value: &serde_json::Value, found: &mut Vec<byokv::Result<Certificate>>) {
    let inside = value.get("certificate").or_else(|| value.get("certificates"));
    match (value, inside) {
        (_, Some(inside)) => collect(inside, found),
        (serde_json::Value::Array(all), _) => all.iter().for_each(|each| collect(each, found)),
        // Where a key is held there is none yet.
        (serde_json::Value::Null, _) => {}
        _ => found.push(Certificate::from_json(&value.to_string())),
    }
}

fn verify(ui: Ui, all: impl Iterator<Item = byokv::Result<Certificate>>) -> Result {
    let mut faults = 0;
    for certificate in all {
        match certificate {
            Ok(certificate) => {
                let json = json!({
                    "authentic": true,
                    "org": certificate.org,
                    "version": certificate.version,
                    "kind": certificate.kind,
                });
                let (org, what) = (&certificate.org, what(&certificate));
                ui.done(&json, format_args!("{GREEN}authentic{GREEN:#}  org {org}, {what}"))?;
            }
            Err(error) => {
                faults += 1;
                let json = json!({"authentic": false, "fault": error.to_string()});
                ui.result(&json, format_args!("{RED}fault{RED:#}      {error}"))?;
            }
        }
    }
    match faults {
        0 => Ok(()),
        _ => Err(Failure::Fault("not every certificate is authentic".to_owned())),
    }
}

/// A backup may be of several orgs.
fn is_about(entry: &AuditEntry, org: &str) -> bool {
    match &entry.event {
        AuditEvent::BackupMade { orgs, .. } => orgs.iter().any(|each| each.name == org),
        AuditEvent::BackupBegun { only, .. } => {
            only.is_empty() || only.iter().any(|each| each.name == org)
        }
        _ => entry.org.as_ref().is_some_and(|each| each.name == org),
    }
}

impl Audit {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| {
            let (mut entries, mut about) = (0_u64, 0_u64);
            for entry in store.keys().audit() {
                let entry = entry.map_err(|error| match self.verify {
                    true => Failure::Fault(error.to_string()),
                    false => error.into(),
                })?;
                entries += 1;
                if self.org.as_ref().is_none_or(|org| is_about(&entry, org)) {
                    about += 1;
                    if !self.verify {
                        ui.result(&entry, &entry)?;
                    }
                }
            }
            // The log knows erased orgs too.
            if let Some(org) = self.org.as_ref().filter(|_| about == 0) {
                store.org(org)?;
            }
            if self.verify {
                let head = store.keys().audit_head();
                let json = json!({"entries": entries, "intact": true, "head": head});
                ui.done(
                    &json,
                    format_args!("{entries} entries, the log is whole; it ends with {head}"),
                )?;
            }
            Ok(())
        })
    }
}
