//! Keeping what the process takes of memory near what it uses.
//!
//! glibc gives each thread that finds the others' heaps busy a heap of its own, up to eight for each
//! processor, and raises the size from which blocks are mapped singly whenever a large one is freed.
//! A server whose threads come and go with its builds then grows for hours without keeping anything.
//! Memory in use is not touched by any of this. Other C libraries are left as they are.

/// Most heaps. Threads have caches of their own before them.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 2;
/// Blocks from this size on, in bytes, are mapped singly and so given back when they are freed.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 128 << 10;
/// How much free memory at the end of a heap is kept, in bytes.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: libc::c_int = 1 << 20;

/// Sets the limits; to be called before the process has threads.
pub(crate) fn limit() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, HEAPS_MAX),
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX),
    ] {
        // SAFETY: the call changes only how the allocator decides; that it refuses does no harm.
        let taken = unsafe { libc::mallopt(parameter, value) };
        if taken == 0 {
            tracing::debug!(parameter, value, "the allocator did not take a limit");
        }
    }
}

/// Gives free memory back to the kernel. Blocks for some milliseconds.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no preconditions and touches only the allocator's free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #[test]
    fn the_allocator_takes_the_limits_and_they_hold_for_new_threads() {
        super::limit();
        // Other tests of this process may have had heaps before there was a limit.
        let before = heaps();
        // Threads that all hold memory at once would each get a heap, were there no limit.
        let barrier = std::sync::Barrier::new(16);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let held = vec![vec![1_u8; 1000]; 100];
                    barrier.wait();
                    drop(held);
                });
            }
        });
        let heaps = heaps();
        assert!(heaps <= before.max(2), "{before} heaps became {heaps}");
    }

    /// How many heaps `malloc_info(3)` speaks of.
    fn heaps() -> usize {
        let mut text: *mut libc::c_char = std::ptr::null_mut();
        let mut length = 0;
        // SAFETY: the stream writes into memory that is its own until it is closed; then it is ours,
        // ends with a zero byte, and is freed once.
        let report = unsafe {
            let stream = libc::open_memstream(&mut text, &mut length);
            assert!(!stream.is_null());
            libc::malloc_info(0, stream);
            libc::fclose(stream);
            let report = std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned();
            libc::free(text.cast());
            report
        };
        report.matches("<heap nr=").count()
    }
}
