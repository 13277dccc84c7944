#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis::internals::redis_before(data));
