//! Readers and writers that work while keys rotate, and what they remember of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use byokv::{Org, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What every name must hold: the model that the store is checked against.
pub(crate) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A generated credential: random-looking, the same for the same number and version.
pub(crate) fn credential(number: u64, version: u64) -> Vec<u8> {
    let seed = Sha256::digest([number.to_be_bytes(), version.to_be_bytes()].concat());
    let len = 32 + usize::from(u16::from_be_bytes([seed[0], seed[1]])) % 1000;
    seed.iter().copied().cycle().take(len).collect()
}

pub(crate) fn name(number: u64) -> Vec<u8> {
    format!("clusters/{number:07}/token").into_bytes()
}

#[derive(Clone, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

#[derive(Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) reads: Latency,
    pub(crate) writes: Latency,
    pub(crate) errors: u64,
}

/// Runs `threads` threads, each reader and writer of its own numbers, until `until` is true.
/// Each write that was acknowledged is in the model. `told` hears of each write before and
/// after it.
pub(crate) fn work(
    org: &Org,
    model: &Mutex<Model>,
    numbers: u64,
    threads: u64,
    round: u64,
    until: impl Fn() -> bool,
    told: Option<&Mutex<std::io::Stdout>>,
) -> Result<Figures> {
    let stop = AtomicBool::new(false);
    let errors = AtomicU64::new(0);
    let merged = Mutex::new((histogram(), histogram()));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (stop, errors, merged) = (&stop, &errors, &merged);
            scope.spawn(move || {
                let (mut reads, mut writes) = (histogram(), histogram());
                let mut step = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    step += 1;
                    // A walk over the numbers of this thread, in an order of no pattern.
                    let number = (step.wrapping_mul(0x9E37_79B9) % numbers.max(threads)) / threads
                        * threads
                        + thread;
                    if number >= numbers {
                        continue;
                    }
                    let name = name(number);
                    let expected = lock(model).get(&name).cloned();
                    let began = Instant::now();
                    let read = org.get(&name);
                    let _ = reads.record(nanos(began.elapsed()));
                    let right = read.is_ok_and(|value| value.as_deref() == expected.as_deref());
                    errors.fetch_add(u64::from(!right), Ordering::Relaxed);
                    if step.is_multiple_of(2) {
                        continue;
                    }
                    let version = round * 1_000_000_000 + step;
                    let new = (step % 16 != 1).then(|| credential(number, version));
                    tell(told, "start", number, version, new.is_some());
                    let began = Instant::now();
                    let written = match &new {
                        Some(value) => org.put(&name, value),
                        None => org.delete(&name),
                    };
                    let _ = writes.record(nanos(began.elapsed()));
                    match written {
                        Ok(()) => {
                            tell(told, "ack", number, version, new.is_some());
                            match new {
                                Some(value) => lock(model).insert(name, value),
                                None => lock(model).remove(&name),
                            };
                        }
                        Err(_) => {
                            errors.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                let mut merged = lock(merged);
                let _ = merged.0.add(&reads);
                let _ = merged.1.add(&writes);
            });
        }
        let (_alive, tick) = std::sync::mpsc::channel::<()>();
        while !until() {
            let _ = tick.recv_timeout(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let merged = lock(&merged);
    Ok(Figures {
        reads: latency(&merged.0),
        writes: latency(&merged.1),
        errors: errors.load(Ordering::Relaxed),
    })
}

/// One line for the parent process, whole and flushed.
fn tell(
    told: Option<&Mutex<std::io::Stdout>>,
    what: &str,
    number: u64,
    version: u64,
    is_put: bool,
) {
    if let Some(out) = told {
        let mut out = lock(out);
        let _ = writeln!(out, "{what} {number} {version} {}", u8::from(is_put));
        let _ = out.flush();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_from(
        &Histogram::<u64>::new(3)
            .unwrap_or_else(|_| unreachable!("three significant digits are allowed")),
    );
    histogram.auto(true);
    histogram
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss)]
fn latency(of: &Histogram<u64>) -> Latency {
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    Latency {
        count: of.len(),
        p50_us: micros(of.value_at_quantile(0.5)),
        p99_us: micros(of.value_at_quantile(0.99)),
        max_us: micros(of.max()),
    }
}
