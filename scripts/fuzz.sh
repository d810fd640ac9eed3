#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ one after the other: `make fuzz`.
#
# FUZZ_SECONDS   how long each runs (default 60)
# FUZZ_TARGETS   which ones (default all)
#
# The corpus stays in fuzz/corpus between runs; it begins with the seeds of the regression test
# (src/server/tests/it/fuzz.rs, src/ingest/tests/it/fuzz.rs), where every finding gets a seed of its own. Findings are in fuzz/artifacts: as long
# as there is one, this fails and names it. cargo-fuzz comes into LARDER_CACHE (default ~/.cache/larder).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CACHE="${LARDER_CACHE:-$HOME/.cache/larder}"
CARGO_FUZZ=0.13.2
SECONDS_EACH="${FUZZ_SECONDS:-60}"
read -ra targets <<<"${FUZZ_TARGETS:-body entity_key row stream_avro stream_json stream_protobuf value window_state}"

tools="$CACHE/cargo-fuzz-$CARGO_FUZZ"
if [[ ! -x "$tools/bin/cargo-fuzz" ]]; then
    echo "fuzz: compiling cargo-fuzz $CARGO_FUZZ into $tools (once)"
    CARGO_TARGET_DIR="$CACHE/cargo-fuzz-build" RUSTFLAGS='' \
        cargo install -q --locked --root "$tools" "cargo-fuzz@$CARGO_FUZZ"
    rm -rf "$CACHE/cargo-fuzz-build"
fi

# what `cargo test` checks, to begin with
LARDER_FUZZ_CORPUS="$PWD/fuzz/corpus" cargo test -q --locked -p server -p ingest --test it the_seeds_hold

# libFuzzer needs two compiler flags that a stable compiler keeps behind this switch, and no sanitizer: none of our
# crates has unsafe code.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="${FUZZ_TARGET_DIR:-$PWD/fuzz/target}" PATH="$tools/bin:$PATH"
cargo fetch -q --locked --manifest-path fuzz/Cargo.toml
cargo fuzz build --sanitizer none
mkdir -p fuzz/artifacts

for target in "${targets[@]}"; do
    echo "fuzz: $target, ${SECONDS_EACH} s"
    cargo fuzz run --sanitizer none "$target" -- -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -verbosity=1 >"fuzz/artifacts/$target.log" 2>&1 || true
    grep -aE '^#[0-9]+.*(INITED|DONE)|SUMMARY|panicked at|^stat::(number_of_executed_units|average_exec)' \
        "fuzz/artifacts/$target.log" || { tail -20 "fuzz/artifacts/$target.log"; exit 1; }
done

mapfile -t findings < <(find fuzz/artifacts -mindepth 2 -type f | sort)
if ((${#findings[@]})); then
    printf 'fuzz: a finding: %s\n' "${findings[@]}"
    echo "fuzz: mend it, add it to the seeds of the regression test, and remove the file"
    exit 1
fi
echo "fuzz: nothing found"
