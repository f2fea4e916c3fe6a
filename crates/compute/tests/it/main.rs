//! Integration tests of the backends: every operation of the CPU backend, for all instructions that
//! this machine has and several numbers of threads, against the reference; and bit for bit against
//! itself when work is cut differently.

mod codes;
mod layers;
mod mixers;
mod products;
mod support;

/// Where a script knows what the machine has, no version of the kernels goes untested unnoticed.
#[test]
fn what_is_expected_is_available() {
    if let Ok(expected) = std::env::var("FLASH_MOE_EXPECTED_ISAS") {
        let available: Vec<&str> =
            compute::Isa::available().into_iter().map(compute::Isa::name).collect();
        assert_eq!(available.join(","), expected);
    }
}
