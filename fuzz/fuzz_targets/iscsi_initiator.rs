#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    umbra::fuzzing::iscsi_initiator(bytes);
});
