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

# The gate under every interleaving that loom finds.
loom:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib gate::model

# The tests with larger counts: about ten times as many damaged logs, a million XAES vectors.
torture:
    BYOKV_TORTURE=10 cargo test --release
