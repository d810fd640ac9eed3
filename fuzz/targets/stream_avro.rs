//! libFuzzer's way into `stream_checks::avro`. Knows nothing else.
#![no_main]

#[path = "../stream_checks.rs"]
#[allow(dead_code)]
mod stream_checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| stream_checks::avro(data));
