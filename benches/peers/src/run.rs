//! One round: every engine from an empty directory to the end of its re-encryption, in slices that
//! take turns.

use std::fs;
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{Data, Engine, Peer, Result, STAMP};

/// What is measured, in the order in which it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    Load,
    Put,
    Get,
    Get4,
    Scan,
    Durable,
    Durable8,
    ReEncrypt,
    ReEncryptDurable,
}

impl Column {
    pub(crate) const ALL: [Self; 9] = [
        Self::Load,
        Self::Put,
        Self::Get,
        Self::Get4,
        Self::Scan,
        Self::Durable,
        Self::Durable8,
        Self::ReEncrypt,
        Self::ReEncryptDurable,
    ];

    /// Into how many turns a round divides it.
    fn turns(self) -> usize {
        match self {
            Self::Load | Self::ReEncrypt | Self::ReEncryptDurable => 1,
            Self::Scan => 3,
            _ => 8,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Put => "put",
            Self::Get => "get",
            Self::Get4 => "get ×4",
            Self::Scan => "scan",
            Self::Durable => "durable put",
            Self::Durable8 => "durable put ×8",
            Self::ReEncrypt => "re-encrypt all",
            Self::ReEncryptDurable => "… durable",
        }
    }
}

#[derive(Default, Clone)]
pub(crate) struct Figures {
    /// Records per second, a figure per round, by column; not a number where the engine failed.
    pub(crate) speed: [Vec<f64>; Column::ALL.len()],
    /// Bytes on disk: after the load, after the re-encryption, after the engine's clean-up.
    pub(crate) space: [Vec<f64>; 3],
    /// Where it failed, and how.
    pub(crate) failures: Vec<String>,
}

pub(crate) struct Settings {
    pub(crate) slice: Duration,
    pub(crate) cache_bytes: usize,
}

pub(crate) fn round(
    number: usize,
    peers: &[&Peer],
    data: &Data,
    settings: &Settings,
    figures: &mut [Figures],
) -> Result<()> {
    let dir = tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target"))?;
    let mut engines = Vec::new();
    for (i, peer) in peers.iter().enumerate() {
        let dir = dir.path().join(i.to_string());
        fs::create_dir(&dir)?;
        engines.push(Some((peer.open)(&dir, settings.cache_bytes)?));
    }
    for column in Column::ALL {
        let mut done = vec![(0.0, 0.0); engines.len()];
        for turn in 0..column.turns() {
            for place in 0..engines.len() {
                let i = (place + turn + number) % engines.len();
                let dir = dir.path().join(i.to_string());
                let turn = turn + number * column.turns();
                let Some(engine) = &mut engines[i] else { continue };
                let one = Turn { column, data, settings, turn };
                match one.take(&mut **engine, &dir, &mut figures[i]) {
                    Ok((records, seconds)) => {
                        done[i].0 += records;
                        done[i].1 += seconds;
                    }
                    // The others go on without it, until the next round.
                    Err(error) => {
                        let failure = format!("round {}, {}: {error}", number + 1, column.title());
                        eprintln!("{}: {failure}", peers[i].name);
                        figures[i].failures.push(failure);
                        engines[i] = None;
                    }
                }
            }
        }
        for (i, (records, seconds)) in done.into_iter().enumerate() {
            let speed = &mut figures[i].speed[column as usize];
            if engines[i].is_none() {
                speed.resize(number + 1, f64::NAN);
            } else if seconds > 0.0 {
                speed.push(records / seconds);
            }
        }
    }
    Ok(())
}

/// What one engine does before the next one has its turn.
struct Turn<'a> {
    column: Column,
    data: &'a Data,
    settings: &'a Settings,
    turn: usize,
}

impl Turn<'_> {
    /// Records and seconds.
    fn take(
        &self,
        engine: &mut dyn Engine,
        dir: &Path,
        figures: &mut Figures,
    ) -> Result<(f64, f64)> {
        let Self { column, data, settings, .. } = *self;
        #[allow(clippy::cast_precision_loss)]
        let all = data.count as f64;
        let durable = settings.slice * 4;
        match column {
            Column::Load => {
                let began = Instant::now();
                engine.load(data)?;
                let seconds = began.elapsed().as_secs_f64();
                engine.settle()?;
                figures.space[0].push(bytes_on_disk(dir)?);
                data.check(&mut *engine.session(false)?)?;
                Ok((all, seconds))
            }
            Column::Put => self.slice(engine, 1, Some(false), settings.slice),
            Column::Get => self.slice(engine, 1, None, settings.slice),
            Column::Get4 => self.slice(engine, 4, None, settings.slice),
            Column::Scan => {
                let mut session = engine.session(false)?;
                let began = Instant::now();
                session.scan(&mut |name, value| {
                    black_box((name, value));
                })?;
                Ok((all, began.elapsed().as_secs_f64()))
            }
            Column::Durable => self.slice(engine, 1, Some(true), durable),
            Column::Durable8 => self.slice(engine, 8, Some(true), durable),
            Column::ReEncrypt => {
                let took = engine.re_encrypt(data)?;
                engine.settle()?;
                // Who lost records was quick for nothing.
                data.check(&mut *engine.session(false)?)?;
                let durable = all / took.durable.as_secs_f64();
                figures.speed[Column::ReEncryptDurable as usize].push(durable);
                figures.space[1].push(bytes_on_disk(dir)?);
                if engine.clean_up()? {
                    engine.settle()?;
                    figures.space[2].push(bytes_on_disk(dir)?);
                    data.check(&mut *engine.session(false)?)?;
                }
                Ok((all, took.replaced.as_secs_f64()))
            }
            Column::ReEncryptDurable => Ok((0.0, 0.0)),
        }
    }

    /// Operations of all threads together, and seconds. Each thread walks over the records in an
    /// order of no pattern, from a place of its own. `put`: writes, durable ones if true.
    fn slice(
        &self,
        engine: &mut dyn Engine,
        threads: usize,
        put: Option<bool>,
        time: Duration,
    ) -> Result<(f64, f64)> {
        let start = Barrier::new(threads);
        let (engine_of_all, data) = (&*engine, self.data);
        let work = |thread: usize| -> Result<(u64, Duration)> {
            let session = engine_of_all.session(put == Some(true));
            start.wait();
            let mut session = session?;
            let (mut done, began) = (0u64, Instant::now());
            let mut at = self.turn * 7919 + thread * data.count / threads;
            let mut value = vec![0; data.size];
            while done % 8 != 0 && put != Some(true) || began.elapsed() < time {
                let number = data.shuffled[at % data.count];
                let name = data.name(number);
                if put.is_some() {
                    let stamp = WRITES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                    value.copy_from_slice(data.value(number));
                    value[..STAMP].copy_from_slice(&stamp);
                    session.put(&name, &value)?;
                } else {
                    session.get(&name, &mut |value| {
                        black_box(value);
                    })?;
                }
                at += 1;
                done += 1;
            }
            Ok((done, began.elapsed()))
        };
        let (done, longest) = std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().try_fold((0, Duration::ZERO), |(sum, longest), thread| {
                let (done, took) = thread.join().map_err(|_| "a thread panicked")??;
                Result::Ok((sum + done, took.max(longest)))
            })
        })?;
        if put.is_some() {
            engine.settle()?;
        }
        #[allow(clippy::cast_precision_loss)]
        Ok((done as f64, longest.as_secs_f64()))
    }
}

/// Stamps values.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Blocks that the files occupy, not their nominal length.
fn bytes_on_disk(dir: &Path) -> Result<f64> {
    let mut blocks = 0;
    for entry in walkdir::WalkDir::new(dir) {
        blocks += entry?.metadata()?.blocks();
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(blocks as f64 * 512.0)
}
