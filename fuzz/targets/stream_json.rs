//! libFuzzer's way into `stream_checks::json`. Knows nothing else.
#![no_main]

#[path = "../stream_checks.rs"]
#[allow(dead_code)]
mod stream_checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| stream_checks::json(data));
