//! Sealing, opening and sealing anew alone, by size and suite, beside the same cipher of the same
//! crate called once with a nonce of 96 bits (XChaCha20-Poly1305: of 192):
//! `cargo bench --bench envelope`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit, KeySizeUser};
use byokv::fuzzing::Sealer;
use byokv::{KeyMaterial, Suite};
use chacha20poly1305::XChaCha20Poly1305;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NAME: &[u8] = b"clusters/0000007";
const SIZES: [usize; 6] = [16, 128, 1 << 10, 4 << 10, 64 << 10, 1 << 20];

/// The cipher alone, into a buffer of its own each time, as the envelope.
fn cipher<C: AeadInOut + KeyInit + KeySizeUser>(c: &mut Criterion, suite: Suite, size: usize) {
    let cipher = C::new_from_slice(&[7; 32]).unwrap();
    let nonce = Default::default();
    let value = vec![7; size];
    let mut sealed = value.clone();
    let tag = cipher.encrypt_inout_detached(&nonce, NAME, (&mut *sealed).into()).unwrap();
    let mut group = c.benchmark_group(format!("{suite}, {size} B"));
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function(BenchmarkId::new("seal", "cipher alone"), |b| {
        b.iter(|| {
            let mut buffer = black_box(&value).clone();
            cipher.encrypt_inout_detached(&nonce, NAME, (&mut *buffer).into()).unwrap();
            buffer
        });
    });
    group.bench_function(BenchmarkId::new("open", "cipher alone"), |b| {
        b.iter(|| {
            let mut buffer = black_box(&sealed).clone();
            cipher.decrypt_inout_detached(&nonce, NAME, (&mut *buffer).into(), &tag).unwrap();
            buffer
        });
    });
    group.finish();
}

fn envelope(c: &mut Criterion, suite: Suite, size: usize) {
    let [old, new] =
        [(); 2].map(|()| Sealer::new(suite, &KeyMaterial::generate().unwrap()).unwrap());
    let value = vec![7; size];
    let sealed = old.seal(NAME, &value).unwrap();
    assert_eq!(old.open(NAME, &sealed).as_deref(), Some(&*value));
    let mut group = c.benchmark_group(format!("{suite}, {size} B"));
    group.throughput(Throughput::Bytes(size as u64));
    group.bench_function(BenchmarkId::new("seal", "byokv"), |b| {
        b.iter(|| old.seal(NAME, black_box(&value)).unwrap());
    });
    group.bench_function(BenchmarkId::new("open", "byokv"), |b| {
        b.iter(|| old.open(NAME, black_box(&sealed)).unwrap());
    });
    group.bench_function(BenchmarkId::new("seal anew", "byokv"), |b| {
        b.iter(|| new.reseal(&old, NAME, black_box(&sealed)).unwrap().unwrap());
    });
    group.finish();
}

fn by_size_and_suite(c: &mut Criterion) {
    for size in SIZES {
        cipher::<Aes256Gcm>(c, Suite::Xaes256Gcm, size);
        envelope(c, Suite::Xaes256Gcm, size);
        cipher::<XChaCha20Poly1305>(c, Suite::XChaCha20Poly1305, size);
        envelope(c, Suite::XChaCha20Poly1305, size);
        // Its call alone has no trait in common with the others.
        envelope(c, Suite::Aegis256, size);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = by_size_and_suite
}
criterion_main!(benches);
