test:
    cargo test

ci:
    bash .ci/run

doc:
    cargo doc --no-deps --all-features --open

loom:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --lib gate::model
