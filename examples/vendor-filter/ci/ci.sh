#!/bin/sh
# What a vendor's CI runs; copy it. From the crate's folder, no arguments. About 10 seconds on two cores after the build.
# VAIO_BUDGET=nightly ci/ci.sh is the same with fifty times the runs.
set -eu
cd "$(dirname "$0")/.."

cargo fmt --check
cargo clippy --all-targets --locked -- -D warnings
cargo test --locked
# What a failure leaves, to be kept as artifacts: target/vaio/ (plan, timeline as text and as a page, event log).
