//! Recorded routing, and a simulation on whatever of it can be read.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(trace) = experts::Trace::read(bytes) {
        experts::simulate_belady(&trace, 3, 0);
    }
});
