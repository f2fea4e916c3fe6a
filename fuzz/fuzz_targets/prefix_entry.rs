//! See `engine::fuzzing::prefix_entry`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::fuzzing::prefix_entry(bytes));
