//! Archives from anywhere: none makes the reader panic or take much memory, and none is unpacked
//! outside its directory.

use std::fs;
use std::io::Read;

use archive::{Reader, UnpackOptions, decompressor, unpack_layer, unpack_tree};
use testkit::{CountingAllocator, Fuzz};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/tar");
const BLOCK: usize = 512;
/// What is read of an entry: holes may be as large as they say.
const CONTENT_MAX: u64 = 1 << 20;

/// Puts the checksums of headers right.
fn mend(input: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = input.get_mut(at..at + BLOCK) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&block[124..135]).unwrap_or_default();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        let blocks = size.div_ceil(BLOCK).min(input.len());
        at += BLOCK * (1 + blocks);
        // The end stays the end.
        if input
            .get(at..at + BLOCK)
            .is_none_or(|next| next.iter().all(|byte| *byte == 0))
        {
            return;
        }
    }
}

#[test]
fn any_bytes_are_an_archive_or_an_error() {
    for mended in [false, true] {
        let fuzz = Fuzz::new(CORPUS, 5000);
        let fuzz = if mended {
            fuzz.mended(|input| mend(input))
        } else {
            fuzz
        };
        fuzz.run(|input| {
            let mut reader = Reader::new(input);
            while let Ok(Some(entry)) = reader.next_entry() {
                let header = entry.header();
                let path = header.clean_path();
                assert!(!path.split(|byte| *byte == b'/').any(|part| part == b".."));
                // An error ends the entry, and then the archive.
                let _ = std::io::copy(&mut entry.take(CONTENT_MAX), &mut std::io::sink());
            }
        });
    }
}

#[test]
fn any_bytes_are_packed_or_plain() {
    Fuzz::new(CORPUS, 500).run(|input| {
        if let Ok(plain) = decompressor(input) {
            let _ = std::io::copy(&mut plain.take(CONTENT_MAX), &mut std::io::sink());
        }
    });
}

#[test]
fn nothing_is_unpacked_outside_its_directory() {
    let lab = tempfile::tempdir().unwrap();
    let (canary, dest, lowers) = (
        lab.path().join("canary"),
        lab.path().join("dest"),
        lab.path().join("lowers"),
    );
    fs::write(&canary, "alive").unwrap();
    fs::create_dir_all(lowers.join("d")).unwrap();
    fs::write(lowers.join("d/a"), "below").unwrap();
    std::os::unix::fs::symlink("..", lowers.join("l")).unwrap();
    Fuzz::new(CORPUS, 500)
        .mended(|input| mend(input))
        .run(|input| {
            for kind in 0..3 {
                fs::create_dir(&dest).unwrap();
                // An error is as good as an outcome.
                let _ = match kind {
                    0 => unpack_layer(input, &dest, None),
                    1 => unpack_layer(input, &dest, Some(&lowers)),
                    _ => unpack_tree(input, &dest, &UnpackOptions::default()),
                };
                fs::remove_dir_all(&dest).unwrap();
                assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
                assert_eq!(fs::read_to_string(lowers.join("d/a")).unwrap(), "below");
                assert_eq!(fs::read_dir(lab.path()).unwrap().count(), 2);
                assert_eq!(fs::read_dir(&lowers).unwrap().count(), 2);
            }
        });
}
