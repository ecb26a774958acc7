//! The engine beside bare sled in one run: `cargo bench --bench engine`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 10_000;

fn name(i: usize) -> [u8; 16] {
    let mut name = *b"clusters/0000000";
    name[9..].copy_from_slice(format!("{:07}", i % RECORDS).as_bytes());
    name
}

fn reads_and_writes(c: &mut Criterion) {
    for size in [128, 1024, 65536] {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let store = Store::open(dir.path().join("byokv"), root).unwrap();
        let org = store.create_org("acme", OrgPolicy::platform_only()).unwrap();
        let sled = sled::Config::new()
            .path(dir.path().join("sled"))
            .cache_capacity(128 << 20)
            .open()
            .unwrap();
        let value = vec![7; size];
        let records = RECORDS.min((256 << 20) / size);
        for i in 0..records {
            org.put(name(i), &value).unwrap();
            sled.insert(name(i), &value[..]).unwrap();
        }
        let mut i = 0;
        let mut next = || {
            i += 7919;
            name(i % records)
        };
        let mut group = c.benchmark_group("get");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("byokv", size), |b| {
            b.iter(|| black_box(org.get(next()).unwrap()));
        });
        group.bench_function(BenchmarkId::new("sled", size), |b| {
            b.iter(|| black_box(sled.get(next()).unwrap()));
        });
        group.finish();
        let mut group = c.benchmark_group("put");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("byokv", size), |b| {
            b.iter(|| org.put(next(), &value).unwrap());
        });
        group.bench_function(BenchmarkId::new("sled", size), |b| {
            b.iter(|| sled.insert(next(), &value[..]).unwrap());
        });
        group.finish();
        if size == 1024 {
            let mut group = c.benchmark_group("scan");
            group.throughput(Throughput::Elements(records as u64));
            group.sample_size(20);
            group.bench_function("byokv", |b| b.iter(|| org.scan("").count()));
            group.bench_function("sled", |b| b.iter(|| sled.iter().count()));
            group.finish();
            let mut group = c.benchmark_group("durable put");
            group.sample_size(20);
            let durable = org.durable();
            group.bench_function("byokv", |b| b.iter(|| durable.put(next(), &value).unwrap()));
            group.bench_function("sled", |b| {
                b.iter(|| {
                    sled.insert(next(), &value[..]).unwrap();
                    sled.flush().unwrap();
                });
            });
            group.finish();
            let mut group = c.benchmark_group("rotation");
            group.throughput(Throughput::Elements(records as u64));
            group.sample_size(10);
            group.bench_function("byokv", |b| {
                b.iter(|| store.keys().rotate_platform_key("acme").unwrap().wait().unwrap());
            });
            group.finish();
        }
    }
}

criterion_group!(benches, reads_and_writes);
criterion_main!(benches);
