//! The target `manifest`, for libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| shoal_fuzz::manifest(data));
