#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tcpwatch::fuzz::web_config(bytes));
