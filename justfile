test:
    cargo test

ci:
    bash .ci/run

doc:
    cargo doc --no-deps --all-features --open

bench:
    cargo bench

fuzz:
    fuzz/run

# Breaks each invariant on purpose and shows that a test fails.
breaks *words:
    python3 tests/breaks.py {{words}}

# What one of the shards of mutants leaves unseen; needs cargo-mutants.
mutants shard="0/8":
    CARGO_PROFILE_DEV_DEBUG=0 cargo mutants --output target --sharding round-robin --shard {{shard}}

# The gate under every interleaving that loom finds, `all_of_it` of those with at most three
# preemptions, or LOOM_MAX_PREEMPTIONS.
loom:
    tests/loom/run

# The tests with larger counts (1,000 kills, 20,000 power cuts, 1,000 damaged files, every failing
# call, 1,000 schedules, a million XAES vectors), and what each tried and lost. About an hour.
torture:
    BYOKV_TORTURE=10 cargo test --no-fail-fast -- --nocapture > target/torture.log 2>&1 || (tail -50 target/torture.log; exit 1)
    grep -h "^torture: " target/torture.log

# Licences, advisories and duplicates; needs cargo-deny, and GitHub for its database.
deny:
    cargo deny check

# byokv beside other engines, in a workspace of its own; its tables go into docs/performance.md.
peers:
    cd benches/peers && cargo run --release -- --write ../../docs

# What readers and writers notice of a rotation; table and plot go into docs/.
latency:
    cargo bench --bench latency -- --write docs

# The feature `fips` on aws-lc's FIPS module; needs cmake and Go.
fips:
    tests/fips/run

# The library and the tool with the smallest versions that Cargo.toml asks for. The option of Cargo's
# is not stable yet, so this tells the stable compiler to take it.
minimal-versions:
    .ci/minimal-versions
