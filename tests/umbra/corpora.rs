//! What fuzzing has found of interest is passed to the same entry points again in every test run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use umbra::fuzzing::TARGETS;

/// The whole of `fuzz/corpus` at most, bytes: it is part of the source.
const CORPORA_MAX: u64 = 300 << 10;

/// The system's allocator, which remembers the largest request of each thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

impl Watched {
    fn note(size: usize) {
        // A thread that is ending has nobody to tell.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    }
}

// SAFETY: every call is passed on as it is; what is done besides allocates nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size);
        // SAFETY: as our caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
}

fn names(path: &str) -> BTreeSet<OsString> {
    fs::read_dir(folder(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn what_fuzzing_found_neither_panics_nor_takes_more_memory_than_stated() {
    let mut failures = Vec::new();
    let mut size = 0;
    for target in &TARGETS {
        let path = format!("corpus/{}", target.name);
        let files = names(&path);
        assert!(!files.is_empty(), "there is no input in {path}");
        for file in files {
            let input = fs::read(folder(&path).join(&file)).unwrap();
            size += input.len() as u64;
            LARGEST.set(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
            let (largest, most) = (LARGEST.get(), target.allocation_max(input.len()));
            let valid = file.as_encoded_bytes().starts_with(b"valid-");
            if outcome.is_err() {
                failures.push(format!("{path}/{}: panics", file.display()));
            } else if valid && !matches!(outcome, Ok(true)) {
                failures.push(format!("{path}/{}: refused: make the valid ones anew (fuzz/README.md)", file.display()));
            } else if largest > most {
                failures.push(format!("{path}/{}: takes {largest} bytes at once, {most} are allowed", file.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(size <= CORPORA_MAX, "the corpora have {size} bytes: minimise them (fuzz/README.md)");
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<OsString> = TARGETS.iter().map(|target| target.name.into()).collect();
    assert_eq!(names("corpus"), targets);
    let programs = TARGETS.iter().map(|target| format!("{}.rs", target.name).into()).collect();
    assert_eq!(names("fuzz_targets"), programs);
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for target in &TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{}.rs\"", target.name)), "{}", target.name);
        let program = fs::read_to_string(folder("fuzz_targets").join(format!("{}.rs", target.name))).unwrap();
        assert!(program.contains(&format!("umbra::fuzzing::{}(bytes)", target.name)), "{}", target.name);
    }
}
