//! `byokv certificate`: what was done, provably.

use std::path::PathBuf;

use byokv::{Certificate, CertificateCheck, CertificateKind, LostCertificate, OrgId, Store};
use clap::Subcommand;
use serde_json::json;

use super::Context;
use super::audit;
use super::failure::{Failure, Result};
use super::secret;
use super::ui::{self, GREEN, RED, Ui};

#[derive(Subcommand)]
pub(super) enum Command {
    /// List certificates
    List {
        /// Only of this org
        org: Option<String>,
        /// Like ORG, by the id: also of an org that is erased, whose name another one has now
        #[arg(long, value_name = "ID", conflicts_with = "org")]
        org_id: Option<OrgId>,
    },
    /// Print the certificates of one key version
    Show {
        /// Name of the org
        org: String,
        /// The version, such as 1 or v1
        #[arg(value_parser = version)]
        version: u32,
    },
    /// Compare certificates with the store: those of a file, or all of the store's. Says of each
    /// whether it is authentic, whether it is true of this store now, and what supersedes it
    Verify {
        /// JSON of certificates, one or several; `-` is stdin
        file: Option<PathBuf>,
    },
}

fn version(text: &str) -> std::result::Result<u32, &'static str> {
    let number = text.strip_prefix('v').unwrap_or(text);
    number.parse().map_err(|_| "a version is a number, such as 1 or v1")
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        match self {
            Self::List { org, org_id } => context.with_store(|store| {
                let keys = store.keys();
                let found = match audit::org_id(ui, store, org.as_deref(), org_id)? {
                    Some(org) => keys.certificates_of(org)?,
                    None => keys.certificates().collect::<byokv::Result<_>>()?,
                };
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
                let id = audit::org_id(ui, store, Some(&org), None)?;
                let found = id.map(|id| store.keys().certificates_of(id)).transpose()?;
                let mut found = found.unwrap_or_default();
                found.retain(|certificate| certificate.version.get() == version);
                if found.is_empty() {
                    let why = format!("there is no certificate of v{version} of org \"{org}\"");
                    return Err(Failure::NotFound(why));
                }
                found.iter().try_for_each(|certificate| ui.result(certificate, certificate))
            }),
            Self::Verify { file: None } => context.with_store(|store| verify_kept(ui, store)),
            Self::Verify { file: Some(file) } => {
                let given = parse(&secret::read(Some(&file), 64 << 20)?)?;
                context.with_store(|store| verify_given(ui, store, given))
            }
        }
    }
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
        CertificateKind::OrgErased => "the org".to_owned(),
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
    let inside = value.get("certificates").or_else(|| value.get("certificate"));
    match (value, inside) {
        (_, Some(inside)) => collect(inside, found),
        (serde_json::Value::Array(all), _) => all.iter().for_each(|each| collect(each, found)),
        // Where a key is held there is none yet.
        (serde_json::Value::Null, _) => {}
        _ => found.push(Certificate::from_json(&value.to_string())),
    }
}

/// Prints what each comparison has found. Returns how many did not come to what was `wanted`.
fn say(
    ui: Ui,
    checks: &[CertificateCheck],
    wanted: fn(&CertificateCheck) -> bool,
) -> Result<usize> {
    for check in checks {
        let style = if wanted(check) { GREEN } else { RED };
        let text = check.to_string();
        let (verdict, rest) = text.split_once(':').unwrap_or((&text, ""));
        let text = format!("{style}{verdict}{style:#}:{rest}");
        if wanted(check) {
            ui.done(check, text)?;
        } else {
            ui.result(check, text)?;
        };
    }
    Ok(checks.iter().filter(|check| !wanted(check)).count())
}

/// Compares the certificates of a file with the store.
fn verify_given(ui: Ui, store: &Store, given: Vec<byokv::Result<Certificate>>) -> Result {
    let of = given.len();
    let (mut faults, mut parsed) = (0, Vec::new());
    for certificate in given {
        match certificate {
            Ok(certificate) => parsed.push(certificate),
            Err(error) => {
                faults += 1;
                let json =
                    json!({"authentic": false, "true_now": false, "fault": error.to_string()});
                ui.result(&json, format_args!("{RED}not authentic{RED:#}: {error}"))?;
            }
        }
    }
    let checks = store.keys().verify_each_certificate(&parsed)?;
    faults += say(ui, &checks, CertificateCheck::is_true)?;
    match faults {
        0 => Ok(()),
        _ => {
            Err(Failure::Fault(format!("{faults} of {of} certificates are not true of this store")))
        }
    }
}

/// Compares all certificates of the store with it. What was true until the store went on is no fault.
fn verify_kept(ui: Ui, store: &Store) -> Result {
    let report = store.keys().verify_certificates()?;
    let faults = say(ui, &report.checks, CertificateCheck::is_sound)?;
    lost(ui, &report.lost)?;
    if report.unreadable > 0 {
        let what = format!("{} certificates in the database do not open", report.unreadable);
        let json = json!({"authentic": false, "true_now": false, "fault": what});
        ui.result(&json, format_args!("{RED}damaged{RED:#}: {what}"))?;
    }
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure::Fault(format!(
        "{faults} certificates are not true of this store, {} are lost",
        report.lost.len() as u64 + report.unreadable
    )))
}

/// Names the certificates that the audit log proves and that are no longer there.
pub(super) fn lost(ui: Ui, lost: &[LostCertificate]) -> Result {
    lost.iter().try_for_each(|lost| {
        ui.result(&json!({"lost": lost}), format_args!("{RED}lost{RED:#}: {lost}"))
    })
}
