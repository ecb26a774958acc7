//! `byokv rotation`: what is under way, and waiting for it.

use std::time::{Duration, Instant};

use byokv::{Certificate, Error, KeyState, Phase, Progress, Rotation, Store};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::Context;
use super::erase;
use super::failure::{Failure, Result, quoted};
use super::throttle::Limits;
use super::ui::{self, Ui};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show the rotations that are under way
    Status {
        /// Only of this org
        org: Option<String>,
        /// Follow them to their end
        #[arg(long)]
        watch: bool,
    },
    /// Wait for rotations to end, and print their certificates; exits with 7 if one waits for you
    Wait {
        /// Only of this org
        org: Option<String>,
    },
    /// Let an org's rotation rest until `resume`, whoever opens the store
    Pause {
        /// Name of the org
        org: String,
    },
    /// Let a paused rotation go on
    Resume {
        /// Name of the org
        org: String,
    },
    /// Limit what rotations use, whoever opens the store; without a limit, say what it is
    Throttle(Limits),
}

fn of(store: &Store, org: &str) -> Result<Rotation> {
    let none = || Failure::NotFound(format!("no rotation of org \"{org}\" is under way"));
    store.keys().rotation(org)?.ok_or_else(none)
}

/// A rotation as its records tell, also before the worker has got far.
#[derive(Serialize)]
struct Status {
    /// The version that will be retired, if not a suite.
    replaces: Option<byokv::KeyVersion>,
    /// Records under another key or suite than the active.
    left: u64,
    records: u64,
    progress: Progress,
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result {
        let ui = context.ui;
        context.with_store(|store| match self {
            Self::Status { org, watch: false } => {
                let rotations = under_way(store, org.as_deref())?;
                taken_up(&rotations);
                let found: Result<Vec<_>> =
                    rotations.iter().map(|rotation| status(store, rotation)).collect();
                let found = found?;
                if found.is_empty() && !ui.json {
                    return ui::line("no rotation is under way");
                }
                ui.rows(
                    ["org", "replaces", "phase", "records left", "of", "reason"],
                    &found,
                    |status| {
                        let progress = &status.progress;
                        let suite = || "the suite".to_owned();
                        [
                            progress.org.clone(),
                            status.replaces.map_or_else(suite, |version| version.to_string()),
                            match progress.paused {
                                true => format!("{} (paused)", progress.phase),
                                false => progress.phase.to_string(),
                            },
                            status.left.to_string(),
                            status.records.to_string(),
                            progress
                                .reason
                                .as_ref()
                                .or(progress.warning.as_ref())
                                .cloned()
                                .unwrap_or_default(),
                        ]
                    },
                )
            }
            Self::Status { org, watch: true } => watch(ui, store, org.as_deref()),
            Self::Wait { org } => {
                let rotations = under_way(store, org.as_deref())?;
                let erasures = match org {
                    Some(_) => Vec::new(),
                    None => store.keys().erasures()?,
                };
                if rotations.is_empty() && erasures.is_empty() && !ui.json {
                    return ui.done(&(), "no rotation is under way");
                }
                erasures.iter().try_for_each(|erasure| erase::wait(ui, erasure))?;
                let mut waiting = Vec::new();
                for rotation in &rotations {
                    if wait(ui, store, rotation)? {
                        for certificate in rotation.certificates()? {
                            ui.result(&certificate, &certificate)?;
                        }
                        erase::note_residue(ui, store, rotation.org())?;
                    } else {
                        ui.done(&rotation.progress(), rotation.progress())?;
                        waiting.push(waits_for(rotation));
                    }
                }
                if waiting.is_empty() { Ok(()) } else { Err(Failure::Waits(waiting.join("\n"))) }
            }
            Self::Pause { org } => {
                let rotation = of(store, &org)?;
                rotation.pause()?;
                ui.done(&rotation.progress(), format_args!("the rotation of org {org} rests"))
            }
            Self::Resume { org } => {
                let rotation = of(store, &org)?;
                rotation.resume()?;
                let text = "it goes on whenever the store is open, or by `byokv rotation wait`";
                ui.done(&rotation.progress(), text)
            }
            Self::Throttle(limits) => limits.run(ui, store),
        })
    }
}

fn under_way(store: &Store, org: Option<&str>) -> Result<Vec<Rotation>> {
    Ok(match org {
        Some(org) => store.keys().rotation(org)?.into_iter().collect(),
        None => store.keys().rotations()?,
    })
}

/// Waits a little until the store, which has just been opened, has taken them up, and so knows what
/// they wait for.
fn taken_up(rotations: &[Rotation]) {
    const LONGEST: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(10);

    let start = Instant::now();
    for rotation in rotations {
        while start.elapsed() < LONGEST
            && rotation.progress().phase == Phase::Queued
            && !rotation.progress().paused
            && rotation.wait_timeout(STEP).is_ok_and(|ended| ended.is_none())
        {}
    }
}

fn status(store: &Store, rotation: &Rotation) -> Result<Status> {
    let census = store.keys().census(rotation.org())?;
    let org = store.keys().status(rotation.org())?;
    let current = match (rotation.replaces(), org.versions.last()) {
        (Some(_), Some(newest)) => census.by_version.get(&newest.version),
        _ => census.by_suite.get(&org.suite),
    };
    let records = census.total();
    Ok(Status {
        replaces: rotation.replaces(),
        left: records.saturating_sub(current.copied().unwrap_or_default()),
        records,
        progress: rotation.progress(),
    })
}

/// Bars on a terminal, lines elsewhere, JSON Lines with `--json`.
fn watch(ui: Ui, store: &Store, org: Option<&str>) -> Result {
    let rotations = under_way(store, org)?;
    if rotations.is_empty() && !ui.json {
        return ui::line("no rotation is under way");
    }
    for rotation in &rotations {
        if ui.json {
            loop {
                let ended = match rotation.wait_timeout(Duration::from_millis(500)) {
                    Ok(ended) => ended.is_some(),
                    Err(Error::RetirementAwaited { .. }) => true,
                    Err(error) => return Err(error.into()),
                };
                let progress = rotation.progress();
                ui::object(&progress)?;
                if ended || progress.phase == Phase::Held || progress.paused {
                    break;
                }
                not_suspended(store, rotation)?;
            }
        } else {
            wait(ui, store, rotation)?;
            ui::line(rotation.progress())?;
        }
    }
    Ok(())
}

/// Waits for the end, with progress on stderr. Returns false if the org's policy holds the old key,
/// or the rotation is paused.
fn wait(ui: Ui, store: &Store, rotation: &Rotation) -> Result<bool> {
    let mut bar = ui.bar();
    loop {
        let progress = rotation.progress();
        bar.show(&progress);
        match rotation.wait_timeout(Duration::from_millis(100)) {
            Ok(Some(_)) => return Ok(true),
            Err(Error::RetirementAwaited { .. }) => return Ok(false),
            Ok(None) if progress.phase == Phase::Held || progress.paused => return Ok(false),
            Ok(None) => not_suspended(store, rotation)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// What lets a rotation go on that [`wait`] did not see end.
fn waits_for(rotation: &Rotation) -> String {
    let org = quoted(rotation.org());
    match rotation.progress().paused {
        true => format!("it is paused; `byokv rotation resume {org}` lets it go on"),
        false => format!(
            "nothing is left under the old key, which is held as the org's policy wants it; \
             `byokv key retire {org}` lets it go"
        ),
    }
}

/// While we have the store open nobody can give a suspended key back, so the wait would have no
/// end.
fn not_suspended(store: &Store, rotation: &Rotation) -> Result {
    if rotation.progress().phase != Phase::Waiting {
        return Ok(());
    }
    let org = store.keys().status(rotation.org())?;
    match org.versions.iter().rfind(|key| key.state == KeyState::Suspended) {
        Some(key) => {
            Err(Failure::Store(Error::KeySuspended { org: org.name, version: key.version }))
        }
        None => Ok(()),
    }
}

/// The end of a command that began a rotation.
pub(super) fn begun(ui: Ui, store: &Store, rotation: &Rotation, no_wait: bool) -> Result {
    let org = rotation.org();
    let active = store.keys().status(org)?.versions.pop();
    // The last one is of the key that was replaced just now; older ones may end with it.
    let json = |certificates: &[Certificate]| {
        json!({
            "org": org,
            "active": active,
            "replaces": rotation.replaces(),
            "certificate": certificates.last(),
            "certificates": certificates,
        })
    };
    if no_wait {
        return ui.done(
            &json(&[]),
            "new values use it from now on; records from before are re-encrypted whenever the \
             store is open, or by `byokv rotation wait`",
        );
    }
    let ended = wait(ui, store, rotation).inspect_err(|_| {
        // What was begun is done all the same.
        let _ = ui.done(&json(&[]), "it was begun, and goes on as soon as it can; it waits now:");
    })?;
    match ended {
        true => {
            let certificates = rotation.certificates()?;
            let text: Vec<_> = certificates.iter().map(ToString::to_string).collect();
            ui.result(&json(&certificates), text.join("\n"))?;
            erase::note_residue(ui, store, org)
        }
        false if rotation.progress().paused => {
            ui.done(&json(&[]), "new values use it from now on")?;
            Err(Failure::Waits(waits_for(rotation)))
        }
        // The policy wants it so.
        false => ui.done(&json(&[]), waits_for(rotation)),
    }
}
