//! Fuzzing under plain `cargo test`: a corpus is replayed, then inputs made of it by chance are tried.
//!
//! The chance is the same in every run unless `$COOPERAGE_FUZZ_SEED` says otherwise;
//! `$COOPERAGE_FUZZ_CASES` says how many inputs are tried instead of the usual few. An input that makes
//! a target panic, take too much memory or never end is kept in the temporary directory and named:
//! with the fault mended, it belongs into the corpus.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What an input may make a target allocate at most, in bytes, beyond what was allocated before.
const MEMORY_BYTES_MAX: usize = 256 << 20;
/// An input that takes so long never ends.
const NEVER: Duration = Duration::from_secs(120);
/// The longest input made by chance, in bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// The system's allocator, which counts: a fuzz test has it as `#[global_allocator]`.
pub struct CountingAllocator;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static ALLOCATED_MOST: AtomicUsize = AtomicUsize::new(0);
/// One target after the other, so that memory is counted for whom it belongs to.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: everything is the system allocator's; only counters are touched beside it.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        ALLOCATED_MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A target with its corpus.
pub struct Fuzz {
    name: String,
    corpus: Vec<(PathBuf, Vec<u8>)>,
    cases: u64,
    mend: Box<dyn Fn(&mut Vec<u8>)>,
}

impl Fuzz {
    /// A corpus, every file in a directory, of which that many inputs are made by chance.
    ///
    /// Panics if there is no corpus.
    pub fn new(corpus: impl AsRef<Path>, cases: u64) -> Fuzz {
        let directory = corpus.as_ref();
        let entries = std::fs::read_dir(directory)
            .unwrap_or_else(|error| panic!("corpus {}: {error}", directory.display()));
        let mut corpus: Vec<(PathBuf, Vec<u8>)> = entries
            .map(|entry| entry.expect("list the corpus").path())
            .map(|path| {
                let bytes = std::fs::read(&path).expect("read the corpus");
                (path, bytes)
            })
            .collect();
        assert!(!corpus.is_empty(), "no corpus in {}", directory.display());
        corpus.sort();
        let name = directory.file_name().unwrap_or_default();
        Fuzz {
            name: name.to_string_lossy().into_owned(),
            corpus,
            cases: from_env("COOPERAGE_FUZZ_CASES").unwrap_or(cases),
            mend: Box::new(|_| {}),
        }
    }

    /// The same, where every input made by chance is mended before it is tried: checksums and lengths
    /// put right, without which nothing would get past the first test.
    #[must_use]
    pub fn mended(mut self, mend: impl Fn(&mut Vec<u8>) + 'static) -> Fuzz {
        self.mend = Box::new(mend);
        self
    }

    /// Tries the target. Panics, naming the input, if it panics, takes too much memory or does not end.
    pub fn run(self, target: impl Fn(&[u8])) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = Watch::begin(&self.name);
        for (path, bytes) in &self.corpus {
            self.try_one(&watch, bytes, &target, Some(path));
        }
        let seed = from_env("COOPERAGE_FUZZ_SEED").unwrap_or(0x5eed);
        let mut chance = Chance::new(seed);
        for _ in 0..self.cases {
            let mut input = self.make(&mut chance);
            (self.mend)(&mut input);
            self.try_one(&watch, &input, &target, None);
        }
    }

    fn try_one(&self, watch: &Watch, input: &[u8], target: &impl Fn(&[u8]), path: Option<&Path>) {
        watch.now_at(Some(input));
        let before = ALLOCATED.load(Ordering::Relaxed);
        ALLOCATED_MOST.store(before, Ordering::Relaxed);
        let ended = catch_unwind(AssertUnwindSafe(|| target(input)));
        watch.now_at(None);
        let most = ALLOCATED_MOST
            .load(Ordering::Relaxed)
            .saturating_sub(before);
        let fault = match ended {
            Err(_) => "panics".to_owned(),
            Ok(()) if most > MEMORY_BYTES_MAX => format!("takes {most} bytes of memory"),
            Ok(()) => return,
        };
        let kept = match path {
            Some(path) => path.to_owned(),
            None => keep(&self.name, input),
        };
        panic!("{}: {} {fault}", self.name, kept.display());
    }

    /// An input: some of the corpus changed in a few places, or nothing but chance.
    fn make(&self, chance: &mut Chance) -> Vec<u8> {
        if chance.below(16) == 0 {
            let length = chance.below(512);
            return (0..length).map(|_| chance.byte()).collect();
        }
        let mut input = self.pick(chance).to_vec();
        for _ in 0..=chance.below(6) {
            self.change(&mut input, chance);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn pick(&self, chance: &mut Chance) -> &[u8] {
        &self.corpus[chance.below(self.corpus.len())].1
    }

    fn change(&self, input: &mut Vec<u8>, chance: &mut Chance) {
        let at = chance.below(input.len() + 1);
        let rest = input.len() - at;
        let length = chance.below(rest.min(64) + 1);
        match chance.below(7) {
            0 if rest > 0 => input[at] ^= 1 << chance.below(8),
            1 if rest > 0 => input[at] = *chance.of(b"\0\x01\x7f\x80\xff /.\"'\n0"),
            2 => drop(input.drain(at..at + length)),
            3 => {
                let copy = input[at..at + length].to_vec();
                input.splice(at..at, copy);
            }
            4 => {
                let numbers = [0, 1, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
                let number = *chance.of(&numbers);
                let bytes = match chance.below(2) {
                    0 => number.to_le_bytes(),
                    _ => number.to_be_bytes(),
                };
                input.splice(at..at + length.min(8), bytes);
            }
            5 => {
                let other = self.pick(chance).to_vec();
                let from = chance.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let bytes: Vec<u8> = (0..chance.below(16)).map(|_| chance.byte()).collect();
                input.splice(at..at, bytes);
            }
        }
    }
}

/// Ends the process when an input takes for ever.
struct Watch(Arc<Mutex<Option<(Instant, Vec<u8>)>>>);

impl Watch {
    fn begin(name: &str) -> Watch {
        let now = Arc::new(Mutex::new(None::<(Instant, Vec<u8>)>));
        let (name, seen) = (name.to_owned(), Arc::downgrade(&now));
        std::thread::spawn(move || {
            while let Some(now) = seen.upgrade() {
                let slow = now.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((_, input)) = slow.filter(|(since, _)| since.elapsed() > NEVER) {
                    let kept = keep(&name, &input);
                    let text = format!("{name}: {} never ends\n", kept.display());
                    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
                    std::process::abort();
                }
                drop(now);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Watch(now)
    }

    fn now_at(&self, input: Option<&[u8]>) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = input.map(|input| (Instant::now(), input.to_vec()));
    }
}

/// Xorshift: the same numbers for the same seed on every machine.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Chance {
        Chance(seed.max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 11) % (end.max(1) as u64)) as usize
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 32) as u8
    }

    fn of<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        &all[self.below(all.len())]
    }
}

fn keep(name: &str, input: &[u8]) -> PathBuf {
    let number = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{number:016x}"));
    // Without it the report is still a report.
    let _ = std::fs::write(&path, input);
    path
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_panics_is_found_and_its_input_kept() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("seed"), b"some input").unwrap();
        let found = catch_unwind(|| {
            Fuzz::new(directory.path(), 10_000).run(|input| {
                assert!(!input.contains(&0xff), "no such byte");
            });
        });
        let said = found.unwrap_err();
        let said = said.downcast_ref::<String>().unwrap();
        let path = said.split(' ').nth(1).unwrap();
        assert!(std::fs::read(path).unwrap().contains(&0xff), "{said}");
        std::fs::remove_file(path).unwrap();
        let mut ran = 0;
        let counted = std::cell::RefCell::new(&mut ran);
        Fuzz::new(directory.path(), 3).run(|_| **counted.borrow_mut() += 1);
        assert_eq!(ran, 4);
    }
}
